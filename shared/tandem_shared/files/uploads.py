"""Uploads: files that clients send before they submit a job, at once or in parts.

uploads/<id>/begun.json        an upload in parts that is not complete, see resumable.py
uploads/<id>/parts/<offset>    its parts
uploads/<id>/data              the bytes of a complete upload
uploads/<id>/meta.json         publishes a complete upload: written last, deleted first
"""

import re
import secrets
from collections.abc import AsyncIterable
from contextlib import suppress
from typing import Any, ClassVar

import msgspec

from tandem_shared.errors import NotFound, TooLarge
from tandem_shared.files.names import OCTET_STREAM
from tandem_shared.files.store import FileStore, WriteResult
from tandem_shared.jobs.ids import new_id
from tandem_shared.times import Now, rfc3339

MAX_META_BYTES = 64 << 10  # of a meta.json or begun.json
_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
UPLOAD_ID = re.compile(f"[{_LETTERS}]{{30}}")


class _Meta(msgspec.Struct, frozen=True, kw_only=True):
    shown: ClassVar[tuple[str, ...]]  # the fields that clients see, besides `expires_at`

    id: str
    tenant: str
    name: str | None  # the client's name for it: a label, never part of a path
    content_type: str
    expires: float  # seconds since the epoch

    @property
    def folder(self) -> str:
        """The prefix of all that belongs to the upload."""
        return upload_folder(self.id)

    def view(self) -> dict[str, Any]:
        """The upload as clients see it."""
        shown = {field: getattr(self, field) for field in self.shown}
        return {**shown, "expires_at": rfc3339(self.expires)}


class Upload(_Meta, frozen=True, kw_only=True):
    """A complete upload, as its meta.json holds it."""

    shown = ("id", "name", "size", "sha256", "content_type")

    size: int  # bytes
    sha256: str  # hexadecimal

    @property
    def path(self) -> str:
        """The path of its bytes."""
        return f"{self.folder}/data"


class PartialUpload(_Meta, frozen=True, kw_only=True):
    """An upload that is not complete, as its begun.json holds it; its bytes cannot be read yet."""

    shown = ("id", "name", "content_type")

    length: int | None = None  # total bytes, if the client announced them


_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "meta.json": msgspec.json.Decoder(Upload),
    "begun.json": msgspec.json.Decoder(PartialUpload),
}


def new_upload_id(now: float) -> str:
    """An unguessable id: 10 letters of `now` in ms and 20 of randomness (100 bits)."""
    return new_id(now)[:10] + "".join(secrets.choice(_LETTERS) for _ in range(20))


def upload_folder(id: str) -> str:
    """The prefix of all that belongs to an upload. Raises NotFound for a malformed id."""
    if UPLOAD_ID.fullmatch(id) is None:
        raise NotFound("file", id)
    return f"uploads/{id}"


def _new(tenant: str, now: float, keep: float, **given: Any) -> PartialUpload:
    return PartialUpload(id=new_upload_id(now), tenant=tenant, expires=now + keep, **given)


async def save_upload(
    store: FileStore,
    data: bytes | AsyncIterable[bytes],
    *,
    tenant: str,
    now: Now,
    keep: float,
    name: str | None = None,
    content_type: str = OCTET_STREAM,
    limit: int | None = None,
) -> Upload:
    """Store a client's file and keep it for `keep` seconds. `now` is Redis' clock everywhere here.

    Raises TooLarge above `limit` bytes, and whatever `data` raises.
    """
    upload = _new(tenant, now(), keep, name=name, content_type=content_type)
    written = await write_upload(store, upload, data, limit)
    return await publish_upload(store, upload, written, now() + keep)


async def begin_upload(
    store: FileStore,
    *,
    tenant: str,
    now: Now,
    keep: float,
    name: str | None = None,
    content_type: str = OCTET_STREAM,
    length: int | None = None,
) -> PartialUpload:
    """Begin an upload in parts, see resumable.py; it must be complete within `keep` seconds."""
    upload = _new(tenant, now(), keep, name=name, content_type=content_type, length=length)
    await store.write(f"{upload.folder}/begun.json", msgspec.json.encode(upload))
    return upload


async def write_upload(
    store: FileStore,
    upload: PartialUpload,
    data: bytes | AsyncIterable[bytes],
    limit: int | None = None,
) -> WriteResult:
    """Store all bytes of an upload, which `publish_upload` then makes known."""
    path, name = f"{upload.folder}/data", upload.name or upload.id
    return await store.write(path, data, limit=limit, name=name, content_type=upload.content_type)


async def publish_upload(
    store: FileStore, upload: PartialUpload, written: WriteResult, expires: float
) -> Upload:
    """Make an upload whose bytes are stored known to its tenant, until it expires."""
    published = Upload(
        id=upload.id,
        tenant=upload.tenant,
        name=upload.name,
        content_type=upload.content_type,
        size=written.size,
        sha256=written.sha256,
        expires=expires,
    )
    await store.write(f"{upload.folder}/meta.json", msgspec.json.encode(published))
    return published


async def find_upload(store: FileStore, id: str, *, tenant: str, now: float) -> Upload:
    """The tenant's complete upload. Raises NotFound, also for an expired one."""
    upload: Upload = await _find(store, id, tenant, now, "meta.json")
    return upload


async def find_partial_upload(
    store: FileStore, id: str, *, tenant: str, now: float
) -> PartialUpload:
    """The tenant's upload that is not complete. Raises NotFound as `find_upload` does."""
    upload: PartialUpload = await _find(store, id, tenant, now, "begun.json")
    return upload


async def _find(store: FileStore, id: str, tenant: str, now: float, *files: str) -> Any:
    for file in files:
        with suppress(NotFound):
            upload = await load_upload(store, id, file)
            if upload is not None and upload.tenant == tenant and upload.expires > now:
                return upload
    raise NotFound("file", id)


async def load_upload(store: FileStore, id: str, file: str) -> Any:
    """The upload in its meta.json or begun.json, None if that is broken. Raises NotFound."""
    try:
        data = await store.load(f"{upload_folder(id)}/{file}", MAX_META_BYTES)
        return _DECODERS[file].decode(data)
    except (TooLarge, msgspec.DecodeError):
        return None


async def delete_upload(store: FileStore, id: str, *, tenant: str, now: float) -> None:
    """Remove the tenant's upload, complete or not. Raises NotFound."""
    await _find(store, id, tenant, now, *_DECODERS)
    await remove_upload(store, id)


async def remove_upload(store: FileStore, id: str) -> None:
    """Remove all that belongs to an upload."""
    # Delete the metadata first: an upload must never be found without its bytes.
    for file in ("meta.json", "begun.json", "data"):
        await store.delete(f"{upload_folder(id)}/{file}")
    await store.delete_tree(f"{upload_folder(id)}/parts")


async def belongs_to_upload(store: FileStore, id: str, part: str) -> bool:
    """Whether an upload needs these bytes: `data` belongs to any, a part to an incomplete one."""
    if await store.size(f"uploads/{id}/meta.json") is not None:
        return part == "data"
    return await store.size(f"uploads/{id}/begun.json") is not None
