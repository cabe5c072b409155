"""The file store, on a directory and in memory: whole or not at all, ranges, errors; uploads, names and sweeping."""

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from tandem_shared.errors import Misconfigured, NotFound, TooLarge, Unavailable
from tandem_shared.files.names import job_path, name_problem
from tandem_shared.files.store import CHUNK_BYTES, FileStore, open_store
from tandem_shared.files.uploads import (
    STALE_SECONDS,
    delete_upload,
    find_upload,
    new_upload_id,
    save_upload,
    sweep,
)
from tests.conftest import eventually

MIB = 1 << 20


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    async with open_store(f"file://{tmp_path}/a%20store") as store:
        yield store


async def chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def collect(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 12345]
)
async def test_what_was_written_in_any_chunks_is_read_back(any_store: FileStore, size: int) -> None:
    data = random.Random(size).randbytes(size)
    ways: list[bytes | AsyncIterator[bytes]] = [
        data,
        chunks(data, 70_000),
        chunks(data, 2 * MIB + 3),
    ]
    for number, given in enumerate(ways):
        written = await any_store.write(f"a/{number}", given)
        assert written == (size, hashlib.sha256(data).hexdigest())
        assert await collect(any_store.read(f"a/{number}")) == data
        assert await any_store.size(f"a/{number}") == size


async def test_ranges_are_read_and_none_is_larger_than_a_piece(any_store: FileStore) -> None:
    data = random.Random(1).randbytes(2 * MIB + 777)
    await any_store.write("x", data)
    for start, end in [(0, 1), (5, 5), (MIB - 1, MIB + 1), (100, len(data)), (len(data) - 1, None)]:
        pieces = [piece async for piece in any_store.read("x", start, end)]
        assert b"".join(pieces) == data[start:end]
        assert all(0 < len(piece) <= 4 * CHUNK_BYTES for piece in pieces)


async def test_a_write_that_fails_leaves_nothing_and_keeps_what_was_there(
    store: FileStore, tmp_path: Path
) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * (3 * MIB)
        raise ConnectionResetError("the sender is gone")

    with pytest.raises(ConnectionResetError):
        await store.write("a/new", breaks())
    assert files(tmp_path) == []
    await store.write("a/old", b"old")
    with pytest.raises(ConnectionResetError):
        await store.write("a/old", breaks())
    assert await collect(store.read("a/old")) == b"old"
    assert files(tmp_path) == ["a store/a/old"]


async def test_a_cancelled_write_leaves_nothing(store: FileStore, tmp_path: Path) -> None:
    under_way = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * MIB
        under_way.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(store.write("a/b", endless()))
    await under_way.wait()
    assert files(tmp_path) == ["a store/a/b#1"]
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await eventually(lambda: files(tmp_path) == [])


async def test_nothing_is_seen_before_the_end_of_the_write(store: FileStore) -> None:
    seen: list[type[BaseException]] = []

    async def curious() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * MIB
            try:
                await store.size("a")
            except NotFound as error:
                seen.append(type(error))

    await store.write("a", curious())
    assert seen == [NotFound] * 3
    assert await store.size("a") == 3 * MIB


async def test_a_limit_ends_the_reading_as_soon_as_it_is_passed(any_store: FileStore) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1000
            yield b"x" * 1000

    with pytest.raises(TooLarge) as error:
        await any_store.write("a", endless(), limit=10_500)
    assert (taken, error.value.limit) == (11_000, 10_500)
    with pytest.raises(NotFound):
        await any_store.size("a")
    assert (await any_store.write("a", b"x" * 10_500, limit=10_500)).size == 10_500


async def test_load_has_a_limit(any_store: FileStore) -> None:
    await any_store.write("a", b"12345")
    assert await any_store.load("a", 5) == b"12345"
    with pytest.raises(TooLarge):
        await any_store.load("a", 4)


async def test_what_is_missing(any_store: FileStore) -> None:
    with pytest.raises(NotFound):
        await any_store.size("none")
    with pytest.raises(NotFound):
        await collect(any_store.read("none"))
    with pytest.raises(NotFound):
        await collect(any_store.read("none", 0, 10))
    await any_store.delete("none")
    assert [stat async for stat in any_store.list("none")] == []
    await any_store.ping()


async def test_lists_and_deletes_by_prefix_of_whole_segments(any_store: FileStore) -> None:
    for path in ("a/1", "a/b/2", "ab/3"):
        await any_store.write(path, path.encode())
    assert sorted([(stat.path, stat.size) async for stat in any_store.list("a")]) == [
        ("a/1", 3),
        ("a/b/2", 5),
    ]
    await any_store.delete_tree("a")
    assert [stat.path async for stat in any_store.list("a")] == []
    assert await any_store.size("ab/3") == 4


async def test_a_file_cut_by_others_is_an_error_and_no_endless_loop(
    store: FileStore, tmp_path: Path
) -> None:
    await store.write("a", b"x" * (2 * MIB))
    os.truncate(tmp_path / "a store" / "a", MIB)
    with pytest.raises(Unavailable):
        await collect(store.read("a", 0, 2 * MIB))


