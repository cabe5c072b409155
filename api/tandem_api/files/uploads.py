"""Files over HTTP, in: raw bodies and forms at once, or in parts that go on where a connection broke.

The parts follow draft-ietf-httpbis-resumable-upload-12, without its interim responses (status 104).
"""

import asyncio
import mimetypes
import re
import time
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Annotated

import msgspec
from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.datastructures import Headers

from tandem_api.auth import Tenant
from tandem_api.files.multipart import OVERHEAD, FilePart
from tandem_api.http.body import refuse_length
from tandem_api.http.problems import of_error
from tandem_shared.errors import Conflict, Malformed, NotFound, TooLarge
from tandem_shared.files.names import OCTET_STREAM
from tandem_shared.files.resumable import append_parts
from tandem_shared.files.uploads import (
    PartialUpload,
    Upload,
    begin_upload,
    find_partial_upload,
    find_upload,
    save_upload,
)
from tandem_shared.settings import Settings

IDLE = 60.0  # seconds without a byte after which an upload is given up
NAME_LIMIT = 255  # characters of an upload's name
PARTIAL = "application/partial-upload"
_MEDIA_TYPE = re.compile(
    r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}( *;[\x20-\x7e]{0,200})?", re.ASCII
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_INTEGER = re.compile(r"[ \t]*([0-9]{1,15})[ \t]*", re.ASCII)

router = APIRouter(tags=["files"])


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


