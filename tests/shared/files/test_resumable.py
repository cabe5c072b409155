"""Uploads in parts, on each kind of store: where they continue, how they race, join and expire."""

import asyncio
import hashlib
import itertools
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tandem_shared.errors import Conflict, Malformed, NotFound, OffsetMismatch, TooLarge
from tandem_shared.files import resumable
from tandem_shared.files.resumable import append_parts, finish_upload, upload_progress
from tandem_shared.files.store import FileStore, open_store
from tandem_shared.files.sweep import STALE_SECONDS, sweep
from tandem_shared.files.uploads import (
    PartialUpload,
    begin_upload,
    delete_upload,
    find_partial_upload,
    find_upload,
    remove_upload,
)
from tests.shared.files.test_sweep import none_alive

MIB = 1 << 20
LIMIT = 64 * MIB
DATA = random.Random(3).randbytes(3 * MIB + 777)


async def chunks(
    data: bytes, size: int = 64 << 10, failure: Exception | None = None
) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
    if failure is not None:
        raise failure


async def begin(store: FileStore, **given: Any) -> PartialUpload:
    return await begin_upload(
        store, **{"tenant": "a", "now": time.time, "keep": 60, "name": "x", **given}
    )


async def names(store: FileStore, upload: PartialUpload) -> list[str]:
    return sorted(
        [
            stored.path.partition(upload.id + "/")[2]
            async for stored in store.list(f"uploads/{upload.id}")
        ]
    )