async def test_a_store_that_cannot_write_is_unavailable(store: FileStore, tmp_path: Path) -> None:
    (tmp_path / "a store" / "a").write_bytes(b"a file where a directory is needed")
    with pytest.raises(Unavailable, match=r"^the file store failed \(Not a directory\)$"):
        await store.write("a/b", b"1")


async def test_a_store_that_fails_says_why_without_a_path(store: FileStore, tmp_path: Path) -> None:
    (tmp_path / "a store" / "a").mkdir()
    with pytest.raises(Unavailable, match=r"^the file store failed \(Is a directory\)$"):
        await collect(store.read("a", 0, 1))
    (tmp_path / "a store" / "b").write_bytes(b"a file where a directory is needed")
    with pytest.raises(Unavailable, match=r"^the file store failed \(Not a directory\)$"):
        await collect(store.read("b/c", 0, 1))


@pytest.mark.parametrize(
    "url",
    [
        "file://relative/path",
        "file:relative",
        "file:///dev/null/below",
        "file:///proc/no-such-place",
        "file:///tmp/x?mode=ro",
        "nope://x",
        "s3://",
        "az://container",
    ],
)
async def test_a_wrong_url_stops_the_start_with_the_settings_name(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"^TANDEM_STORE_URL: ") as error:
        async with open_store(url):
            pass
    assert "\n" not in str(error.value)


async def test_a_wrong_url_does_not_show_its_password() -> None:
    with pytest.raises(Misconfigured) as error:
        async with open_store("nope://user:hunter2@host/x?key=hunter3"):
            pass
    assert "hunter" not in str(error.value)


# ------------------------------------------------------------------------------- names of job files


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
async def test_valid_names_of_job_files_are_stored_apart(store: FileStore, name: str) -> None:
    assert name_problem(name) is None
    await store.write(job_path("J", 1, name), name.encode())
    await store.write(job_path("J", 1, "other"), b"other")
    assert await store.load(job_path("J", 1, name), 1000) == name.encode()
    assert [stat.path async for stat in store.list("jobs/J/1")].count(job_path("J", 1, name)) == 1


@pytest.mark.parametrize(
    "name",
    ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.", "a\0b", "a\nb", "a\\b", "x" * 201, "é" * 101,
     "/".join(["y" * 99] * 8), "\ud800", "\x7f", "#" * 67],
)  # fmt: skip
def test_invalid_names_of_job_files_are_refused(name: str) -> None:
    assert name_problem(name)


# ------------------------------------------------------------------------------------------ uploads


async def test_an_upload_is_found_by_its_tenant_alone(any_store: FileStore) -> None:
    saved = await save_upload(
        any_store, b"hello", tenant="a", keep=60, name="../x", content_type="text/plain", limit=5
    )
    assert saved.view() | {"expires_at": None} == {
        "id": saved.id,
        "name": "../x",
        "size": 5,
        "sha256": hashlib.sha256(b"hello").hexdigest(),
        "content_type": "text/plain",
        "expires_at": None,
    }
    assert await find_upload(any_store, saved.id, tenant="a") == saved
    assert await collect(any_store.read(saved.path)) == b"hello"
    for id, tenant in [
        (saved.id, "b"),
        (new_upload_id(), "a"),
        ("../" + saved.id, "a"),
        ("", "a"),
        (saved.id + "\n", "a"),
    ]:
        with pytest.raises(NotFound):
            await find_upload(any_store, id, tenant=tenant)
    with pytest.raises(NotFound):
        await delete_upload(any_store, saved.id, tenant="b")
    await delete_upload(any_store, saved.id, tenant="a")
    with pytest.raises(NotFound):
        await find_upload(any_store, saved.id, tenant="a")
    assert [stat async for stat in any_store.list("uploads")] == []


async def test_an_upload_that_is_too_large_is_nowhere(any_store: FileStore) -> None:
    with pytest.raises(TooLarge):
        await save_upload(any_store, b"123456", tenant="a", keep=60, limit=5)
    assert [stat async for stat in any_store.list("uploads")] == []


async def test_an_expired_upload_is_not_found_and_removed(any_store: FileStore) -> None:
    saved = await save_upload(any_store, b"hello", tenant="a", keep=-1)
    with pytest.raises(NotFound):
        await find_upload(any_store, saved.id, tenant="a")
    assert [stat async for stat in any_store.list("uploads")] == []


async def test_upload_ids_are_unguessable_and_sort_by_time() -> None:
    ids = [new_upload_id() for _ in range(1000)]
    assert len({id[10:] for id in ids}) == 1000
    assert [id[:10] for id in ids] == sorted(id[:10] for id in ids)
    assert all(len(id) == 30 and id.isalnum() for id in ids)


# -------------------------------------------------------------------------------------------- sweep


def age(path: Path, seconds: float) -> None:
    past = path.stat().st_mtime - seconds
    os.utime(path, (past, past))


