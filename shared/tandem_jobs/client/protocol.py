"""Every call of the client: its requests, how it reads the answers, when it retries. No I/O.

Each call is written once, as a coroutine over a `Transport`. `shared/tandem_jobs/client/http.py`
has one for asyncio, and one that blocks, with which the coroutines never suspend.

Every request may be sent twice: reads are safe by nature, a submission by its idempotency key, a
cancel by the contract. An upload whose response was lost leaves an unnamed file that expires.
"""

import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import msgspec

from tandem_jobs.client.errors import JobCancelled, JobFailed, problem_of
from tandem_jobs.client.models import Entry, File, Job
from tandem_jobs.client.ndjson import EntryDecoder
from tandem_jobs.client.retries import MIN_PAUSE_SECONDS, Retries
from tandem_jobs.client.transfers import DownloadState, PartFile, UploadSource
from tandem_jobs.client.transport import (
    READ_TIMEOUT_SECONDS,
    ConnectionLost,
    Request,
    Response,
    Transport,
)
from tandem_shared.errors import Malformed

LONG_POLL_SECONDS = 25  # the API allows 30
STREAM_TIMEOUT_SECONDS = 45.0  # three missed heartbeats of 15 s
FILE_TIMEOUT_SECONDS = 2 * READ_TIMEOUT_SECONDS
MAX_REDIRECTS = 3
REDIRECTS = {302, 303, 307}
RETRIED = {429, 502, 503, 504}  # statuses of a server that cannot answer now

JobOrId = Job | str
Downloadable = str | File | Mapping[str, Any]


