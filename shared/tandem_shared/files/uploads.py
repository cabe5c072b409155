"""Uploads: files that clients send before they submit a job; and how long any stored file is kept."""

import re
import secrets
import time
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from tandem_shared.errors import NotFound, TooLarge
from tandem_shared.files.names import OCTET_STREAM
from tandem_shared.files.store import FileStore, WriteResult
from tandem_shared.jobs.ids import id_time, new_id
from tandem_shared.times import rfc3339

STALE_SECONDS = (
    48 * 3600.0
)  # seconds; a job takes 24 hours at most, so nobody writes any more to what was left so long ago
MAX_META_BYTES = 64 << 10  # bytes of a meta.json or begun.json
_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ID = re.compile(f"[{_LETTERS}]{{30}}")


_Kind = TypeVar("_Kind", "Upload", "PartialUpload")


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A client's file, as its meta.json holds it; times in seconds since the epoch."""

    id: str
    tenant: str
    name: str | None  # as the client calls it: a label, part of no path
    size: int  # bytes
    sha256: str  # hexadecimal
    content_type: str
    expires: float

    @property
    def path(self) -> str:
        """Where its bytes are."""
        return f"{upload_folder(self.id)}/data"

    def view(self) -> dict[str, Any]:
        """The upload as clients see it, API.md's "Files"."""
        return {
            "id": self.id,
            "name": self.name,
            "size": self.size,
            "sha256": self.sha256,
            "content_type": self.content_type,
            "expires_at": rfc3339(self.expires),
        }


class PartialUpload(msgspec.Struct, frozen=True, kw_only=True):
    """An upload that comes in parts and is not complete, as its begun.json holds it; nobody can read it yet."""

    id: str
    tenant: str
    name: str | None
    content_type: str
    length: int | None  # bytes that it will have, if the client said so
    expires: float

    def view(self) -> dict[str, Any]:
        """What is known of it already."""
        return {
            "id": self.id,
            "name": self.name,
            "content_type": self.content_type,
            "expires_at": rfc3339(self.expires),
        }


_upload_meta = msgspec.json.Decoder(Upload)
_begun = msgspec.json.Decoder(PartialUpload)


def new_upload_id() -> str:
    """An id that nobody guesses: 10 letters of ms time and 20 of randomness (100 bits)."""
    return new_id()[:10] + "".join(secrets.choice(_LETTERS) for _ in range(20))


def upload_folder(id: str) -> str:
    """Where all that belongs to an upload is. Raises NotFound for what is no id."""
    if _ID.fullmatch(id) is None:
        raise NotFound("file", id)
    return f"uploads/{id}"


async def save_upload(
    store: FileStore,
    data: bytes | AsyncIterable[bytes],
    *,
    tenant: str,
    keep: float,
    name: str | None = None,
    content_type: str = OCTET_STREAM,
    limit: int | None = None,
) -> Upload:
    """Store a client's file for `keep` seconds. Raises TooLarge above `limit` bytes, and what `data` raises."""
    id = new_upload_id()
    size, sha256 = await store.write(
        f"{upload_folder(id)}/data", data, limit=limit, name=name or id, content_type=content_type
    )
    upload = Upload(
        id=id,
        tenant=tenant,
        name=name,
        size=size,
        sha256=sha256,
        content_type=content_type,
        expires=time.time() + keep,
    )
    await publish_upload(store, upload)
    return upload


def completed_upload(begun: PartialUpload, written: WriteResult, keep: float) -> Upload:
    """The upload that an unfinished one has become."""
    return Upload(
        id=begun.id,
        tenant=begun.tenant,
        name=begun.name,
        size=written.size,
        sha256=written.sha256,
        content_type=begun.content_type,
        expires=time.time() + keep,
    )


async def publish_upload(store: FileStore, upload: Upload) -> None:
    """From now on it is found."""
    await store.write(f"{upload_folder(upload.id)}/meta.json", msgspec.json.encode(upload))


async def begin_upload(
    store: FileStore,
    *,
    tenant: str,
    keep: float,
    name: str | None = None,
    content_type: str = OCTET_STREAM,
    length: int | None = None,
) -> PartialUpload:
    """Begin an upload whose bytes come in parts, see parts.py, within `keep` seconds."""
    upload = PartialUpload(
        id=new_upload_id(),
        tenant=tenant,
        name=name,
        content_type=content_type,
        length=length,
        expires=time.time() + keep,
    )
    await store.write(f"{upload_folder(upload.id)}/begun.json", msgspec.json.encode(upload))
    return upload


