"""Files over HTTP: uploads in, uploads and jobs' files out, by ranges, streamed both ways in bounded memory."""

import asyncio
import base64
import mimetypes
import re
from collections.abc import AsyncIterator
from datetime import datetime
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from api.auth import Tenant
from api.bodies import refuse_length
from api.headers import matches
from api.multipart import OVERHEAD, FilePart
from shared.errors import NotFound
from shared.files import FileStore, job_path
from shared.uploads import delete_upload, find_upload, save_upload

IDLE = 60.0  # seconds without a byte after which an upload is given up
NAME_LIMIT = 255  # characters of an upload's name
OCTETS = "application/octet-stream"
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}( *;[\x20-\x7e]{0,200})?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_TAG = re.compile(r'(?:W/)?"[^"]*"')
_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.ASCII | re.IGNORECASE)

router = APIRouter(tags=["files"])


# ------------------------------------------------------------------------------------------------------------------ in


async def _body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The request's body. Raises TooLarge before it reads any if the client says that it sends more than `limit`."""
    refuse_length(request, limit, "the upload")
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(IDLE):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise HTTPException(408, f"no byte came for {IDLE:g} s") from None
        if chunk is None:
            return
        if chunk:
            yield chunk


def _label(name: str | None) -> str | None:
    """A file name as clients send it, as a label: its last part, on one line."""
    last = _CONTROL.sub("", re.split(r"[/\\]", name or "")[-1]).strip()
    return last[:NAME_LIMIT] or None


def _disposed(header: str | None) -> str | None:
    """The file name of a Content-Disposition (RFC 6266), `filename*` before `filename`."""
    message = Message()
    message["content-disposition"] = header or "attachment"
    plain = full = None
    for key, value in message.get_params([], header="content-disposition"):
        if key.lower() == "filename":
            if isinstance(value, tuple):
                full = collapse_rfc2231_value(value)
            else:
                plain = value
    if full is not None or plain is None:
        return full
    try:
        return plain.encode("latin-1").decode()  # many send plain UTF-8, which HTTP reads as Latin-1
    except ValueError:
        return plain


def _media_type(given: str | None, name: str | None) -> str:
    if given is not None and _MEDIA_TYPE.fullmatch(given) and not given.startswith("application/x-www-form-urlencoded"):
        return given
    # curl --data-binary says form-urlencoded unless told otherwise, which no file is
    return mimetypes.guess_type(name or "")[0] or OCTETS


class Uploaded(BaseModel):
    """An upload; payloads name it by a file reference, `{"file": "<id>"}`."""

    id: str
    name: str | None
    size: int = Field(description="bytes")
    sha256: str = Field(description="hexadecimal")
    content_type: str
    expires_at: datetime


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": _BINARY["schema"]}}
_BODY = {"requestBody": {"required": True, "content": {OCTETS: _BINARY, "multipart/form-data": {"schema": _FORM}}}}


@router.post(
    "/v1/files", status_code=201, response_class=Response, responses={201: {"model": Uploaded}}, openapi_extra=_BODY
)
async def upload_file(
    request: Request,
    tenant: Tenant,
    name: Annotated[str | None, Query(max_length=4 * NAME_LIMIT, description="what the file is called")] = None,
) -> Response:
    """Upload a file: the raw body, or the one part with a filename of a multipart form."""
    settings = request.state.settings
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(415, "files are stored as they come: send this one without a Content-Encoding")
    content_type = request.headers.get("content-type")
    data: AsyncIterator[bytes]
    if (content_type or "").partition(";")[0].strip().lower() == "multipart/form-data":
        part = FilePart(_body(request, settings.max_upload + OVERHEAD), content_type or "")
        await part.open()
        data, given, content_type = part.chunks(), part.name, part.content_type
    else:
        data, given = _body(request, settings.max_upload), _disposed(request.headers.get("content-disposition"))
    label = _label(given if name is None else name)
    upload = await save_upload(
        request.state.store,
        data,
        tenant=tenant,
        keep=settings.keep,
        name=label,
        content_type=_media_type(content_type, label),
        limit=settings.max_upload,
    )
    body = msgspec.json.encode(upload.view())
    return Response(body, 201, {"Location": f"/v1/files/{upload.id}"}, media_type="application/json")


# ----------------------------------------------------------------------------------------------------------------- out


class View(msgspec.Struct):
    """One entry of a record's `files`."""

    name: str
    size: int
    sha256: str
    content_type: str = OCTETS


_views = msgspec.json.Decoder(list[View])


