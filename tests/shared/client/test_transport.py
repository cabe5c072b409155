"""What the client does without a network: lines of pieces, ranges, and whom it gives its key."""

from itertools import pairwise
from pathlib import Path

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_jobs.client import ndjson
from tandem_jobs.client.client import Client
from tandem_jobs.client.errors import problem_of
from tandem_jobs.client.http import _request
from tandem_jobs.client.ndjson import Lines
from tandem_jobs.client.transfers import Digest, part_of
from tandem_jobs.client.transport import Lost, Request
from tandem_shared.errors import Malformed, Misconfigured, Unavailable

ENTRIES = [
    {
        "id": f"{n}-0",
        "type": "output",
        "attempt": 1,
        "at": "2026-01-01T00:00:00.000Z",
        "data": {"n": n, "é": "\u2028"},
    }
    for n in range(8)
]
STREAM = (
    b"\n".join(
        msgspec.json.encode(entry) + (b"\n" if entry["id"] == "3-0" else b"") for entry in ENTRIES
    )
    + b"\n"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_lines_are_the_same_however_they_come(cuts: list[int]) -> None:
    lines, found = Lines(), []
    places = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(places):
        entries, whole = lines.feed(STREAM[start:end])
        assert whole == (b"\n" in STREAM[start:end])
        found += entries
    assert [entry.data for entry in found] == [entry["data"] for entry in ENTRIES]


def test_a_part_of_a_line_is_no_entry() -> None:
    assert Lines().feed(STREAM[:-1])[0][-1].id == "6-0"
    with pytest.raises(Lost):
        Lines().feed(b'{"id": "1-0"}\n')


def test_a_line_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndjson, "LINE", 100)
    lines = Lines()
    lines.feed(b"x" * 60)
    with pytest.raises(Malformed, match="100 bytes"):
        lines.feed(b"x" * 60)


@pytest.mark.parametrize(
    ("status", "headers", "skipped"),
    [
        (206, {"etag": '"a"', "content-range": "bytes 5-9/10"}, 0),
        (206, {"etag": '"a"', "content-range": "bytes 3-9/10"}, 2),
        (200, {"etag": '"a"'}, 5),
    ],
)
def test_what_has_come_already_is_skipped(
    status: int, headers: dict[str, str], skipped: int
) -> None:
    digest = Digest()
    assert digest.resumption() == {}
    assert digest.begin(200, {"etag": '"a"', "content-length": "10"}) == 0
    digest.update(b"12345")
    assert not digest.complete()
    assert digest.resumption() == {"Range": "bytes=5-", "If-Range": '"a"'}
    assert digest.begin(status, headers) == skipped


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (206, {"etag": '"b"', "content-range": "bytes 5-9/10"}),
        (200, {}),
        (206, {"etag": '"a"', "content-range": "bytes 6-9/10"}),
        (206, {"etag": '"a"'}),
    ],
)
def test_another_file_is_not_mixed_in(status: int, headers: dict[str, str]) -> None:
    digest = Digest()
    digest.begin(200, {"etag": '"a"'})
    digest.update(b"12345")
    with pytest.raises(Unavailable):
        digest.begin(status, headers)


def test_a_wrong_hash_is_noticed() -> None:
    digest = Digest()
    digest.begin(200, {"repr-digest": "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"})
    digest.update(b"hello")
    assert digest.complete()
    digest.update(b"!")
    with pytest.raises(Unavailable, match="hash"):
        digest.complete()


def test_a_part_becomes_the_file_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    file, keep = part_of(path)
    file.write(b"new")
    keep(done=False)
    keep(done=True)
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"old"]
    file, keep = part_of(path)
    file.write(b"new")
    keep(done=True)
    keep(done=False)
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"new"]


@pytest.mark.parametrize(
    ("path", "url", "given"),
    [
        ("/v1/jobs/x", "http://here.example/tandem/v1/jobs/x", True),
        ("//elsewhere.example/x", "http://here.example/tandem//elsewhere.example/x", True),
        ("https://elsewhere.example/signed?x=1", "https://elsewhere.example/signed?x=1", False),
    ],
)
async def test_the_key_goes_to_the_api_alone(path: str, url: str, *, given: bool) -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        request = _request(
            client, "http://here.example/tandem", "tk_abcd_secret", Request("GET", path)
        )
    assert ("authorization" in request.headers) == given
    assert str(request.url) == url


@pytest.mark.parametrize("key", ["two words", "schlüssel", "line\nend"])
def test_a_key_that_is_none_is_refused_without_telling_it(key: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Client("http://127.0.0.1:1", key)
    assert key not in str(caught.value)


def test_url_and_key_are_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_URL", "nowhere")
    with pytest.raises(Misconfigured, match="TANDEM_URL"):
        Client()
    monkeypatch.setenv("TANDEM_API_KEY", "two words")
    with pytest.raises(Misconfigured, match="TANDEM_API_KEY"):
        Client("http://127.0.0.1:1")


def test_an_answer_of_somebody_on_the_way_is_a_problem_too() -> None:
    problem = problem_of(502, "text/html", b"<h1>Bad\n\n gateway</h1>")
    assert (problem.status, problem.type, str(problem)) == (
        502,
        "about:blank",
        "HTTP status 502: <h1>Bad gateway</h1>",
    )
    assert problem_of(500, "application/problem+json", b"[]").title == "HTTP status 500"
