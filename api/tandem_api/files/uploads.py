"""Uploads over HTTP: raw bodies and forms, or in parts that resume after a lost connection.

Parts follow draft-ietf-httpbis-resumable-upload-12, without its interim responses (status 104).
"""

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import HTTPException, Path, Query, Request, Response
from pydantic import BaseModel, Field

from tandem_api.files.labels import MAX_LABEL_CHARS, disposition_name, label, media_type
from tandem_api.files.multipart import MAX_OVERHEAD_BYTES, FilePart
from tandem_api.http.body import JsonBytes, body_chunks, refuse_coding, refuse_length
from tandem_api.http.caching import NO_STORE
from tandem_api.http.parameters import headers_of
from tandem_api.openapi.describe import (
    BINARY,
    BODY_PROBLEMS,
    content,
    parameter,
    problems,
    raw_router,
)
from tandem_api.state import RequestState, StateDep
from tandem_shared.errors import Conflict, Malformed, NotFound, OtherUploadProtocol, TooLarge
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

IDLE_SECONDS = 60.0  # without a byte, after which an upload fails with 408
PARTIAL_TYPE = "application/partial-upload"
FORM_TYPE = "multipart/form-data"
# Items of RFC 9651, whose parameters are ignored.
_INTEGER = re.compile(r"[ \t]*([0-9]{1,15})[ \t]*(?:;.*)?", re.ASCII)
_BOOLEAN = re.compile(r"[ \t]*\?([01])[ \t]*(?:;.*)?", re.ASCII)
OLDEST_VERSION = 6  # of the draft's interoperability versions, in which parts have their own type
OUR_PROTOCOL = (
    "this service speaks the resumable uploads of the IETF"
    " (draft-ietf-httpbis-resumable-upload), from interoperability version 6 on"
)

OTHER_PROTOCOL = "The client speaks another protocol for uploads in parts, such as tus 1.0"

router = raw_router("files")

FileId = Annotated[str, Path(description="The upload's id")]


class _Upload(BaseModel):
    id: str
    name: str | None
    content_type: str
    expires_at: datetime


class Begun(_Upload):
    """An upload that is not complete; `Location` is where it continues."""


class Uploaded(_Upload):
    """An upload; payloads name it by a file reference, `{"file": "<id>"}`."""

    size: int = Field(description="bytes")
    sha256: str = Field(description="hexadecimal")


_COMPLETE_SCHEMA = {"enum": ["?0", "?1"]}
_BYTES_SCHEMA = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}
_PROGRESS_HEADERS: dict[str, Any] = {
    "Upload-Offset": {"description": "bytes that have arrived", "schema": _BYTES_SCHEMA},
    "Upload-Complete": {"schema": _COMPLETE_SCHEMA},
    "Upload-Limit": {
        "description": "`max-size` in bytes, `max-age` in seconds",
        "schema": {"type": "string"},
    },
}
_COMPLETE = parameter(
    "Upload-Complete",
    "header",
    "`?0`: more comes by PATCH; `?1`: this is the end",
    _COMPLETE_SCHEMA,
)
_OFFSET = parameter(
    "Upload-Offset", "header", "the byte of the file at which this body begins", _BYTES_SCHEMA
)
_LENGTH = parameter(
    "Upload-Length", "header", "bytes of the whole file, if that is known", _BYTES_SCHEMA
)


def progress_headers(upload: PartialUpload, offset: int, state: RequestState) -> dict[str, str]:
    """The headers with an upload's progress and limits."""
    length = {} if upload.length is None else {"Upload-Length": str(upload.length)}
    limits, left = _limits(state["settings"]), upload.expires - state["queue"].clock.now()
    limits["Upload-Limit"] += f", max-age={max(0, int(left))}"
    return {
        "Upload-Offset": str(offset),
        "Upload-Complete": "?0",
        **length,
        **limits,
        **NO_STORE,
    }


def _limits(settings: Settings) -> dict[str, str]:
    return {"Upload-Limit": f"max-size={settings.max_upload}"}


@contextmanager
def _showing_limits(settings: Settings) -> Iterator[None]:
    """Adds the limits to a 413, as the draft requires."""
    try:
        yield
    except TooLarge as error:
        raise HTTPException(413, str(error), headers=_limits(settings)) from None


