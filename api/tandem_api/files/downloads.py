"""Downloads over HTTP: uploads and files of jobs, whole or by ranges, in bounded memory."""

import base64
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Annotated, NamedTuple

from fastapi import HTTPException, Path, Request, Response
from fastapi.responses import StreamingResponse

from tandem_api.files.uploads import FileId, progress_headers, refuse_other_protocols
from tandem_api.http.caching import NO_CACHE
from tandem_api.http.parameters import headers_of, matches, whole_number
from tandem_api.jobs.job import JobId
from tandem_api.jobs.lookup import unknown_job
from tandem_api.openapi.describe import (
    BINARY,
    Responses,
    content,
    problems,
    raw_router,
    response,
)
from tandem_api.state import RequestState, StateDep
from tandem_shared.errors import Conflict, NotFound
from tandem_shared.files.headers import media_type
from tandem_shared.files.names import OCTET_STREAM, content_disposition, job_path
from tandem_shared.files.resumable import upload_progress
from tandem_shared.files.uploads import (
    PartialUpload,
    delete_upload,
    find_partial_upload,
    find_upload,
)

SMALL_BYTES = 64 << 10  # of a piece
_TAG = re.compile(r'(?:W/)?"[^"]*"')
_RANGE = re.compile(r"bytes=[ \t,]*+([0-9]*+)-([0-9]*+)[ \t,]*", re.ASCII | re.IGNORECASE)

router = raw_router("files")

FileName = Annotated[str, Path(description="The file's name")]
_FILE = content(BINARY, OCTET_STREAM, "*/*")  # the type that the upload or the task gave
_NOT_MODIFIED = response("The file still has an ETag of If-None-Match")
_GET: Responses = {
    200: response("The file", _FILE),
    206: response("The requested range", _FILE),
    304: _NOT_MODIFIED,
    307: response(
        "The store serves the file for a while (`TANDEM_STORE_PRESIGN`)", Location="where"
    ),
    **problems(404, 412, 416),
}
_HEAD: Responses = {
    200: response("The headers of a GET"),
    304: _NOT_MODIFIED,
    **problems(404, 412),
}


class StoredFile(NamedTuple):
    """A file of the store as clients see it."""

    path: str  # in the store
    name: str
    size: int  # bytes
    sha256: str  # hexadecimal
    content_type: str

    @property
    def headers(self) -> dict[str, str]:
        # No browser may show or run a file as a page of this service, whatever type it claims.
        digest = base64.b64encode(bytes.fromhex(self.sha256)).decode()
        return {
            "ETag": f'"{self.sha256}"',
            "Accept-Ranges": "bytes",
            **NO_CACHE,
            "Content-Disposition": content_disposition(self.name),
            "Content-Security-Policy": "sandbox",
            "Repr-Digest": f"sha-256=:{digest}:",
        }


