"""How a client speaks with the API: what it sends, what it makes of the answers, when it tries again. No I/O.

Everything is written once, as coroutines over a `Wire`. `shared/tandem_jobs/client/client.py` has
the two wires there are: one that waits in an event loop, and one that blocks, whose coroutines end
without ever being suspended.

Whatever is sent may be sent twice: reads by nature, a submission by its idempotency key, a cancel
by the contract; an upload whose answer was lost leaves a file that nobody names and that expires.
"""

import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import msgspec

from tandem_jobs.client.errors import JobCancelled, JobFailed, problem_of
from tandem_jobs.client.models import Entry, File, Job
from tandem_jobs.client.ndjson import Lines
from tandem_jobs.client.patience import SHORTEST, Patience
from tandem_jobs.client.transfers import Digest, Source, part_of
from tandem_jobs.client.transport import ANSWER, Answer, Lost, Opened, Request, Wire
from tandem_shared.errors import Malformed

POLL = 25  # seconds of one long-poll; the API's most is 30
SILENCE = 45.0  # seconds without a byte after which a stream is dead: it has a heartbeat each 15
REDIRECTS = 3
AGAIN = {429, 502, 503, 504}  # said by what cannot serve just now
MOVED = {302, 303, 307}

Named = str | Job
Downloadable = str | File | Mapping[str, Any]