def _complete(headers: Mapping[str, str]) -> bool | None:
    """Upload-Complete; None if it is missing or, as the draft says (4.1), has any other value."""
    match = _BOOLEAN.fullmatch(headers.get("upload-complete", ""))
    return None if match is None else match[1] == "1"


def refuse_other_protocols(headers: Mapping[str, str]) -> None:
    """Raises OtherUploadProtocol for tus and for versions of the draft that differ too much.

    Their first request would otherwise be stored as a whole file, mostly an empty one.
    """
    if "tus-resumable" in headers:
        raise OtherUploadProtocol(
            f"{OUR_PROTOCOL}, not tus 1.0: in tus-js-client and Uppy, set protocol: 'ietf-draft-05'"
        )
    version = _INTEGER.fullmatch(headers.get("upload-draft-interop-version", ""))
    incomplete = _BOOLEAN.fullmatch(headers.get("upload-incomplete", ""))
    if incomplete is not None and incomplete[1] == "1":
        raise OtherUploadProtocol(f"{OUR_PROTOCOL}, not this older one")
    if version is not None and int(version[1]) < OLDEST_VERSION and _complete(headers) is False:
        raise OtherUploadProtocol(f"{OUR_PROTOCOL}, not this older one")


def _number(headers: Mapping[str, str], name: str) -> int | None:
    """The Integer (RFC 9651) of a header; None without the header. Raises Malformed."""
    if name not in headers:
        return None
    match = _INTEGER.fullmatch(headers[name])
    if match is None:
        raise Malformed(f"{name.title()}: must be a number of bytes, of up to 15 digits")
    return int(match[1])


def _body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The request's body. Raises TooLarge at once for a longer Content-Length."""
    refuse_length(request, limit, "the upload")
    return body_chunks(request, IDLE_SECONDS)


