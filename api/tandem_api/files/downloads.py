"""Files over HTTP, out: uploads and what jobs produced, whole or by ranges, streamed in bounded memory."""

import base64
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import StreamingResponse

from tandem_api.auth import Tenant
from tandem_api.files.uploads import BINARY, state_of
from tandem_api.http.headers import matches
from tandem_shared.errors import Conflict, NotFound
from tandem_shared.files.names import OCTET_STREAM, content_disposition, job_path
from tandem_shared.files.resumable import upload_progress
from tandem_shared.files.store import FileStore
from tandem_shared.files.uploads import (
    PartialUpload,
    delete_upload,
    find_partial_upload,
    find_upload,
)

_TAG = re.compile(r'(?:W/)?"[^"]*"')
_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.ASCII | re.IGNORECASE)

router = APIRouter(tags=["files"])


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
            "Content-Disposition": content_disposition(self.name),
            "Content-Security-Policy": "sandbox",
            "Repr-Digest": f"sha-256=:{digest}:",
            "X-Content-Type-Options": "nosniff",
        }


def _span(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """The range [start, end) that a GET asks for, None for the whole. Raises HTTPException 416 for one outside.

    Several ranges, and anything that is no range, are answered by the whole, as RFC 9110 (14.2)
    allows.
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
        raise HTTPException(
            416, f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, end


async def _serve(request: Request, file: Served, more: Mapping[str, str] = {}) -> Response:
    headers = {**file.headers, **more}
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
    signed = None
    if (
        wanted is None and request.state.settings.store_presign
    ):  # the store's own tag is another than If-Match names
        signed = await store.presign(file.path, request.state.settings.store_presign)
    if signed is not None:
        return Response(
            status_code=307, headers={"Location": signed, "Cache-Control": "private, no-store"}
        )
    pieces = store.read(file.path, start, end)
    # The first piece before the status: what is wrong with the store is an answer then, and not a
    # cut body.
    first = await anext(pieces, b"")
    return StreamingResponse(_after(first, pieces), 206 if span else 200, headers)


async def _after(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(rest):  # a reader that is gone leaves no open file
        yield first
        async for piece in rest:
            yield piece


_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {OCTET_STREAM: BINARY}},
    206: {"description": "The range that was asked for", "content": {OCTET_STREAM: BINARY}},
    304: {"description": "The file is the one that If-None-Match names"},
    307: {
        "description": "The store itself has it, where Location says, for a while (`TANDEM_STORE_PRESIGN`)"
    },
}
_HEADERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The headers of a GET"},
    304: _CONTENT[304],
}
_STATE = {
    **_HEADERS,
    204: {"description": "The upload is not complete: how far it came is in Upload-Offset"},
}


@router.head(
    "/v1/files/{id}",
    operation_id="lookAtFile",
    response_class=Response,
    responses=_STATE,
    summary="Look at an upload",
)
@router.get(
    "/v1/files/{id}", operation_id="downloadFile", response_class=Response, responses=_CONTENT
)
async def download_file(request: Request, tenant: Tenant, id: str) -> Response:
    """Download an upload, whole or by a range."""
    store: FileStore = request.state.store
    try:
        upload = await find_upload(store, id, tenant=tenant)
    except NotFound:
        return await _unfinished(request, await find_partial_upload(store, id, tenant=tenant))
    file = Served(upload.path, upload.name or id, upload.size, upload.sha256, upload.content_type)
    return await _serve(request, file, {"Upload-Complete": "?1", "Upload-Offset": str(upload.size)})


async def _unfinished(request: Request, upload: PartialUpload) -> Response:
    have = await upload_progress(request.state.store, upload.id)
    if request.method == "HEAD":
        return Response(
            status_code=204, headers=state_of(upload, have.offset, request.state.settings)
        )
    raise Conflict(f"the upload is not complete: it goes on at byte {have.offset}")


@router.delete(
    "/v1/files/{id}", operation_id="deleteFile", status_code=204, response_class=Response
)
async def delete_file(request: Request, tenant: Tenant, id: str) -> Response:
    """Remove an upload, complete or not. Jobs that still name it will not find it."""
    await delete_upload(request.state.store, id, tenant=tenant)
    return Response(status_code=204)


@router.head(
    "/v1/jobs/{id}/files/{name:path}",
    operation_id="lookAtJobFile",
    response_class=Response,
    responses=_HEADERS,
    summary="Look at a job's file",
)
@router.get(
    "/v1/jobs/{id}/files/{name:path}",
    operation_id="downloadJobFile",
    response_class=Response,
    responses=_CONTENT,
)
async def download_job_file(request: Request, tenant: Tenant, id: str, name: str) -> Response:
    """Download a file that the job produced, whole or by a range."""
    record = await request.state.queue.get(id, tenant=tenant)
    if record is None:
        raise NotFound("job", id)
    view = next((one for one in record.produced_files() if one.name == name), None)
    if view is None:
        raise NotFound("file", f"{id}/{name}")
    path = job_path(record.id, record.attempts[-1].began, name)
    try:
        return await _serve(request, Served(path, name, view.size, view.sha256, view.content_type))
    except NotFound:
        raise NotFound("file", f"{id}/{name}") from None
