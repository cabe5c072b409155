"""The sweep of the file store: what it removes and what it spares."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from tandem_shared.errors import Unavailable
from tandem_shared.files.store import FileStore
from tandem_shared.files.sweep import STALE_SECONDS, sweep
from tandem_shared.files.uploads import find_upload, new_upload_id, save_upload
from tests.shared.files.test_store import MIB, files


def age(path: Path, seconds: float) -> None:
    past = path.stat().st_mtime - seconds
    os.utime(path, (past, past))


async def none_alive(_id: str) -> bool:
    return False


async def test_sweep_removes_only_what_cannot_be_asked_for(
    store: FileStore, tmp_path: Path
) -> None:
    root = tmp_path / "a store"
    keep = 3600.0
    live = await save_upload(store, b"live", tenant="a", keep=keep, now=time.time)
    expired = await save_upload(store, b"expired", tenant="a", keep=-1, now=time.time)
    # This id was made in 2001, so its metadata is old enough to be read.
    old_id = "00VJ8BQ9Y0" + "A" * 20
    for name in ("data", "meta.json"):
        source, place = root / expired.path, root / "uploads" / old_id / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes((source.parent / name).read_bytes())
    await store.write(
        f"uploads/{new_upload_id(time.time())}/data", b"its metadata is about to be written"
    )
    forgotten = f"uploads/{new_upload_id(time.time())}/data"
    await store.write(forgotten, b"its metadata was never written")
    age(root / forgotten, STALE_SECONDS + 60)
    age(root / live.path, STALE_SECONDS + 60)
    await store.write("jobs/J/1/young", b"1")
    await store.write("jobs/K/1/old", b"1")
    age(root / "jobs/K/1/old", keep + STALE_SECONDS + 60)
    for temporary, seconds in [("jobs/J/1/x#1", 60.0), ("jobs/J/1/x#2", STALE_SECONDS + 60)]:
        (root / temporary).write_bytes(b"half")
        age(root / temporary, seconds)
    (root / "uploads" / "unknown").write_bytes(b"not written by us")
    before = files(root)

    removed = await sweep(store, keep=keep, alive=none_alive, now=time.time())

    assert set(before) - set(files(root)) == {
        f"uploads/{old_id}/data",
        f"uploads/{old_id}/meta.json",
        forgotten,
        "jobs/K/1/old",
        "jobs/J/1/x#2",
    }
    assert removed == 4  # an upload counts once
    assert await sweep(store, keep=keep, alive=none_alive, now=time.time()) == 0
    assert await find_upload(store, live.id, tenant="a", now=time.time()) == live


async def test_sweep_keeps_the_output_of_jobs_with_a_record(
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
    assert await sweep(store, keep=60, alive=alive, now=time.time()) == 1
    assert files(tmp_path / "a store") == [
        "jobs/J/output/1-2",
        "jobs/J/output/3-4",
        "jobs/L/output/1-2",
    ]
    assert sorted(asked) == ["J", "K"]


async def test_sweep_stops_at_its_limit_and_continues_the_next_time(
    store: FileStore, tmp_path: Path
) -> None:
    for number in range(5):
        await store.write(f"jobs/J/1/{number}", b"1")
        age(tmp_path / "a store" / f"jobs/J/1/{number}", 2 * STALE_SECONDS)
    assert [
        await sweep(store, keep=60, limit=2, alive=none_alive, now=time.time()) for _ in range(4)
    ] == [
        2,
        2,
        1,
        0,
    ]


async def test_concurrent_sweeps_leave_new_files_alone(store: FileStore, tmp_path: Path) -> None:
    root = tmp_path / "a store"
    for number in range(50):
        await store.write(f"jobs/{number}/1/x", b"1")
        age(root / f"jobs/{number}/1/x", 2 * STALE_SECONDS)

    async def write(number: int) -> None:
        await store.write(f"jobs/{number}/2/y", b"2")

    async with asyncio.TaskGroup() as group:
        sweeps = [
            group.create_task(sweep(store, keep=60, alive=none_alive, now=time.time()))
            for _ in range(3)
        ]
        for number in range(50):
            group.create_task(write(number))
    assert sum(task.result() for task in sweeps) >= 50
    assert files(root) == sorted(f"jobs/{number}/2/y" for number in range(50))


async def test_a_sweep_that_cannot_read_a_file_is_unavailable(
    store: FileStore, tmp_path: Path
) -> None:
    directory = tmp_path / "a store" / "uploads"
    directory.mkdir()
    (directory / "x#1").symlink_to("x#1")
    with pytest.raises(
        Unavailable, match=r"^the file store failed \(Too many levels of symbolic links\)$"
    ):
        await sweep(store, keep=60, alive=none_alive, now=time.time())


async def test_sweep_removes_empty_directories_of_failed_writes(
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
    await sweep(store, keep=60, alive=none_alive, now=time.time())
    assert not directory.exists()
