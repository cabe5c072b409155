"""The file store, on a directory, in memory and on S3: whole objects, ranges, limits and errors."""

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tandem_shared.errors import Misconfigured, NotFound, TooLarge, Unavailable
from tandem_shared.files.store import CHUNK_BYTES, FileStore, open_store
from tests.conftest import eventually

MIB = 1 << 20


async def chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def collect(data: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in data])


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 12345]
)
async def test_bytes_written_in_any_chunks_are_read_back(any_store: FileStore, size: int) -> None:
    data = random.Random(size).randbytes(size)
    sources: list[bytes | AsyncIterator[bytes]] = [
        data,
        chunks(data, 70_000),
        chunks(data, 2 * MIB + 3),
    ]
    for number, given in enumerate(sources):
        written = await any_store.write(f"a/{number}", given)
        assert written == (size, hashlib.sha256(data).hexdigest())
        assert await collect(any_store.read(f"a/{number}")) == data
        assert await any_store.size(f"a/{number}") == size


async def test_ranges_are_read_in_bounded_chunks(any_store: FileStore) -> None:
    data = random.Random(1).randbytes(2 * MIB + 777)
    await any_store.write("x", data)
    for start, end in [(0, 1), (5, 5), (MIB - 1, MIB + 1), (100, len(data)), (len(data) - 1, None)]:
        chunks_read = [chunk async for chunk in any_store.read("x", start, end)]
        assert b"".join(chunks_read) == data[start:end]
        assert all(0 < len(chunk) <= 4 * CHUNK_BYTES for chunk in chunks_read)


async def test_a_failed_write_leaves_nothing_and_keeps_the_older_object(
    store: FileStore, tmp_path: Path
) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * (3 * MIB)
        raise ConnectionResetError("the sender disconnected")

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


async def test_an_object_is_invisible_until_it_is_complete(store: FileStore) -> None:
    sizes: list[int | None] = []

    async def looking() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * MIB
            sizes.append(await store.size("a"))

    await store.write("a", looking())
    assert sizes == [None] * 3
    assert await store.size("a") == 3 * MIB


async def test_a_write_stops_reading_at_its_limit(any_store: FileStore) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1000
            yield b"x" * 1000

    with pytest.raises(TooLarge) as error:
        await any_store.write("a", endless(), limit=10_500)
    assert (taken, error.value.limit) == (11_000, 10_500)
    assert await any_store.size("a") is None
    assert (await any_store.write("a", b"x" * 10_500, limit=10_500)).size == 10_500


async def test_load_rejects_objects_above_its_limit(any_store: FileStore) -> None:
    await any_store.write("a", b"12345")
    assert await any_store.load("a", 5) == b"12345"
    with pytest.raises(TooLarge):
        await any_store.load("a", 4)


async def test_a_missing_object_is_not_found(any_store: FileStore) -> None:
    assert await any_store.size("none") is None
    with pytest.raises(NotFound):
        await collect(any_store.read("none"))
    with pytest.raises(NotFound):
        await collect(any_store.read("none", 0, 10))
    await any_store.delete("none")
    assert [stored async for stored in any_store.list("none")] == []
    await any_store.ping()


async def test_list_and_delete_tree_match_whole_path_segments(any_store: FileStore) -> None:
    for path in ("a/1", "a/b/2", "ab/3"):
        await any_store.write(path, path.encode())
    assert sorted([(stored.path, stored.size) async for stored in any_store.list("a")]) == [
        ("a/1", 3),
        ("a/b/2", 5),
    ]
    await any_store.delete_tree("a")
    assert [stored.path async for stored in any_store.list("a")] == []
    assert await any_store.size("ab/3") == 4


async def test_a_truncated_file_is_an_error(store: FileStore, tmp_path: Path) -> None:
    await store.write("a", b"x" * (2 * MIB))
    os.truncate(tmp_path / "a store" / "a", MIB)
    with pytest.raises(Unavailable):
        await collect(store.read("a", 0, 2 * MIB))


async def test_a_store_that_cannot_write_is_unavailable(store: FileStore, tmp_path: Path) -> None:
    (tmp_path / "a store" / "a").write_bytes(b"a file where a directory is needed")
    with pytest.raises(Unavailable, match=r"^the file store failed \(Not a directory\)$"):
        await store.write("a/b", b"1")


async def test_a_failing_store_gives_a_reason_without_a_path(
    store: FileStore, tmp_path: Path
) -> None:
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
async def test_an_invalid_url_stops_the_start_and_names_the_setting(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"^TANDEM_STORE_URL: ") as error:
        async with open_store(url):
            pass
    assert "\n" not in str(error.value)


async def test_an_invalid_url_keeps_its_password_secret() -> None:
    with pytest.raises(Misconfigured) as error:
        async with open_store("nope://user:hunter2@host/x?key=hunter3"):
            pass
    assert "hunter" not in str(error.value)