class ApiCalls:
    """All calls. Each raises Problem for a refusal, Unavailable without an answer for `patience`.

    `patience`: seconds to retry connection faults and 503s, counted from the last sign of life.
    `on_retry` gets the reason before each retry.
    """

    def __init__(
        self,
        transport: Transport,
        patience: float = 60.0,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        self._transport = transport
        self._patience = patience
        self._on_retry = on_retry

    async def submit(
        self,
        task: str,
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        wait: float | None = None,
        **options: Any,
    ) -> Job:
        """Submit a job: one job, however often the connection breaks meanwhile.

        `payload` is what msgspec can encode, or has a `model_dump` like pydantic's models. `wait`:
        wait up to so many seconds, at most 30, for the final job. `options` are those of the HTTP
        API; a duration may be a timedelta.
        """
        job: dict[str, Any] = {"task": task, "payload": {} if payload is None else payload}
        if given := {name: value for name, value in options.items() if value is not None}:
            job["options"] = _plain_durations(given)
        headers = {"Content-Type": "application/json", **_idempotency(idempotency_key)}
        if wait:
            headers["Prefer"] = f"wait={max(1, round(wait))}"
        body = msgspec.json.encode(job, enc_hook=_encode_model)
        timeout = READ_TIMEOUT_SECONDS + (wait or 0)
        return await self._job(
            Request("POST", "/v1/jobs", headers=headers, body=body, timeout=timeout)
        )

    async def get(self, job: JobOrId) -> Job:
        """The job as it is now."""
        return await self._job(Request("GET", _job_path(job)))

    async def wait(self, job: JobOrId, timeout: float | None = None) -> Job:
        """The final job, however often the API restarts meanwhile.

        Raises TimeoutError after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        retries = self._retries(deadline)
        while True:
            now = time.monotonic()
            poll = LONG_POLL_SECONDS if deadline is None else min(LONG_POLL_SECONDS, deadline - now)
            query = {"wait": f"{max(poll, 0):.3f}"}
            limit = LONG_POLL_SECONDS + READ_TIMEOUT_SECONDS
            found = await self._job(Request("GET", _job_path(job), query, timeout=limit), retries)
            if found.done:
                return found
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {found.id} is still {found.state}")
            if time.monotonic() - now < poll / 2:  # an API that shuts down answers at once
                await self._transport.sleep(MIN_PAUSE_SECONDS)

    async def result(self, job: JobOrId, timeout: float | None = None) -> Any:
        """What the job returned, once it is final.

        Raises JobFailed, JobCancelled, and TimeoutError after `timeout` seconds.
        """
        final = await self.wait(job, timeout)
        if final.state == "failed":
            raise JobFailed(final)
        if final.state == "cancelled":
            raise JobCancelled(final)
        return msgspec.json.decode(await self.read(f"{_job_path(final)}/result"))

    async def cancel(self, job: JobOrId) -> Job:
        """Request the job's cancellation; a final job stays as it is."""
        return await self._job(Request("POST", f"{_job_path(job)}/cancel"))

    async def replay(self, job: JobOrId, *, idempotency_key: str | None = None) -> Job:
        """Run a failed or cancelled job again as one new job."""
        headers = _idempotency(idempotency_key)
        return await self._job(Request("POST", f"{_job_path(job)}/replay", headers=headers))

    async def stream(
        self, job: JobOrId, types: str | Iterable[str] = (), after: str | None = None
    ) -> AsyncGenerator[Entry, None]:
        """Each entry once, in order and live, across disconnects; the last one is `end`.

        `types`: some of `state`, `progress`, `log`, `output`; all if empty. `after`: resume after
        the entry with this id; nothing follows `end`. When `attempt` rises, discard the output of
        lower attempts.
        """
        async with aclosing(self.stream_chunks(job, types, after)) as chunks:
            async for entries in chunks:
                for entry in entries:
                    yield entry

    async def stream_chunks(
        self, job: JobOrId, types: str | Iterable[str] = (), after: str | None = None
    ) -> AsyncGenerator[list[Entry], None]:
        """The entries of `stream`, in lists of those that arrived together."""
        names = [types] if isinstance(types, str) else list(types)
        query = {"types": ",".join(names)} if names else {}
        if after is not None:
            query["after"] = after
        retries = self._retries()
        while True:
            try:
                async with aclosing(self._connection(job, query, retries)) as chunks:
                    async for entries in chunks:
                        query["after"] = entries[-1].id
                        yield entries
            except ConnectionLost as fault:
                await retries.sleep(fault)
            else:
                return

    async def _connection(
        self, job: JobOrId, query: Mapping[str, str], retries: Retries
    ) -> AsyncGenerator[list[Entry], None]:
        """The entries of one connection. Raises ConnectionLost if it breaks before `end`."""
        request = Request(
            "GET",
            f"{_job_path(job)}/stream",
            query,
            {"Accept": "application/x-ndjson"},
            timeout=STREAM_TIMEOUT_SECONDS,
        )
        async with aclosing(await self._send(request, retries)) as response:
            if response.status == HTTPStatus.NO_CONTENT:  # the entry of `after` is `end`
                return
            decoder = EntryDecoder()
            while data := await response.read():
                entries, alive = decoder.feed(data)
                if alive:
                    retries.reset()
                if entries:
                    yield entries
                    if entries[-1].type == "end":
                        return
        raise ConnectionLost("the stream was cut off")

    async def upload(
        self,
        source: str | Path | IO[bytes],
        *,
        name: str | None = None,
        content_type: str | None = None,
    ) -> File:
        """Upload a file by its path, or the rest of an open file; payloads use its `reference`.

        An open file that cannot seek is sent only once. Raises OSError if it cannot be read.
        """
        upload = await self._transport.run(partial(UploadSource, source))
        try:
            label = upload.name if name is None else name
            query = {} if label is None else {"name": label}
            headers = {} if content_type is None else {"Content-Type": content_type}
            if upload.size is not None:
                headers["Content-Length"] = str(upload.size)
            request = Request(
                "POST", "/v1/files", query, headers, upload, timeout=FILE_TIMEOUT_SECONDS
            )
            return msgspec.json.decode(await self._request(request), type=File)
        finally:
            await self._transport.run(upload.close)

    async def download(self, file: Downloadable, to: str | Path | IO[bytes]) -> int:
        """Write a file to a path or an open file; its size in bytes.

        `file` is a File, a file reference, the id of an upload, `<job id>/<name>`, or a path of the
        API. After a cut the rest is fetched by a range, and the SHA-256 is checked. A path gets the
        complete file or stays as it was.
        """
        if not isinstance(to, str | Path):
            return await self._copy(_file_path(file), to)
        part = await self._transport.run(partial(PartFile, Path(to)))
        try:
            size = await self._copy(_file_path(file), part.file)
            await self._transport.run(part.commit)
            return size
        finally:
            await self._transport.run(part.discard)

    async def _copy(self, path: str, out: IO[bytes]) -> int:
        size = 0
        async with aclosing(self.iter_bytes(path)) as chunks:
            async for data in chunks:
                await self._transport.run(partial(_write, out, data))
                size += len(data)
        return size

    async def read(self, path: str) -> bytes:
        """The body at a path of the API, in memory; see `iter_bytes`."""
        body = bytearray()
        async with aclosing(self.iter_bytes(path)) as chunks:
            async for data in chunks:
                body += data
        return bytes(body)

    async def iter_bytes(self, path: str) -> AsyncGenerator[bytes, None]:
        """The body at a path of the API: follows redirects, resumes by ranges, checks the hash."""
        retries, state = self._retries(), DownloadState()
        while True:
            try:
                response = await self._follow(path, state.range_headers(), retries)
                async with aclosing(response):
                    state.start(response.status, response.headers)
                    while data := await response.read():
                        retries.reset()
                        yield state.add(data)
            except ConnectionLost as fault:
                await retries.sleep(fault)
                continue
            if state.is_complete():
                return
            await retries.sleep(ConnectionLost("the response was cut off"))

    async def _follow(self, path: str, headers: Mapping[str, str], retries: Retries) -> Response:
        """The response at the end of the redirects."""
        for _ in range(MAX_REDIRECTS + 1):
            request = Request("GET", path, headers=headers, timeout=FILE_TIMEOUT_SECONDS)
            response = await self._send(request, retries)
            if response.status not in REDIRECTS:
                return response
            await response.aclose()
            path = response.headers.get("location", "").removeprefix(self._transport.url)
        raise Malformed(f"more than {MAX_REDIRECTS} redirects")

    def _retries(self, deadline: float | None = None) -> Retries:
        return Retries(self._transport, self._patience, self._on_retry, deadline)

    async def _job(self, request: Request, retries: Retries | None = None) -> Job:
        return _decoder.decode(await self._request(request, retries))

    async def _request(self, request: Request, retries: Retries | None = None) -> bytes:
        """The body of the response, after as many tries as `retries` allows."""
        retries = retries or self._retries()
        while True:
            try:
                body = await _read(await self._send(request, retries))
            except ConnectionLost as fault:
                await retries.sleep(fault)
            else:
                retries.reset()
                return body

    async def _send(self, request: Request, retries: Retries) -> Response:
        """The open response of a request that succeeded. Raises Problem and ConnectionLost."""
        while True:
            if isinstance(request.body, UploadSource):
                await self._transport.run(request.body.rewind)
            response = await self._transport.send(request)
            status, headers = response.status, response.headers
            if status in REDIRECTS or 200 <= status < 300:
                return response
            problem = problem_of(status, headers.get("content-type", ""), await _read(response))
            if status not in RETRIED:
                raise problem
            await retries.sleep(problem, _seconds(headers.get("retry-after", "")))

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


_decoder = msgspec.json.Decoder(Job)


async def _read(response: Response) -> bytes:
    body = bytearray()
    async with aclosing(response):
        while data := await response.read():
            body += data
    return bytes(body)


def _job_path(job: JobOrId) -> str:
    id = job.id if isinstance(job, Job) else job
    return f"/v1/jobs/{quote(id, safe='')}"


def _file_path(file: Downloadable) -> str:
    if isinstance(file, File):
        name: Any = file.url or file.id
    else:
        name = file.get("file") if isinstance(file, Mapping) else file
    if not isinstance(name, str) or not name:
        raise ValueError(f"expected a File, a file reference, an id or a path, not {file!r}")
    if name.startswith("/"):
        return name
    job, slash, path = name.partition("/")
    return f"{_job_path(job)}/files/{quote(path)}" if slash else f"/v1/files/{quote(name, safe='')}"


def _idempotency(key: str | None) -> dict[str, str]:
    # An RFC 9651 string, except that the API accepts any UTF-8.
    escaped = re.sub(r'(["\\])', r"\\\1", key or uuid.uuid4().hex)
    return {"Idempotency-Key": f'"{escaped}"'}


def _seconds(retry_after: str) -> float:
    return float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else 0.0


def _plain_durations(value: Any) -> Any:
    """The value with timedeltas as seconds."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {name: _plain_durations(item) for name, item in value.items()}
    return value


def _encode_model(value: Any) -> Any:
    if not hasattr(value, "model_dump"):
        raise TypeError(f"a payload cannot hold {type(value).__name__} objects")
    return value.model_dump(mode="json")


def _write(out: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[out.write(rest) or 0 :]
