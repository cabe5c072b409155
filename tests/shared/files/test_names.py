"""Names of produced files: which are valid, and that valid ones never share a path."""

import pytest

from tandem_shared.files.names import job_path, name_problem
from tandem_shared.files.store import FileStore


@pytest.mark.parametrize(
    "name",
    [
        "a.csv",
        "a/b/c.txt",
        "ü 語.txt",
        "...",
        "a#1",
        "100%",
        "%2e%2e/x",
        "~",
        "x" * 200,
        "/".join(["y" * 99] * 7),
    ],
)
async def test_valid_names_have_distinct_paths(any_store: FileStore, name: str) -> None:
    assert name_problem(name) is None
    await any_store.write(job_path("J", 1, name), name.encode())
    await any_store.write(job_path("J", 1, "other"), b"other")
    assert await any_store.load(job_path("J", 1, name), 1000) == name.encode()
    assert [stored.path async for stored in any_store.list("jobs/J/1")].count(
        job_path("J", 1, name)
    ) == 1


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/."),
        *("a\0b", "a\nb", "a\\b", "\x7f", "\ud800"),
        *("x" * 201, "é" * 101, "#" * 67, "/".join(["y" * 99] * 8)),
    ],
)
def test_invalid_names_are_refused(name: str) -> None:
    assert name_problem(name)
