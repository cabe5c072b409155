"""Uploads in parts: each part is an object named by the offset where it begins.

    uploads/<id>/parts/00000000000000    the first part
    uploads/<id>/parts/00000008388608    the second, which begins where the first ends
    uploads/<id>/parts/00000012345678    the end: an empty object, which nothing can follow

Parts are created once and never replaced. So if two requests append at the same offset, through one
API or two, the store accepts exactly one of them without any lock, and a listing shows where the
upload continues, whatever happened to the last sender. Bytes that came before a connection broke
are kept as a part; a process that is killed loses only the part that it was filling.

A complete upload is joined into one object, like any other upload, and hashed on the way. Joining
may be repeated until it has succeeded.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from itertools import pairwise
from typing import NamedTuple

from tandem_shared.errors import (
    Conflict,
    Malformed,
    NotFound,
    OffsetMismatch,
    TooLarge,
    Unavailable,
)
from tandem_shared.files.store import FileStore
from tandem_shared.files.uploads import (
    PartialUpload,
    Upload,
    load_upload,
    publish_upload,
    remove_upload,
    upload_folder,
    write_upload,
)
from tandem_shared.times import Now

MAX_PARTS = 10_000  # of one upload
MAX_JOINS = 2  # uploads that one process joins at once


class UploadProgress(NamedTuple):
    """What has been stored of an upload."""

    offset: int  # bytes; where it continues
    parts: list[int]  # the offset of each part
    ended: bool  # whether the end is stored, so that nothing can be appended


async def upload_progress(store: FileStore, id: str) -> UploadProgress:
    """What has been stored of an upload; an unknown one has no parts."""
    sizes: dict[int, int] = {}
    async for stored in store.list(f"{upload_folder(id)}/parts"):
        name = stored.path.rpartition("/")[2]
        if name.isascii() and name.isdecimal() and len(sizes) <= MAX_PARTS:
            sizes[int(name)] = stored.size
    offset, parts = 0, list[int]()
    while size := sizes.get(offset, 0):
        parts.append(offset)
        offset += size
    return UploadProgress(offset, parts, offset in sizes)


async def append_parts(
    store: FileStore, upload: PartialUpload, offset: int, data: AsyncIterable[bytes], *, limit: int
) -> int:
    """Append bytes at `offset`; returns the offset where the upload continues.

    An error of `data` is raised once all bytes before it are stored. Raises OffsetMismatch unless
    the upload continues at `offset`, Conflict if it has ended there, TooLarge above `limit` bytes
    or MAX_PARTS parts, Malformed above the announced length, NotFound if the upload is removed
    meanwhile.
    """
    progress = await upload_progress(store, upload.id)
    if progress.offset != offset:
        raise OffsetMismatch(progress.offset, offset)
    # Large enough that half of the parts may be short ones, from broken connections.
    part_bytes = max(store.part_bytes, -(-2 * limit // MAX_PARTS))
    count = len(progress.parts)
    async for part in _parts(upload, offset, data, part_bytes, limit):
        if count >= MAX_PARTS:
            raise TooLarge("the upload", MAX_PARTS, "parts")
        if not await store.put(_part(upload.id, offset), part, replace=False):
            progress = await upload_progress(store, upload.id)
            if progress.ended and progress.offset == offset:
                raise Conflict(f"the upload ended at byte {offset}")
            raise OffsetMismatch(progress.offset, offset)
        offset, count = offset + len(part), count + 1
    try:
        await load_upload(store, upload.id, "begun.json")
    except NotFound:
        # Deleted while these bytes came: remove them too.
        await store.delete_tree(f"{upload.folder}/parts")
        raise
    return offset


async def _parts(
    upload: PartialUpload, offset: int, data: AsyncIterable[bytes], part_bytes: int, limit: int
) -> AsyncIterator[bytes]:
    """Regroup the bytes into parts of about `part_bytes`; errors follow the bytes before them."""
    filled = bytearray()
    try:
        async for chunk in data:
            end = offset + len(filled) + len(chunk)
            if end > limit:
                raise TooLarge("the file", limit)
            if upload.length is not None and end > upload.length:
                raise Malformed(f"Upload-Length: announced {upload.length} bytes, but more came")
            filled += chunk
            if len(filled) >= part_bytes:
                offset += len(filled)
                yield bytes(filled)
                filled.clear()
    except Exception:
        if filled:
            yield bytes(filled)
        raise
    if filled:
        yield bytes(filled)


async def finish_upload(
    store: FileStore, upload: PartialUpload, offset: int, *, now: Now, keep: float
) -> Upload:
    """End the upload at `offset`, join its parts and publish it for `keep` seconds from `now`.

    Safe to repeat, also concurrently. Raises OffsetMismatch if it continues elsewhere, Malformed if
    another length was announced, NotFound if it is removed meanwhile.
    """
    if upload.length is not None and upload.length != offset:
        raise Malformed(f"Upload-Length: announced {upload.length} bytes, but {offset} came")
    await store.put(_part(upload.id, offset), b"", replace=False)
    progress = await upload_progress(store, upload.id)
    if not progress.ended or progress.offset != offset:
        # Either more was appended there, or another request finished and removed the parts.
        return await _finished_elsewhere(store, upload, OffsetMismatch(progress.offset, offset))
    try:
        joined = _joined(store, upload, [*progress.parts, offset])
        written = await write_upload(store, upload, joined)
        await load_upload(store, upload.id, "begun.json")
    except NotFound as error:
        return await _finished_elsewhere(store, upload, error)
    if written.size != offset:
        raise Unavailable("parts of the upload have changed since they were stored; upload again")
    published = await publish_upload(store, upload, written, now() + keep)
    await _remove_parts(store, upload)
    return published


async def _finished_elsewhere(
    store: FileStore, upload: PartialUpload, otherwise: Exception
) -> Upload:
    """The upload if a concurrent request finished it; raises `otherwise` if none did."""
    try:
        finished: Upload = await load_upload(store, upload.id, "meta.json")
    except NotFound:
        if isinstance(otherwise, NotFound):
            await remove_upload(store, upload.id)
        raise otherwise from None
    await _remove_parts(store, upload)
    return finished


async def _remove_parts(store: FileStore, upload: PartialUpload) -> None:
    await store.delete(f"{upload.folder}/begun.json")
    await store.delete_tree(f"{upload.folder}/parts")


async def _joined(
    store: FileStore, upload: PartialUpload, bounds: list[int]
) -> AsyncIterator[bytes]:
    for start, end in pairwise(bounds):
        async for chunk in store.read(_part(upload.id, start), 0, end - start):
            yield chunk


def _part(id: str, offset: int) -> str:
    return f"{upload_folder(id)}/parts/{offset:014d}"


class UploadJoiner:
    """Finishes up to MAX_JOINS uploads at once, each only once however many requests ask."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Upload]] = {}
        self._slots = asyncio.Semaphore(MAX_JOINS)

    async def finish(
        self, store: FileStore, upload: PartialUpload, offset: int, *, now: Now, keep: float
    ) -> Upload:
        """As `finish_upload`; continues even if the caller is cancelled."""

        async def join() -> Upload:
            async with self._slots:
                return await finish_upload(store, upload, offset, now=now, keep=keep)

        task = self._tasks.get(upload.id)
        if task is None:
            task = self._tasks[upload.id] = asyncio.create_task(join(), name="join")
            task.add_done_callback(lambda _: self._tasks.pop(upload.id, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel all joins; clients that repeat their request start them again."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
