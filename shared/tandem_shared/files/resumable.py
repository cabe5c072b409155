"""Uploads that come in parts: each is an object named by the byte where it begins, and the end is one without bytes.

    uploads/<id>/parts/00000000000000    the first part
    uploads/<id>/parts/00000008388608    the next, where that one ends; and so on
    uploads/<id>/parts/00000012345678    the end, an empty object: nothing comes after it

An object is created once and never replaced. So of two who send the same place of one upload at
once, through one API or two, the store lets one be first, and needs no lock for it; and whoever
lists the parts knows where the upload goes on, whatever became of him who sent the last one. What
came before a connection broke is a part too; a process that is killed loses what it had of the part
that it was filling.

A complete upload is joined into one object, as any other is, and hashed on the way. That can be
asked for again until it has been done.
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
    completed_upload,
    find_partial_upload,
    find_upload,
    publish_upload,
    remove_upload,
    upload_folder,
)

MAX_PARTS = 10_000  # of one upload


class UploadProgress(NamedTuple):
    """What has come of an upload."""

    offset: int  # bytes; where it goes on
    parts: list[int]  # where each begins
    ended: bool  # whether nothing can come after it


async def upload_progress(store: FileStore, id: str) -> UploadProgress:
    """What has come of an upload, nothing of one that is not there."""
    sizes: dict[int, int] = {}
    async for stat in store.list(f"{upload_folder(id)}/parts"):
        name = stat.path.rpartition("/")[2]
        if name.isascii() and name.isdecimal() and len(sizes) <= MAX_PARTS:
            sizes[int(name)] = stat.size
    offset, parts = 0, list[int]()
    while size := sizes.get(offset, 0):
        parts.append(offset)
        offset += size
    return UploadProgress(offset, parts, offset in sizes)


async def append_parts(
    store: FileStore, upload: PartialUpload, offset: int, data: AsyncIterable[bytes], *, limit: int
) -> int:
    """Add bytes that begin at `offset`; where the upload goes on then.

    Whatever `data` raises is raised when all that came before it is kept. Raises OffsetMismatch for
    another place than the upload's end, Conflict if that is its last, TooLarge above `limit` bytes
    or MAX_PARTS parts, Malformed above the length that was announced, NotFound if the upload is
    removed meanwhile.
    """
    have = await upload_progress(store, upload.id)
    if have.offset != offset:
        raise OffsetMismatch(have.offset, offset)
    size = max(
        store.part_bytes, -(-2 * limit // MAX_PARTS)
    )  # leaves half of the parts for those that a broken line cuts
    count = len(have.parts)
    async for part in _portions(upload, offset, data, size, limit):
        if count >= MAX_PARTS:
            raise TooLarge("the upload", MAX_PARTS, "parts")
        if not await store.create(_part(upload.id, offset), part):
            have = await upload_progress(store, upload.id)
            if have.ended and have.offset == offset:
                raise Conflict(f"the upload was ended at byte {offset}")
            raise OffsetMismatch(have.offset, offset)
        offset, count = offset + len(part), count + 1
    try:
        await find_partial_upload(store, upload.id, tenant=upload.tenant)
    except NotFound:
        # Removed while bytes came: they belong to nothing.
        await store.delete_tree(f"{upload_folder(upload.id)}/parts")
        raise
    return offset


async def _portions(
    upload: PartialUpload, offset: int, data: AsyncIterable[bytes], size: int, limit: int
) -> AsyncIterator[bytes]:
    """The same bytes in portions of about `size`; what raises does so after the bytes that came before it."""
    filled = bytearray()
    try:
        async for piece in data:
            end = offset + len(filled) + len(piece)
            if end > limit:
                raise TooLarge("the file", limit)
            if upload.length is not None and end > upload.length:
                raise Malformed(
                    f"Upload-Length: {upload.length} bytes were announced, and more came"
                )
            filled += piece
            if len(filled) >= size:
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
    store: FileStore, upload: PartialUpload, offset: int, *, keep: float
) -> Upload:
    """End the upload at `offset`, join its parts and publish it for `keep` seconds; safe to repeat, also at once.

    Raises OffsetMismatch if it goes on elsewhere, Malformed if another length was announced,
    NotFound if it is removed meanwhile.
    """
    if upload.length is not None and upload.length != offset:
        raise Malformed(f"Upload-Length: {upload.length} bytes were announced, and {offset} came")
    await store.create(_part(upload.id, offset), b"")
    have = await upload_progress(store, upload.id)
    if not have.ended or have.offset != offset:
        # Either somebody else was first to go on there, or to finish, which removes the parts.
        return await _finished(store, upload, OffsetMismatch(have.offset, offset))
    try:
        written = await store.write(
            f"{upload_folder(upload.id)}/data",
            _joined(store, upload, [*have.parts, offset]),
            name=upload.name or upload.id,
            content_type=upload.content_type,
        )
        await find_partial_upload(store, upload.id, tenant=upload.tenant)
    except NotFound as gone:
        return await _finished(store, upload, gone)
    if written.size != offset:
        raise Unavailable("the parts of an upload are not what they were when they came")
    done = completed_upload(upload, written, keep)
    await publish_upload(store, done)
    await _forget(store, upload)
    return done


async def _finished(store: FileStore, upload: PartialUpload, otherwise: Exception) -> Upload:
    """What somebody else made of it, who has finished it. Raises `otherwise` if nobody has."""
    try:
        done = await find_upload(store, upload.id, tenant=upload.tenant)
    except NotFound:
        if isinstance(otherwise, NotFound):
            await remove_upload(store, upload.id)
        raise otherwise from None
    await _forget(store, upload)
    return done


async def _forget(store: FileStore, upload: PartialUpload) -> None:
    await store.delete(f"{upload_folder(upload.id)}/begun.json")
    await store.delete_tree(f"{upload_folder(upload.id)}/parts")


async def _joined(
    store: FileStore, upload: PartialUpload, bounds: list[int]
) -> AsyncIterator[bytes]:
    for start, end in pairwise(bounds):
        async for piece in store.read(_part(upload.id, start), 0, end - start):
            yield piece


def _part(id: str, offset: int) -> str:
    return f"{upload_folder(id)}/parts/{offset:014d}"


MAX_JOINS = 2  # uploads that one process joins at once


class UploadJoiner:
    """Joins complete uploads: each once at a time in this process, however many ask, and JOINS at once."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Upload]] = {}
        self._turn = asyncio.Semaphore(MAX_JOINS)

    async def finish(
        self, store: FileStore, upload: PartialUpload, offset: int, *, keep: float
    ) -> Upload:
        """As shared.parts.finish. It goes on when the one who asked is gone."""
        task = self._tasks.get(upload.id)
        if task is None:
            task = asyncio.create_task(self._finish(store, upload, offset, keep), name="join")
            self._tasks[upload.id] = task
            task.add_done_callback(lambda _: self._tasks.pop(upload.id, None))
        return await asyncio.shield(task)

    async def _finish(
        self, store: FileStore, upload: PartialUpload, offset: int, keep: float
    ) -> Upload:
        async with self._turn:
            return await finish_upload(store, upload, offset, keep=keep)

    async def close(self) -> None:
        """Give up; whoever asks again begins anew."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