class Served(NamedTuple):
    """A stored file as it is served."""

    path: str  # in the store
    name: str
    size: int  # bytes
    sha256: str  # hexadecimal
    content_type: str

    @property
    def headers(self) -> dict[str, str]:
        # Whatever the content claims to be, no browser shows or runs it as a page of this service.
        digest = base64.b64encode(bytes.fromhex(self.sha256)).decode()
        return {
            "ETag": f'"{self.sha256}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",
            "Content-Disposition": _attachment(self.name),
            "Content-Security-Policy": "sandbox",
            "Repr-Digest": f"sha-256=:{digest}:",
            "X-Content-Type-Options": "nosniff",
        }


def _attachment(name: str) -> str:
    """A Content-Disposition (RFC 6266): the name's last part, plain and, where that loses some, in full (RFC 8187)."""
    last = name.rpartition("/")[2]
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", last)
    return f'attachment; filename="{plain}"' + (f"; filename*=UTF-8''{quote(last, safe='')}" if plain != last else "")


def _span(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """The range [start, end) that a GET asks for, None for the whole. Raises HTTPException 416 for one outside.

    Several ranges, and anything that is no range, are answered by the whole, as RFC 9110 (14.2) allows.
    """
    match = _RANGE.fullmatch(request.headers.get("range", "")) if request.method == "GET" else None
    condition = request.headers.get("if-range")
    if match is None or (condition is not None and condition.strip() != etag):
        return None
    first, last = match.groups()
    if (not first and not last) or (first and last and int(first) > int(last)):
        return None
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    else:
        start, end = max(size - int(last), 0), size
    if start >= end:
        raise HTTPException(416, f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return start, end


async def _serve(request: Request, file: Served) -> Response:
    headers = file.headers
    etag = headers["ETag"]
    wanted = request.headers.get("if-match")
    if wanted is not None and wanted.strip() != "*" and etag not in _TAG.findall(wanted):
        raise HTTPException(412, "the file is not the one that If-Match names")
    if matches(request.headers, etag):
        return Response(status_code=304, headers=headers)
    span = _span(request, etag, file.size)
    start, end = span or (0, file.size)
    headers |= {"Content-Length": str(end - start), "Content-Type": file.content_type}
    if request.method == "HEAD":
        return Response(headers=headers)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    store: FileStore = request.state.store
    pieces = store.read(file.path, start, end)
    # The first piece before the status: what is wrong with the store is an answer then, and not a cut body.
    first = await anext(pieces, b"")
    return StreamingResponse(_after(first, pieces), 206 if span else 200, headers)


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {OCTETS: _BINARY}},
    206: {"description": "The range that was asked for", "content": {OCTETS: _BINARY}},
    304: {"description": "The file is the one that If-None-Match names"},
}
_HEADERS: dict[int | str, dict[str, Any]] = {200: {"description": "The headers of a GET"}, 304: _CONTENT[304]}


@router.head("/v1/files/{id}", response_class=Response, responses=_HEADERS, summary="Look at an upload")
@router.get("/v1/files/{id}", response_class=Response, responses=_CONTENT)
async def download_file(request: Request, tenant: Tenant, id: str) -> Response:
    """Download an upload, whole or by a range."""
    upload = await find_upload(request.state.store, id, tenant=tenant)
    return await _serve(
        request, Served(upload.path, upload.name or id, upload.size, upload.sha256, upload.content_type)
    )


@router.delete("/v1/files/{id}", status_code=204, response_class=Response)
async def delete_file(request: Request, tenant: Tenant, id: str) -> Response:
    """Remove an upload. Jobs that still name it will not find it."""
    await delete_upload(request.state.store, id, tenant=tenant)
    return Response(status_code=204)


@router.head(
    "/v1/jobs/{id}/files/{name:path}", response_class=Response, responses=_HEADERS, summary="Look at a job's file"
)
@router.get("/v1/jobs/{id}/files/{name:path}", response_class=Response, responses=_CONTENT)
async def download_job_file(request: Request, tenant: Tenant, id: str, name: str) -> Response:
    """Download a file that the job produced, whole or by a range."""
    record = await request.state.queue.get(id, tenant=tenant)
    if record is None:
        raise NotFound("job", id)
    view = next((one for one in _views.decode(record.files or b"[]") if one.name == name), None)
    if view is None:
        raise NotFound("file", f"{id}/{name}")
    path = job_path(record.id, record.attempts[-1].began, name)
    try:
        return await _serve(request, Served(path, name, view.size, view.sha256, view.content_type))
    except NotFound:
        raise NotFound("file", f"{id}/{name}") from None