async def find_upload(store: FileStore, id: str, *, tenant: str) -> Upload:
    """The tenant's upload, a complete one. Raises NotFound, also for an expired one, which is then removed."""
    return await _find(store, id, "meta.json", _upload_meta, tenant)


async def find_partial_upload(store: FileStore, id: str, *, tenant: str) -> PartialUpload:
    """The tenant's upload, one that is not complete. Raises NotFound, likewise."""
    return await _find(store, id, "begun.json", _begun, tenant)


async def _find(
    store: FileStore, id: str, file: str, decoder: msgspec.json.Decoder[_Kind], tenant: str
) -> _Kind:
    try:
        upload = decoder.decode(await store.load(f"{upload_folder(id)}/{file}", MAX_META_BYTES))
    except (NotFound, TooLarge, msgspec.DecodeError):
        raise NotFound("file", id) from None
    if upload.tenant != tenant:
        raise NotFound("file", id)
    if upload.expires <= time.time():
        await remove_upload(store, id)
        raise NotFound("file", id)
    return upload


async def delete_upload(store: FileStore, id: str, *, tenant: str) -> None:
    """Remove the tenant's upload, complete or not. Raises NotFound."""
    try:
        await find_upload(store, id, tenant=tenant)
    except NotFound:
        await find_partial_upload(store, id, tenant=tenant)
    await remove_upload(store, id)


async def remove_upload(store: FileStore, id: str) -> None:
    """Remove all that belongs to it."""
    # What says that it is there goes first: nobody may find an upload whose bytes are gone.
    for file in ("meta.json", "begun.json", "data"):
        await store.delete(f"{upload_folder(id)}/{file}")
    await store.delete_tree(f"{upload_folder(id)}/parts")


# ------------------------------------------------------------------------------------- housekeeping


async def sweep(
    store: FileStore, *, keep: float, alive: Callable[[str], Awaitable[bool]], limit: int = 10_000
) -> int:
    """Remove what nobody can ask for any more, at most about `limit` objects; how many it were.

    These are expired uploads, complete or not, bytes that belong to no upload, parts that were
    joined, files of jobs whose record is gone (nothing is written by an attempt for longer than a
    day, and a record lives for `keep` s), and the temporaries of writers that died. `alive` tells
    whether a job's record is there: the output of an early attempt may have to stay for as long as
    later ones take. Safe to run in several processes at once.
    """
    now = time.time()
    removed = 0
    async for stat in store.list("uploads"):
        if removed >= limit:
            return removed
        _, _, rest = stat.path.partition("/")
        id, _, part = rest.partition("/")
        if _ID.fullmatch(id) is None:
            continue  # not ours
        if part in ("meta.json", "begun.json"):
            # The id tells the age, which spares reading most; one that was kept for longer says so
            # itself.
            if (id_time(id) or 0.0) + keep < now:
                removed += await _expire(store, id, part, now)
        elif stat.modified + STALE_SECONDS < now and not await belongs_to_upload(store, id, part):
            await store.delete(stat.path)
            removed += 1
    removed += await _sweep_jobs(store, now - keep - STALE_SECONDS, alive, limit - removed)
    return removed + await store.drop_temporaries(now - STALE_SECONDS, limit - removed)


async def _sweep_jobs(
    store: FileStore, before: float, alive: Callable[[str], Awaitable[bool]], limit: int
) -> int:
    removed = 0
    kept = ("", False)  # the job last asked for: a listing mostly has the objects of one together
    async for stat in store.list("jobs"):
        if removed >= limit:
            break
        if stat.modified < before:
            id = stat.path.split("/")[1]
            if id != kept[0]:
                kept = (id, await alive(id))
            if not kept[1]:
                await store.delete(stat.path)
                removed += 1
    return removed


async def _expire(store: FileStore, id: str, file: str, now: float) -> bool:
    decoder: Any = _upload_meta if file == "meta.json" else _begun
    try:
        upload = decoder.decode(await store.load(f"uploads/{id}/{file}", MAX_META_BYTES))
    except NotFound:
        return False
    except (TooLarge, msgspec.DecodeError):
        upload = None
    if upload is not None and upload.expires > now:
        return False
    await remove_upload(store, id)
    return True


async def belongs_to_upload(store: FileStore, id: str, part: str) -> bool:
    """Whether these bytes belong to an upload: `data` to any, the others to one that is not complete."""
    for file in ("meta.json", "begun.json"):
        try:
            await store.size(f"uploads/{id}/{file}")
        except NotFound:
            continue
        return file == "begun.json" or part == "data"
    return False
