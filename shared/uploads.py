"""Uploads: files that clients send before they submit a job; and how long any stored file is kept."""

import re
import secrets
import time
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

import msgspec

from shared.errors import NotFound, TooLarge
from shared.files import FileStore
from shared.jobs import id_time, new_id, rfc3339

STALE = 48 * 3600.0  # seconds; a job takes 24 hours at most, so nobody writes any more to what was left so long ago
META_LIMIT = 64 << 10  # bytes of a meta.json
_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ID = re.compile(f"[{_LETTERS}]{{30}}")


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
        return f"{_upload(self.id)}/data"

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


_upload_meta = msgspec.json.Decoder(Upload)


def new_upload_id() -> str:
    """An id that nobody guesses: 10 letters of ms time and 20 of randomness (100 bits)."""
    return new_id()[:10] + "".join(secrets.choice(_LETTERS) for _ in range(20))


def _upload(id: str) -> str:
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
    content_type: str = "application/octet-stream",
    limit: int | None = None,
) -> Upload:
    """Store a client's file for `keep` seconds. Raises TooLarge above `limit` bytes, and what `data` raises."""
    id = new_upload_id()
    size, sha256 = await store.write(f"{_upload(id)}/data", data, limit=limit)
    upload = Upload(
        id=id,
        tenant=tenant,
        name=name,
        size=size,
        sha256=sha256,
        content_type=content_type,
        expires=time.time() + keep,
    )
    await store.write(f"{_upload(id)}/meta.json", msgspec.json.encode(upload))
    return upload


async def find_upload(store: FileStore, id: str, *, tenant: str) -> Upload:
    """The tenant's upload. Raises NotFound, also for an expired one, which is then removed."""
    try:
        meta = await store.load(f"{_upload(id)}/meta.json", META_LIMIT)
        upload = _upload_meta.decode(meta)
    except (NotFound, TooLarge, msgspec.DecodeError):
        raise NotFound("file", id) from None
    if upload.tenant != tenant:
        raise NotFound("file", id)
    if upload.expires <= time.time():
        await _remove_upload(store, id)
        raise NotFound("file", id)
    return upload


async def delete_upload(store: FileStore, id: str, *, tenant: str) -> None:
    """Remove the tenant's upload. Raises NotFound."""
    await find_upload(store, id, tenant=tenant)
    await _remove_upload(store, id)


async def _remove_upload(store: FileStore, id: str) -> None:
    # The metadata first: nobody may find an upload whose bytes are gone.
    await store.delete(f"{_upload(id)}/meta.json")
    await store.delete(f"{_upload(id)}/data")


# -------------------------------------------------------------------------------------------------------- housekeeping


async def sweep(store: FileStore, *, keep: float, alive: Callable[[str], Awaitable[bool]], limit: int = 10_000) -> int:
    """Remove what nobody can ask for any more, at most about `limit` objects; how many it were.

    These are expired uploads, the bytes of uploads that were never completed, files of jobs whose record is gone
    (nothing is written by an attempt for longer than a day, and a record lives for `keep` seconds), and the temporaries
    of writers that died. `alive` tells whether a job's record is there: the output of an early attempt may have to stay
    for as long as later ones take. Safe to run in several processes at once.
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
        if part == "meta.json":
            # The id tells the age, which spares reading most; one that was kept for longer says so itself.
            if (id_time(id) or 0.0) + keep < now:
                removed += await _expire(store, id, now)
        elif stat.modified + STALE < now and not await _published(store, id):
            await store.delete(stat.path)
            removed += 1
    removed += await _sweep_jobs(store, now - keep - STALE, alive, limit - removed)
    return removed + await store.drop_temporaries(now - STALE, limit - removed)


async def _sweep_jobs(store: FileStore, before: float, alive: Callable[[str], Awaitable[bool]], limit: int) -> int:
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


async def _expire(store: FileStore, id: str, now: float) -> bool:
    try:
        upload = _upload_meta.decode(await store.load(f"uploads/{id}/meta.json", META_LIMIT))
    except NotFound:
        return False
    except (TooLarge, msgspec.DecodeError):
        upload = None
    if upload is not None and upload.expires > now:
        return False
    await _remove_upload(store, id)
    return True


async def _published(store: FileStore, id: str) -> bool:
    try:
        return await store.size(f"uploads/{id}/meta.json") > 0
    except NotFound:
        return False