def _span(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """The range [start, end) of a GET; None for the whole file. Raises HTTPException 416.

    Several ranges, or an invalid header, get the whole file, as RFC 9110 (14.2) allows.
    """
    headers = headers_of(request)
    match = _RANGE.fullmatch(headers.get("range", "")) if request.method == "GET" else None
    if match is None or headers.get("if-range", etag).strip() != etag:
        return None
    first, last = (whole_number(digits) if digits else None for digits in match.groups())
    if first is not None and (last is None or first <= last):
        start, end = first, size if last is None else min(last + 1, size)
    elif first is None and last is not None:
        start, end = max(size - last, 0), size
    else:
        return None
    if start >= end:
        raise HTTPException(
            416, f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, end


async def _serve(
    request: Request, state: RequestState, file: StoredFile, more: Mapping[str, str] = {}
) -> Response:
    headers = {**file.headers, **more}
    etag = headers["ETag"]
    if_match = headers_of(request).get("if-match")
    if if_match is not None and if_match.strip() != "*" and etag not in _TAG.findall(if_match):
        raise HTTPException(412, "the file's ETag is not in If-Match")
    if matches(request, etag):
        return Response(status_code=304, headers=headers)
    span = _span(request, etag, file.size)
    start, end = span or (0, file.size)
    kind = media_type(file.content_type, None)  # a task may have given anything
    headers |= {"Content-Length": str(end - start), "Content-Type": kind}
    if request.method == "HEAD":
        return Response(headers=headers)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    store, presign = state["store"], state["settings"].store_presign
    # The store has its own entity tags, and would reject an If-Match with ours.
    url = await store.presign(file.path, presign) if presign and if_match is None else None
    if url is not None:
        return Response(
            status_code=307, headers={"Location": url, "Cache-Control": "private, no-store"}
        )
    chunks = _read(state, file.path, start, end)
    # Read the first chunk before the status is sent: if the store fails, the client gets an error
    # response instead of a truncated body.
    first = await anext(chunks, b"")
    return StreamingResponse(_prepend(first, chunks), 206 if span else 200, headers)


async def _read(state: RequestState, path: str, start: int, end: int) -> AsyncGenerator[bytes]:
    """The file in large pieces, or in small ones while many downloads hold large ones."""
    store, budget = state["store"], state["memory"].downloads
    large = budget.take(store.read_bytes)
    try:
        chunks = store.read(path, start, end, None if large else SMALL_BYTES)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
    finally:
        if large:
            budget.give_back(store.read_bytes)


async def _prepend(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(rest):  # closes the file when the client disconnects
        yield first
        async for chunk in rest:
            yield chunk


@router.head(
    "/v1/files/{id}",
    operation_id="lookAtFile",
    summary="Show an upload's headers",
    responses={
        **_HEAD,
        204: response("The upload is not complete: Upload-Offset shows how far it is"),
    },
)
@router.get(
    "/v1/files/{id}",
    responses={**_GET, **problems(_409="The upload is not complete")},
)
async def download_file(request: Request, state: StateDep, id: FileId) -> Response:
    """Download an upload, whole or a range of it."""
    if request.method == "HEAD":
        refuse_other_protocols(headers_of(request))  # that ask where their upload continues
    store, tenant, now = state["store"], state["tenant"], state["queue"].clock.now()
    try:
        upload = await find_upload(store, id, tenant=tenant, now=now)
    except NotFound:
        return await _incomplete(
            request, state, await find_partial_upload(store, id, tenant=tenant, now=now)
        )
    file = StoredFile(
        upload.path, upload.name or id, upload.size, upload.sha256, upload.content_type
    )
    progress = {"Upload-Complete": "?1", "Upload-Offset": str(upload.size)}
    return await _serve(request, state, file, progress)


async def _incomplete(request: Request, state: RequestState, upload: PartialUpload) -> Response:
    progress = await upload_progress(state["store"], upload.id)
    if request.method == "HEAD":
        headers = progress_headers(upload, progress.offset, state)
        return Response(status_code=204, headers=headers)
    raise Conflict(f"the upload is not complete: it continues at byte {progress.offset}")


@router.delete(
    "/v1/files/{id}",
    status_code=204,
    responses=problems(404),
)
async def delete_file(state: StateDep, id: FileId) -> Response:
    """Delete an upload, complete or not. Jobs that still name it will not find it."""
    now = state["queue"].clock.now()
    await delete_upload(state["store"], id, tenant=state["tenant"], now=now)
    return Response(status_code=204)


@router.head(
    "/v1/jobs/{id}/files/{name:path}",
    operation_id="lookAtJobFile",
    summary="Show the headers of a job's file",
    responses=_HEAD,
)
@router.get(
    "/v1/jobs/{id}/files/{name:path}",
    responses=_GET,
)
async def download_job_file(
    request: Request, state: StateDep, id: JobId, name: FileName
) -> Response:
    """Download a file that a job produced, whole or a range of it."""
    record = await state["queue"].get(id, tenant=state["tenant"])
    if record is None:
        raise unknown_job(state, id)
    found = next((one for one in record.produced_files() if one.name == name), None)
    if found is None:
        raise NotFound("file", f"{id}/{name}")
    path = job_path(record.id, record.attempts[-1].began, name)
    file = StoredFile(path, name, found.size, found.sha256, found.content_type)
    try:
        return await _serve(request, state, file)
    except NotFound:
        raise NotFound("file", f"{id}/{name}") from None