async def nobody(_id: str) -> bool:
    """Whether a job is known."""
    return False


async def test_sweep_removes_what_nobody_can_ask_for_and_nothing_else(
    store: FileStore, tmp_path: Path
) -> None:
    root = tmp_path / "a store"
    keep = 3600.0
    live = await save_upload(store, b"live", tenant="a", keep=keep)
    expired = await save_upload(store, b"expired", tenant="a", keep=-1)
    # Ids tell their age: this one is of 2001.
    old_id = "00VJ8BQ9Y0" + "A" * 20
    for name in ("data", "meta.json"):
        source, place = root / expired.path, root / "uploads" / old_id / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes((source.parent / name).read_bytes())
    await store.write(f"uploads/{new_upload_id()}/data", b"its metadata comes soon")
    forgotten = f"uploads/{new_upload_id()}/data"
    await store.write(forgotten, b"its metadata never came")
    age(root / forgotten, STALE_SECONDS + 60)
    age(root / live.path, STALE_SECONDS + 60)
    await store.write("jobs/J/1/young", b"1")
    await store.write("jobs/K/1/old", b"1")
    age(root / "jobs/K/1/old", keep + STALE_SECONDS + 60)
    for temporary, seconds in [("jobs/J/1/x#1", 60.0), ("jobs/J/1/x#2", STALE_SECONDS + 60)]:
        (root / temporary).write_bytes(b"half")
        age(root / temporary, seconds)
    (root / "uploads" / "unknown").write_bytes(b"of somebody else")
    before = files(root)

    removed = await sweep(store, keep=keep, alive=nobody)

    gone = set(before) - set(files(root))
    assert gone == {
        f"uploads/{old_id}/data",
        f"uploads/{old_id}/meta.json",
        forgotten,
        "jobs/K/1/old",
        "jobs/J/1/x#2",
    }
    assert removed == 4  # an upload counts once
    assert await sweep(store, keep=keep, alive=nobody) == 0
    assert await find_upload(store, live.id, tenant="a") == live


async def test_sweep_spares_what_jobs_said_as_long_as_they_are_known(
    store: FileStore, tmp_path: Path
) -> None:
    asked: list[str] = []

    async def alive(id: str) -> bool:
        asked.append(id)
        return id == "J"

    for path in (
        "jobs/J/output/1-2",
        "jobs/J/output/3-4",
        "jobs/K/output/1-2",
        "jobs/L/output/1-2",
    ):
        await store.write(path, b"1")
        if "L" not in path:
            age(tmp_path / "a store" / path, 60 + STALE_SECONDS + 60)
    assert await sweep(store, keep=60, alive=alive) == 1
    assert files(tmp_path / "a store") == [
        "jobs/J/output/1-2",
        "jobs/J/output/3-4",
        "jobs/L/output/1-2",
    ]
    assert sorted(asked) == ["J", "K"]


async def test_sweep_stops_at_its_limit_and_goes_on_the_next_time(
    store: FileStore, tmp_path: Path
) -> None:
    for number in range(5):
        await store.write(f"jobs/J/1/{number}", b"1")
        age(tmp_path / "a store" / f"jobs/J/1/{number}", 2 * STALE_SECONDS)
    assert [await sweep(store, keep=60, limit=2, alive=nobody) for _ in range(4)] == [2, 2, 1, 0]


async def test_sweeps_beside_each_other_and_beside_writers_do_no_harm(
    store: FileStore, tmp_path: Path
) -> None:
    root = tmp_path / "a store"
    for number in range(50):
        await store.write(f"jobs/{number}/1/x", b"1")
        age(root / f"jobs/{number}/1/x", 2 * STALE_SECONDS)

    async def write(number: int) -> None:
        await store.write(f"jobs/{number}/2/y", b"2")

    async with asyncio.TaskGroup() as group:
        sweeps = [group.create_task(sweep(store, keep=60, alive=nobody)) for _ in range(3)]
        for number in range(50):
            group.create_task(write(number))
    assert sum(task.result() for task in sweeps) >= 50
    assert files(root) == sorted(f"jobs/{number}/2/y" for number in range(50))


async def test_a_sweep_that_meets_what_it_cannot_look_at_says_so(
    store: FileStore, tmp_path: Path
) -> None:
    directory = tmp_path / "a store" / "uploads"
    directory.mkdir()
    (directory / "x#1").symlink_to("x#1")
    with pytest.raises(
        Unavailable, match=r"^the file store failed \(Too many levels of symbolic links\)$"
    ):
        await sweep(store, keep=60, alive=nobody)


async def test_sweep_drops_empty_directories_of_failed_writes(
    store: FileStore, tmp_path: Path
) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * (2 * MIB)
        raise ConnectionResetError

    with suppress(ConnectionResetError):
        await store.write("uploads/A/data", breaks())
    directory = tmp_path / "a store" / "uploads" / "A"
    assert directory.is_dir()
    age(directory, STALE_SECONDS + 60)
    await sweep(store, keep=60, alive=nobody)
    assert not directory.exists()