async def test_parts_become_one_file(any_store: FileStore) -> None:
    upload = await begin(any_store, content_type="text/x-own")
    offset = 0
    for start, end in itertools.pairwise([0, 10, MIB, 3 * MIB, len(DATA)]):
        offset = await append_parts(any_store, upload, offset, chunks(DATA[start:end]), limit=LIMIT)
        assert (offset, (await upload_progress(any_store, upload.id)).offset) == (end, end)
        with pytest.raises(NotFound):
            await find_upload(any_store, upload.id, tenant="a", now=time.time())
    done = await finish_upload(any_store, upload, offset, keep=60, now=time.time)
    assert (done.id, done.name, done.content_type) == (upload.id, "x", "text/x-own")
    assert (done.size, done.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert await find_upload(any_store, upload.id, tenant="a", now=time.time()) == done
    assert await any_store.load(done.path, LIMIT) == DATA
    assert await names(any_store, upload) == ["data", "meta.json"]
    with pytest.raises(NotFound):
        await find_partial_upload(any_store, upload.id, tenant="a", now=time.time())


async def test_an_empty_upload(any_store: FileStore) -> None:
    upload = await begin(any_store)
    assert await append_parts(any_store, upload, 0, chunks(b""), limit=LIMIT) == 0
    assert (await finish_upload(any_store, upload, 0, keep=60, now=time.time)).size == 0


async def test_bytes_before_a_failure_are_kept_and_the_failure_is_raised(
    any_store: FileStore,
) -> None:
    upload = await begin(any_store)
    with pytest.raises(ConnectionResetError):
        await append_parts(
            any_store, upload, 0, chunks(DATA[: MIB + 5], 1000, ConnectionResetError()), limit=LIMIT
        )
    assert (await upload_progress(any_store, upload.id)).offset == MIB + 5
    assert await append_parts(
        any_store, upload, MIB + 5, chunks(DATA[MIB + 5 :]), limit=LIMIT
    ) == len(DATA)
    assert (
        await finish_upload(any_store, upload, len(DATA), keep=60, now=time.time)
    ).sha256 == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("offset", [0, 4, 6, 10**14])
async def test_a_wrong_offset_is_refused_with_the_right_one(
    any_store: FileStore, offset: int
) -> None:
    upload = await begin(any_store)
    await append_parts(any_store, upload, 0, chunks(b"12345"), limit=LIMIT)
    with pytest.raises(OffsetMismatch) as error:
        await append_parts(any_store, upload, offset, chunks(b"x"), limit=LIMIT)
    assert (error.value.expected, error.value.provided) == (5, offset)
    with pytest.raises(OffsetMismatch):
        await finish_upload(any_store, upload, 4, keep=60, now=time.time)
    assert (await finish_upload(any_store, upload, 5, keep=60, now=time.time)).size == 5


async def test_one_of_many_concurrent_appends_wins(any_store: FileStore) -> None:
    upload = await begin(any_store)
    gate = asyncio.Barrier(5)

    async def held_up(data: bytes) -> AsyncIterator[bytes]:
        await gate.wait()  # all have seen the same offset by now
        yield data

    sent = [bytes([48 + number]) * (number + 1) for number in range(5)]
    ends = await asyncio.gather(
        *(append_parts(any_store, upload, 0, held_up(data), limit=LIMIT) for data in sent),
        return_exceptions=True,
    )
    (winner,) = (number for number, end in enumerate(ends) if isinstance(end, int))
    lost = [end for end in ends if isinstance(end, OffsetMismatch)]
    assert [error.expected for error in lost] == [winner + 1] * 4
    done = await finish_upload(any_store, upload, winner + 1, keep=60, now=time.time)
    assert await any_store.load(done.path, 10) == sent[winner]


async def test_nothing_can_be_appended_after_the_end(any_store: FileStore) -> None:
    upload = await begin(any_store)
    await append_parts(any_store, upload, 0, chunks(b"12345"), limit=LIMIT)
    # As if a process wrote the end and was killed before it joined the parts.
    assert await any_store.put(f"uploads/{upload.id}/parts/{5:014d}", b"", replace=False)
    assert (await upload_progress(any_store, upload.id)).ended
    with pytest.raises(Conflict):
        await append_parts(any_store, upload, 5, chunks(b"6"), limit=LIMIT)
    assert await append_parts(any_store, upload, 5, chunks(b""), limit=LIMIT) == 5
    assert (await finish_upload(any_store, upload, 5, keep=60, now=time.time)).size == 5


async def test_concurrent_finishes_agree(any_store: FileStore) -> None:
    upload = await begin(any_store)
    await append_parts(any_store, upload, 0, chunks(DATA), limit=LIMIT)
    done = await asyncio.gather(
        *(finish_upload(any_store, upload, len(DATA), keep=60, now=time.time) for _ in range(4))
    )
    done.append(await finish_upload(any_store, upload, len(DATA), keep=60, now=time.time))
    assert {one.sha256 for one in done} == {hashlib.sha256(DATA).hexdigest()}
    assert await any_store.load(done[0].path, LIMIT) == DATA
    assert await names(any_store, upload) == ["data", "meta.json"]


async def test_an_upload_deleted_meanwhile_leaves_nothing(any_store: FileStore) -> None:
    upload = await begin(any_store)

    async def removed() -> AsyncIterator[bytes]:
        yield b"x" * MIB
        await delete_upload(any_store, upload.id, tenant="a", now=time.time())
        yield b"y" * MIB

    with pytest.raises(NotFound):
        await append_parts(any_store, upload, 0, removed(), limit=LIMIT)
    assert await names(any_store, upload) == []
    upload = await begin(any_store)
    await append_parts(any_store, upload, 0, chunks(b"1"), limit=LIMIT)
    await any_store.delete(f"uploads/{upload.id}/begun.json")
    with pytest.raises(NotFound):
        await finish_upload(any_store, upload, 1, keep=60, now=time.time)
    assert await names(any_store, upload) == []


async def test_appends_stop_at_the_limits(
    any_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begin(any_store)
    await append_parts(any_store, upload, 0, chunks(b"1234"), limit=6)
    with pytest.raises(TooLarge):
        await append_parts(any_store, upload, 4, chunks(b"567", 1), limit=6)
    # The bytes that fit are kept, as when a connection breaks.
    assert (await upload_progress(any_store, upload.id)).offset == 6
    monkeypatch.setattr(resumable, "MAX_PARTS", 3)
    await append_parts(any_store, upload, 6, chunks(b"7"), limit=10)
    with pytest.raises(TooLarge, match="3 parts"):
        await append_parts(any_store, upload, 7, chunks(b"8"), limit=10)


async def test_the_announced_length_is_enforced(any_store: FileStore) -> None:
    upload = await begin(any_store, length=5)
    await append_parts(any_store, upload, 0, chunks(b"123"), limit=LIMIT)
    with pytest.raises(Malformed):
        await finish_upload(any_store, upload, 3, keep=60, now=time.time)
    with pytest.raises(Malformed):
        await append_parts(any_store, upload, 3, chunks(b"456"), limit=LIMIT)
    await append_parts(any_store, upload, 3, chunks(b"45"), limit=LIMIT)
    assert (await finish_upload(any_store, upload, 5, keep=60, now=time.time)).size == 5


async def test_only_its_tenant_finds_a_partial_upload_until_it_expires(
    any_store: FileStore,
) -> None:
    upload = await begin(any_store)
    for look in (find_partial_upload, delete_upload):
        with pytest.raises(NotFound):
            await look(any_store, upload.id, tenant="b", now=time.time())
    assert await find_partial_upload(any_store, upload.id, tenant="a", now=time.time()) == upload
    late = await begin(any_store, keep=-1)
    with pytest.raises(NotFound):
        await find_partial_upload(any_store, late.id, tenant="a", now=time.time())


async def test_sweep_removes_expired_uploads_and_joined_parts(tmp_path: Path) -> None:
    async with open_store(f"file://{tmp_path}") as store:
        live, late = await begin(store, keep=3600), await begin(store, keep=-1)
        for upload in (live, late):
            await store.put(f"uploads/{upload.id}/parts/{0:014d}", b"1", replace=False)
        done = await begin(store)
        await append_parts(store, done, 0, chunks(b"1"), limit=LIMIT)
        await finish_upload(store, done, 1, keep=3600, now=time.time)
        # As if the process that joined the parts was killed before it removed them.
        await store.put(f"uploads/{done.id}/parts/{0:014d}", b"1", replace=False)
        removed = await begin(store)
        await remove_upload(store, removed.id)
        await store.put(f"uploads/{removed.id}/parts/{0:014d}", b"1", replace=False)
        for path in tmp_path.rglob("*"):
            if path.is_file():
                os.utime(path, (path.stat().st_atime, path.stat().st_mtime - STALE_SECONDS - 60))
        await sweep(store, keep=-1, alive=none_alive, now=time.time())
        assert await names(store, live) == ["begun.json", f"parts/{0:014d}"]
        assert await names(store, done) == ["data", "meta.json"]
        assert await names(store, late) == await names(store, removed) == []