class Conversation:
    """Every call of a client. Each raises Problem for a refusal, and Unavailable when nobody answers for `patience`.

    `patience`: seconds that connection faults and 503s are met with new tries, begun again with
    each sign of life. `told` gets the reason before each of them.
    """

    def __init__(
        self, wire: Wire, patience: float = 60.0, told: Callable[[str], None] | None = None
    ) -> None:
        self._wire = wire
        self._patience = patience
        self._told = told

    async def submit(
        self, task: str, payload: Any = None, *, idempotency_key: str | None = None, wait: float | None = None,
        **options: Any,
    ) -> Job:  # fmt: skip
        """The job, accepted once however often the connection breaks meanwhile.

        `payload` is what msgspec can encode, or has a `model_dump` as pydantic's models. `wait`:
        seconds, 30 at most, to wait for the final job. `options` are the contract's; a duration may
        be a timedelta.
        """
        given = {name: _option(value) for name, value in options.items() if value is not None}
        job = {
            "task": task,
            "payload": {} if payload is None else payload,
            **({"options": given} if given else {}),
        }
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": _quoted(idempotency_key or uuid.uuid4().hex),
            **({"Prefer": f"wait={max(1, round(wait))}"} if wait else {}),
        }
        body = msgspec.json.encode(job, enc_hook=_plain)
        request = Request(
            "POST", "/v1/jobs", headers=headers, body=body, timeout=ANSWER + (wait or 0)
        )
        return _job((await self._ask(request)).body)

    async def get(self, job: Named) -> Job:
        """The job as it is now."""
        return _job((await self._ask(Request("GET", _path(job)))).body)

    async def wait(self, job: Named, timeout: float | None = None) -> Job:
        """The final job, over any number of restarts of the API. Raises TimeoutError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        patience = self._new_patience(deadline)
        while True:
            left = POLL if deadline is None else min(POLL, deadline - time.monotonic())
            asked = time.monotonic()
            query = {"wait": f"{max(left, 0):.3f}"}
            answer = await self._ask(
                Request("GET", _path(job), query, timeout=POLL + ANSWER), patience
            )
            found = _job(answer.body)
            if found.done:
                return found
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise TimeoutError(f"job {found.id} is still {found.state}")
            if now - asked < left / 2:  # an API that ends sends everybody away
                await self._wire.pause(SHORTEST)

    async def result(self, job: Named, timeout: float | None = None) -> Any:
        """What the job returned, once it is final. Raises JobFailed, JobCancelled, and TimeoutError as `wait`."""
        final = await self.wait(job, timeout)
        if final.state == "failed":
            raise JobFailed(final)
        if final.state == "cancelled":
            raise JobCancelled(final)
        parts = bytearray()
        async with aclosing(self.pieces(f"{_path(final)}/result")) as pieces:
            async for piece in pieces:
                parts += piece
        return msgspec.json.decode(parts)

    async def cancel(self, job: Named) -> Job:
        """The job, told to end; a final one stays as it is."""
        return _job((await self._ask(Request("POST", f"{_path(job)}/cancel"))).body)

    async def replay(self, job: Named, *, idempotency_key: str | None = None) -> Job:
        """A new job like this one, which failed or was cancelled; made once however often the connection breaks."""
        headers = {"Idempotency-Key": _quoted(idempotency_key or uuid.uuid4().hex)}
        return _job(
            (await self._ask(Request("POST", f"{_path(job)}/replay", headers=headers))).body
        )

    # --------------------------------------------------------------------------------------- stream

    async def stream(
        self, job: Named, types: str | Iterable[str] = (), after: str | None = None
    ) -> AsyncGenerator[Entry, None]:
        """Each entry once and in order, live, over any number of cuts and restarts; the last one is of type `end`.

        `types`: some of `state`, `progress`, `log`, `output`, all if empty. `after`: the id of the
        entry to go on after; nothing comes after `end`. When `attempt` rises, the output of lower
        attempts is void.
        """
        async with aclosing(self.portions(job, types, after)) as portions:
            async for portion in portions:
                for entry in portion:
                    yield entry

    async def portions(
        self, job: Named, types: str | Iterable[str] = (), after: str | None = None
    ) -> AsyncGenerator[list[Entry], None]:
        """The same, in lists of what came together."""
        names = [types] if isinstance(types, str) else list(types)
        query = {"types": ",".join(names)} if names else {}
        headers = {"Accept": "application/x-ndjson"}
        patience = self._new_patience()
        while True:
            place = {**query, "after": after} if after is not None else query
            request = Request("GET", f"{_path(job)}/stream", place, headers, timeout=SILENCE)
            async with AsyncExitStack() as stack:
                try:
                    opened = await self._open(request, patience)
                    stack.push_async_callback(opened.close)
                    if opened.status == HTTPStatus.NO_CONTENT:
                        return
                    lines = Lines()
                    while piece := await opened.read():
                        entries, whole = lines.feed(piece)
                        if whole:
                            patience.heard()
                        if entries:
                            after = entries[-1].id
                            yield entries
                            if entries[-1].type == "end":
                                return
                    fault = Lost("the stream was cut off")
                except Lost as lost:
                    fault = lost
            await patience.again(fault)

    # ---------------------------------------------------------------------------------------- files

    async def upload(
        self,
        source: str | Path | IO[bytes],
        *,
        name: str | None = None,
        content_type: str | None = None,
    ) -> File:
        """An upload of a file, or of what is left of an open one; payloads name it by its `reference`.

        An open one that cannot seek is sent once only. Raises OSError for what cannot be read.
        """
        file = await self._wire.call(partial(Source.of, source))
        try:
            label = name if name is not None else file.name
            query = {} if label is None else {"name": label}
            headers = {} if content_type is None else {"Content-Type": content_type}
            if file.size is not None:
                headers["Content-Length"] = str(file.size)
            request = Request("POST", "/v1/files", query, headers, file, timeout=2 * ANSWER)
            return msgspec.json.decode((await self._ask(request)).body, type=File)
        finally:
            await self._wire.call(file.close)

    async def download(self, file: Downloadable, to: str | Path | IO[bytes]) -> int:
        """Write a file to a path or an open file; its size in bytes.

        `file` is a File, a file reference, an upload's id, `<job id>/<name>`, or a path of the API.
        What a cut leaves out is fetched by a range, and the hash is checked; a path has the whole
        file or is not touched.
        """
        async with AsyncExitStack() as stack:
            if isinstance(to, str | Path):
                out, keep = await self._wire.call(partial(part_of, Path(to)))
                stack.push_async_callback(self._wire.call, partial(keep, done=False))
            else:
                out, keep = to, None
            size = 0
            pieces = await stack.enter_async_context(aclosing(self.pieces(_place(file))))
            async for piece in pieces:
                await self._wire.call(partial(_write, out, piece))
                size += len(piece)
            if keep is not None:
                await self._wire.call(partial(keep, done=True))
            return size

    async def pieces(self, path: str) -> AsyncGenerator[bytes, None]:
        """The bytes behind a path of the API, resumed by ranges, followed over redirects, checked by their hash."""
        patience, digest = self._new_patience(), Digest()
        while True:
            async with AsyncExitStack() as stack:
                try:
                    opened = await self._moved(path, digest.resumption(), patience)
                    stack.push_async_callback(opened.close)
                    skip = digest.begin(opened.status, opened.headers)
                    while piece := await opened.read():
                        patience.heard()
                        piece, skip = piece[skip:], max(0, skip - len(piece))
                        if piece:
                            digest.update(piece)
                            yield piece
                    if digest.complete():
                        return
                    fault = Lost("the answer was cut off")
                except Lost as lost:
                    fault = lost
            await patience.again(fault)

    async def _moved(self, path: str, headers: Mapping[str, str], patience: Patience) -> Opened:
        for _ in range(REDIRECTS + 1):
            opened = await self._open(
                Request("GET", path, headers=headers, timeout=2 * ANSWER), patience
            )
            if opened.status not in MOVED:
                return opened
            await opened.close()
            path = opened.headers.get("location", "").removeprefix(self._wire.url)
        raise Malformed(f"more than {REDIRECTS} redirects")

    # --------------------------------------------------------------------------------------- asking

    def _new_patience(self, deadline: float | None = None) -> Patience:
        return Patience(self._wire, self._patience, self._told, deadline)

    async def _ask(self, request: Request, patience: Patience | None = None) -> Answer:
        patience = patience or self._new_patience()
        while True:
            try:
                opened = await self._open(request, patience)
                body = await _whole(opened)
            except Lost as fault:
                await patience.again(fault)
                continue
            patience.heard()
            return Answer(opened.status, opened.headers, body)

    async def _open(self, request: Request, patience: Patience) -> Opened:
        """The answer, if it is no refusal and no excuse. Raises Lost where another try is for the caller to make."""
        while True:
            if isinstance(request.body, Source):
                await self._wire.call(request.body.rewind)
            opened = await self._wire.open(request)
            status = opened.status
            if status in MOVED or 200 <= status < 300:
                return opened
            problem = problem_of(
                status, opened.headers.get("content-type", ""), await _whole(opened)
            )
            if status not in AGAIN:
                raise problem
            await patience.again(problem, _seconds(opened.headers.get("retry-after", "")))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._wire.close()


_decoder = msgspec.json.Decoder(Job)


def _job(body: bytes) -> Job:
    return _decoder.decode(body)


async def _whole(opened: Opened) -> bytes:
    parts = bytearray()
    try:
        while piece := await opened.read():
            parts += piece
    finally:
        await opened.close()
    return bytes(parts)


def _path(job: Named) -> str:
    id = job.id if isinstance(job, Job) else job
    return f"/v1/jobs/{quote(id, safe='')}"


def _place(file: Downloadable) -> str:
    """The path of a file."""
    if isinstance(file, str):
        name: Any = file
    else:
        name = (file.url or file.id) if isinstance(file, File) else file.get("file")
    if not isinstance(name, str) or not name:
        raise ValueError("this names no file")
    if name.startswith("/"):
        return name
    job, slash, path = name.partition("/")
    return f"{_path(job)}/files/{quote(path)}" if slash else f"/v1/files/{quote(name, safe='')}"


def _quoted(key: str) -> str:
    # A string of RFC 9651; the API takes any UTF-8, and so do we.
    return '"' + re.sub(r'(["\\])', r"\\\1", key) + '"'


def _seconds(retry_after: str) -> float:
    return float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else 0.0


def _option(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {name: _option(one) for name, one in value.items()}
    return value


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError(f"a payload cannot hold a {type(value).__name__}")
    return dump(mode="json")


def _write(out: IO[bytes], piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[out.write(rest) or 0 :]