async def _of_length(length: int, data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes. Raises Malformed at their end unless there were `length` of them."""
    size = 0
    async for chunk in data:
        size += len(chunk)
        yield chunk
    if size != length:
        raise Malformed(f"Upload-Length: is {length} bytes, but {size} arrived")


@router.post(
    "/v1/files",
    status_code=201,
    responses={
        201: {"model": Uploaded | Begun, "headers": _PROGRESS_HEADERS},
        **BODY_PROBLEMS,
        **problems(_412=OTHER_PROTOCOL),
    },
    openapi_extra={
        "parameters": [_COMPLETE, _LENGTH],
        "requestBody": {
            "required": True,
            "content": content(BINARY, OCTET_STREAM),
        },
    },
)
async def upload_file(
    request: Request,
    state: StateDep,
    name: Annotated[
        str | None, Query(max_length=4 * MAX_LABEL_CHARS, description="The file's name")
    ] = None,
) -> Response:
    """Upload a file.

    It is the raw body, of any type, or the one part with a filename of `multipart/form-data`.
    With `Upload-Complete: ?0` the body is the first part of the file, and the rest comes by PATCH.
    """
    with _showing_limits(state["settings"]):
        return await _upload(request, state, name)


async def _upload(request: Request, state: RequestState, name: str | None) -> Response:
    settings, headers = state["settings"], headers_of(request)
    refuse_other_protocols(headers)
    refuse_coding(request, "the file")
    complete, length = _complete(headers), _number(headers, "upload-length")
    content_type = headers.get("content-type")
    data: AsyncIterator[bytes]
    if (content_type or "").partition(";")[0].strip().lower() == FORM_TYPE:
        if complete is False:
            raise HTTPException(415, "send a part of a file as the raw body, not in a form")
        part = FilePart(
            _body(request, settings.max_upload + MAX_OVERHEAD_BYTES), content_type or ""
        )
        await part.open()
        data, given, content_type = part.chunks(), part.name, part.content_type
    else:
        data = _body(request, settings.max_upload)
        given = disposition_name(headers.get("content-disposition"))
    if length is not None and length > settings.max_upload:
        raise TooLarge("the upload", settings.max_upload)
    if length is not None and complete is not False:
        data = _of_length(length, data)
    shown = label(given if name is None else name)
    facts: dict[str, Any] = {
        "tenant": state["tenant"],
        "now": state["queue"].clock.now,
        "keep": settings.keep,
        "name": shown,
        "content_type": media_type(content_type, shown),
    }
    if complete is False:
        begun = await begin_upload(state["store"], length=length, **facts)
        offset = await append_parts(state["store"], begun, 0, data, limit=settings.max_upload)
        return _created(begun, progress_headers(begun, offset, state))
    upload = await save_upload(state["store"], data, limit=settings.max_upload, **facts)
    return _created(upload, {"Upload-Complete": "?1"} if complete else {})


def _created(upload: Upload | PartialUpload, headers: Mapping[str, str]) -> Response:
    location = {"Location": f"/v1/files/{upload.id}"}
    return JsonBytes(msgspec.json.encode(upload.view()), 201, {**location, **headers})


@router.options("/v1/files", status_code=204)
async def show_upload_limits(state: StateDep) -> Response:
    """Show the limits of uploads in parts."""
    headers = {"Allow": "OPTIONS, POST", "Accept-Patch": PARTIAL_TYPE}
    return Response(status_code=204, headers={**headers, **_limits(state["settings"])})


@router.patch(
    "/v1/files/{id}",
    status_code=201,
    responses={
        201: {
            "model": Uploaded,
            "description": "The upload is complete",
            "headers": _PROGRESS_HEADERS,
        },
        204: {
            "description": "The bytes are stored, and more may follow",
            "headers": _PROGRESS_HEADERS,
        },
        **BODY_PROBLEMS,
        **problems(
            404,
            _409="The upload continues elsewhere: Upload-Offset says where",
            _412=OTHER_PROTOCOL,
        ),
    },
    openapi_extra={
        "parameters": [{**_OFFSET, "required": True}, {**_COMPLETE, "required": True}, _LENGTH],
        "requestBody": {"required": True, "content": content(BINARY, PARTIAL_TYPE)},
    },
)
async def continue_upload(request: Request, state: StateDep, id: FileId) -> Response:
    """Continue an upload.

    HEAD shows in Upload-Offset where to continue. The last part has `Upload-Complete: ?1`.
    """
    headers = headers_of(request)
    refuse_other_protocols(headers)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != PARTIAL_TYPE:
        accept = {"Accept-Patch": PARTIAL_TYPE}
        raise HTTPException(415, f"send Content-Type: {PARTIAL_TYPE}", headers=accept)
    refuse_coding(request, "the part of a file")
    complete, offset = _complete(headers), _number(headers, "upload-offset")
    if complete is None:
        raise Malformed("Upload-Complete: must be ?1 with the last part and ?0 with any other")
    if offset is None:
        raise Malformed("Upload-Offset: must be the byte of the file at which the part begins")
    with _showing_limits(state["settings"]):
        return await _append(request, state, id, offset, complete=complete)


async def _append(
    request: Request, state: RequestState, id: str, offset: int, *, complete: bool
) -> Response:
    store, settings, tenant = state["store"], state["settings"], state["tenant"]
    now = state["queue"].clock.now
    try:
        upload = await find_partial_upload(store, id, tenant=tenant, now=now())
    except NotFound:
        return await _repeat(
            request, await find_upload(store, id, tenant=tenant, now=now()), offset
        )
    length = _number(headers_of(request), "upload-length")
    if length is not None and upload.length is not None and length != upload.length:
        raise Malformed(f"Upload-Length: is {upload.length} bytes for this upload, not {length}")
    refuse_length(request, settings.max_upload - offset, "what remains of the upload")
    data = body_chunks(request, IDLE_SECONDS)
    offset = await append_parts(store, upload, offset, data, limit=settings.max_upload)
    if not complete:
        return Response(status_code=204, headers=progress_headers(upload, offset, state))
    done = await state["joiner"].finish(store, upload, offset, now=now, keep=settings.keep)
    return _created(done, {"Upload-Complete": "?1", "Upload-Offset": str(done.size)})


async def _repeat(request: Request, upload: Upload, offset: int) -> Response:
    """Shows a complete upload again, to a client that lost the response to its last part."""
    async for _ in body_chunks(request, IDLE_SECONDS):
        raise Conflict("the upload is complete and cannot be extended")
    if offset != upload.size:
        raise Conflict(f"the upload is complete and has {upload.size} bytes")
    return _created(upload, {"Upload-Complete": "?1", "Upload-Offset": str(upload.size)})