async def _held_to(length: int, data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes. Raises Malformed at their end if they are not as many as were announced."""
    size = 0
    async for chunk in data:
        size += len(chunk)
        yield chunk
    if size != length:
        raise Malformed(f"Upload-Length: {length} bytes were announced, and {size} came")


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
        return plain.encode(
            "latin-1"
        ).decode()  # many send plain UTF-8, which HTTP reads as Latin-1
    except ValueError:
        return plain


def _media_type(given: str | None, name: str | None) -> str:
    if (
        given is not None
        and _MEDIA_TYPE.fullmatch(given)
        and not given.startswith("application/x-www-form-urlencoded")
    ):
        return given
    # curl --data-binary says form-urlencoded unless told otherwise, which no file is
    return mimetypes.guess_type(name or "")[0] or OCTET_STREAM


class Uploaded(BaseModel):
    """An upload; payloads name it by a file reference, `{"file": "<id>"}`."""

    id: str
    name: str | None
    size: int = Field(description="bytes")
    sha256: str = Field(description="hexadecimal")
    content_type: str
    expires_at: datetime


class Begun(BaseModel):
    """An upload that is not complete; `Location` is where it goes on."""

    id: str
    name: str | None
    content_type: str
    expires_at: datetime


BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": BINARY["schema"]}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {OCTET_STREAM: BINARY, "multipart/form-data": {"schema": _FORM}},
    }
}


# ------------------------------------------------------------------------------------------ headers


def _complete(headers: Headers) -> bool | None:
    """Upload-Complete; None without one, or for what is none, as the draft says (4.1)."""
    return {"?1": True, "?0": False}.get(headers.get("upload-complete", "").strip())


def _number(headers: Headers, name: str) -> int | None:
    match = _INTEGER.fullmatch(headers.get(name, ""))
    return int(match[1]) if match else None


def _limits(settings: Settings, upload: PartialUpload | None = None) -> dict[str, str]:
    age = "" if upload is None else f", max-age={max(0, int(upload.expires - time.time()))}"
    return {"Upload-Limit": f"max-size={settings.max_upload}{age}"}


def state_of(upload: PartialUpload, offset: int, settings: Settings) -> dict[str, str]:
    """The headers that tell how far an upload came and how it may go on."""
    length = {} if upload.length is None else {"Upload-Length": str(upload.length)}
    return {
        "Upload-Offset": str(offset),
        "Upload-Complete": "?0",
        **length,
        **_limits(settings, upload),
        "Cache-Control": "no-store",
    }


def _refuse_coding(headers: Headers) -> None:
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(
            415, "files are stored as they come: send this one without a Content-Encoding"
        )


def _created(upload: Upload, more: Mapping[str, str]) -> Response:
    body = msgspec.json.encode(upload.view())
    return Response(
        body, 201, {"Location": f"/v1/files/{upload.id}", **more}, media_type="application/json"
    )


def _too_large(request: Request, error: TooLarge) -> Response:
    """What the draft wants beside a 413: the limits."""
    problem = of_error(error)
    return msgspec.structs.replace(problem, headers=_limits(request.state.settings)).response(
        request.scope
    )


# --------------------------------------------------------------------------------------- operations

_LIMIT = {
    "Upload-Limit": {
        "description": "`max-size` in bytes, `max-age` in seconds",
        "schema": {"type": "string"},
    }
}
_PLACE = {
    "Upload-Offset": {"description": "bytes that came", "schema": {"type": "integer"}},
    "Upload-Complete": {"description": "`?0` or `?1`", "schema": {"type": "string"}},
    **_LIMIT,
}
_COMPLETE = {
    "name": "Upload-Complete",
    "in": "header",
    "description": "`?0`: more comes by PATCH; `?1`: this is the end",
    "schema": {"enum": ["?0", "?1"]},
}
_OFFSET = {
    "name": "Upload-Offset",
    "in": "header",
    "required": True,
    "description": "the byte of the file where this body begins",
    "schema": {"type": "integer", "minimum": 0},
}
_LENGTH = {
    "name": "Upload-Length",
    "in": "header",
    "description": "bytes that the whole file will have, if that is known",
    "schema": {"type": "integer", "minimum": 0},
}


@router.post(
    "/v1/files",
    operation_id="uploadFile",
    status_code=201,
    response_class=Response,
    responses={201: {"model": Uploaded | Begun, "headers": _PLACE}},
    openapi_extra={**_BODY, "parameters": [_COMPLETE, _LENGTH]},
)
async def upload_file(
    request: Request,
    tenant: Tenant,
    name: Annotated[
        str | None, Query(max_length=4 * NAME_LIMIT, description="what the file is called")
    ] = None,
) -> Response:
    """Upload a file: the raw body, or the one part with a filename of a multipart form.

    With `Upload-Complete: ?0` the body is its first part, and the others come by PATCH.
    """
    try:
        return await _upload(request, tenant, name)
    except TooLarge as error:
        return _too_large(request, error)


async def _upload(request: Request, tenant: str, name: str | None) -> Response:
    settings: Settings = request.state.settings
    _refuse_coding(request.headers)
    complete, length = _complete(request.headers), _number(request.headers, "upload-length")
    content_type = request.headers.get("content-type")
    data: AsyncIterator[bytes]
    if (content_type or "").partition(";")[0].strip().lower() == "multipart/form-data":
        if complete is False:
            raise HTTPException(415, "a form comes at once: send the parts of a file as they are")
        part = FilePart(_body(request, settings.max_upload + OVERHEAD), content_type or "")
        await part.open()
        data, given, content_type = part.chunks(), part.name, part.content_type
    else:
        if complete is False and length is not None and length > settings.max_upload:
            raise TooLarge("the upload", settings.max_upload)
        data, given = (
            _body(request, settings.max_upload),
            _disposed(request.headers.get("content-disposition")),
        )
        if complete and length is not None:
            data = _held_to(length, data)
    label = _label(given if name is None else name)
    store, media_type = request.state.store, _media_type(content_type, label)
    if complete is False:
        begun = await begin_upload(
            store,
            tenant=tenant,
            keep=settings.keep,
            name=label,
            content_type=media_type,
            length=length,
        )
        offset = await append_parts(store, begun, 0, data, limit=settings.max_upload)
        headers = {"Location": f"/v1/files/{begun.id}", **state_of(begun, offset, settings)}
        return Response(
            msgspec.json.encode(begun.view()), 201, headers, media_type="application/json"
        )
    upload = await save_upload(
        store,
        data,
        tenant=tenant,
        keep=settings.keep,
        name=label,
        content_type=media_type,
        limit=settings.max_upload,
    )
    return _created(upload, {"Upload-Complete": "?1"} if complete else {})


@router.options(
    "/v1/files", operation_id="showUploadLimits", status_code=204, response_class=Response
)
async def upload_options(request: Request) -> Response:
    """What uploads in parts are held to."""
    headers = {"Allow": "OPTIONS, POST", "Accept-Patch": PARTIAL, **_limits(request.state.settings)}
    return Response(status_code=204, headers=headers)


@router.patch(
    "/v1/files/{id}",
    operation_id="continueUpload",
    status_code=201,
    response_class=Response,
    responses={
        201: {"model": Uploaded, "description": "The upload is complete", "headers": _PLACE},
        204: {"description": "The bytes are kept, and more may come", "headers": _PLACE},
    },
    openapi_extra={
        "parameters": [_OFFSET, {**_COMPLETE, "required": True}, _LENGTH],
        "requestBody": {"required": True, "content": {PARTIAL: BINARY}},
    },
)
async def append_to_upload(request: Request, tenant: Tenant, id: str) -> Response:
    """Go on with an upload where it is, which HEAD tells in Upload-Offset. The last part has `Upload-Complete: ?1`."""
    headers = request.headers
    if headers.get("content-type", "").partition(";")[0].strip().lower() != PARTIAL:
        raise HTTPException(415, f"send Content-Type: {PARTIAL}", headers={"Accept-Patch": PARTIAL})
    _refuse_coding(headers)
    complete, offset = _complete(headers), _number(headers, "upload-offset")
    if complete is None:
        raise Malformed("Upload-Complete: must be ?1 with the last part and ?0 with any other")
    if offset is None:
        raise Malformed("Upload-Offset: must be the byte of the file where the part begins")
    try:
        return await _append(request, tenant, id, offset, complete=complete)
    except TooLarge as error:
        return _too_large(request, error)


async def _append(
    request: Request, tenant: str, id: str, offset: int, *, complete: bool
) -> Response:
    store, settings = request.state.store, request.state.settings
    try:
        upload = await find_partial_upload(store, id, tenant=tenant)
    except NotFound:
        return await _again(request, await find_upload(store, id, tenant=tenant), offset)
    length = _number(request.headers, "upload-length")
    if length is not None and upload.length is not None and length != upload.length:
        raise Malformed(f"Upload-Length: {upload.length} bytes were announced, not {length}")
    refuse_length(request, settings.max_upload - offset, "what remains of the upload")
    offset = await append_parts(
        store, upload, offset, _body(request, settings.max_upload), limit=settings.max_upload
    )
    if not complete:
        return Response(status_code=204, headers=state_of(upload, offset, settings))
    done = await request.state.joins.finish(store, upload, offset, keep=settings.keep)
    return _created(done, {"Upload-Complete": "?1", "Upload-Offset": str(done.size)})


async def _again(request: Request, upload: Upload, offset: int) -> Response:
    """For a complete upload: its view once more, for a client whose last answer was lost."""
    async for _ in _body(request, request.state.settings.max_upload):
        raise Conflict("the upload is complete: nothing can be added to it")
    if offset != upload.size:
        raise Conflict(f"the upload is complete and has {upload.size} bytes")
    return _created(upload, {"Upload-Complete": "?1", "Upload-Offset": str(upload.size)})
