"""Answers byte for byte, as clients and proxies read them, on every path through the API."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import httpx2
import msgspec
import pytest
from starlette.routing import Match

from tandem_api.app import all_routes
from tandem_api.http.routing import PlainRoutes
from tests.api.fake_worker import FakeWorker
from tests.api.serving import serving

TYPED = {"content-type": "application/json"}
HOST = b"Host: x\r\n"
JSON = b"Content-Type: application/json\r\n"
BODY = b'{"task":"t.any"}'
# Values that differ between runs, and placeholders of the same length.
VARYING = (
    (re.compile(rb"date: [^\r]+"), b"date: now"),
    (re.compile(rb'etag: "\d{16}"'), b"etag: its version"),
    (re.compile(rb"\b[0-9A-Z]{21}a\b"), ID := b"id".ljust(22, b"_")),
    (re.compile(rb"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"), TIME := b"time".ljust(24, b"_")),
)
FRESH = (
    b'{"id":"%(id)b","task":"t.any","state":"queued","done":false,"queue":"default",'
    b'"priority":"normal","attempt":0,'
    b'"max_attempts":3,"submitted_at":"%(time)b","scheduled_for":null,"started_at":null,'
    b'"finished_at":null,"timeout":30,'
    b'"progress":null,"result":null,"error":null,'
    b'"waiting_for":{"reason":"slot","detail":'
    b'"the job waits for a free slot on a worker of the queue \\"default\\"",'
    b'"since":"%(time)b"},"cancel_requested":false,"tags":{},"files":[],'
    b'"attempts":[],"links":'
    b'{"self":"/v1/jobs/%(id)b","stream":"/v1/jobs/%(id)b/stream","result":"/v1/jobs/%(id)b/result"}}'
) % {b"id": ID, b"time": TIME}
LOCATION = b"location: /v1/jobs/" + ID + b"\r\n"
PRIVATE = b"cache-control: private, no-cache\r\n"
VERSION = b"etag: its version\r\n"


class Wire:
    """A raw connection to the API."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, sent: bytes) -> bytes:
        """Sends a request; returns the next answer with placeholders for values that vary."""
        self._writer.write(sent)
        return await self.next(bare=sent.startswith(b"HEAD"))

    async def next(self, *, bare: bool = False) -> bytes:
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        answer = head + (
            await self._reader.readexactly(int(length[1])) if length and not bare else b""
        )
        for pattern, word in VARYING:
            answer = pattern.sub(word, answer)
        return answer

    async def rest(self) -> bytes:
        """All bytes until the server closes."""
        return await self._reader.read()


@asynccontextmanager
async def wired(client: httpx2.AsyncClient) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        async with asyncio.timeout(30):
            yield Wire(reader, writer)
    finally:
        writer.close()


@pytest.fixture
async def wire(client: httpx2.AsyncClient) -> AsyncIterator[Wire]:
    async with wired(client) as wire:
        yield wire


def get(path: bytes, more: bytes = b"", method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method, path, HOST, more)


def post(path: bytes, body: bytes = BODY, more: bytes = JSON) -> bytes:
    return get(path, b"Content-Length: %d\r\n%b" % (len(body), more), b"POST") + body


def answer(
    status: bytes, headers: bytes, body: bytes, kind: bytes = b"application/json", last: bytes = b""
) -> bytes:
    size = b"content-length: %d\r\ncontent-type: %b\r\n" % (len(body), kind)
    return b"HTTP/1.1 %b\r\ndate: now\r\nx-content-type-options: nosniff\r\n%b%b%b\r\n%b" % (
        status,
        headers,
        size,
        last,
        body,
    )


def problem(
    status: bytes, title: tuple[bytes, bytes], detail: bytes, at: bytes, headers: bytes = b""
) -> bytes:
    body = b'{"type":"/problems/%b","title":"%b","status":%b,"detail":"%b","instance":"%b"}'
    body %= (*title, status[:3], detail, at)
    return answer(
        status, b"cache-control: no-store\r\n" + headers, body, b"application/problem+json"
    )


def refused(method: bytes, at: bytes, allowed: bytes) -> bytes:
    detail, title = (
        b"%b is not allowed; use %b" % (method, allowed),
        b"The method is not allowed here",
    )
    allow = b"allow: %b\r\n" % allowed
    return problem(b"405 Method Not Allowed", (b"method-not-allowed", title), detail, at, allow)


def nothing(detail: bytes, at: bytes) -> bytes:
    return problem(b"404 Not Found", (b"not-found", b"Not found"), detail, at)


def malformed(detail: bytes) -> bytes:
    return problem(
        b"400 Bad Request", (b"malformed", b"The request is malformed"), detail, b"/v1/jobs"
    )


TOO_LARGE = f"413 {HTTPStatus(413).phrase}".encode()  # Python 3.13 words it differently
ACCEPTED = answer(b"202 Accepted", LOCATION + b"retry-after: 1\r\n", FRESH)
ALIVE = answer(b"200 OK", b"", b'{"status":"ok"}', last=b"cache-control: no-store\r\n")
TYPE = b"unsupported-media-type", b"The content type is not supported"
EXPECTED_TYPE = b"send Content-Type: application/json, in UTF-8"
UNTYPED = problem(b"415 Unsupported Media Type", TYPE, EXPECTED_TYPE, b"/v1/jobs")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (post(b"/v1/jobs"), ACCEPTED),
        (
            post(b"/v1/jobs", more=JSON + b"X-Request-ID: r-1\r\n"),
            answer(
                b"202 Accepted",
                LOCATION + b"retry-after: 1\r\n",
                FRESH,
                last=b"x-request-id: r-1\r\n",
            ),
        ),
        (
            post(b"/v1/jobs", more=JSON + b"Prefer: wait=0\r\n"),
            answer(
                b"202 Accepted",
                LOCATION + b"retry-after: 1\r\npreference-applied: wait=0\r\n",
                FRESH,
            ),
        ),
        (
            post(b"/v1/jobs", b'{"task'),
            malformed(b"the JSON is malformed: input data was truncated"),
        ),
        (post(b"/v1/jobs", b""), malformed(b"the body is empty: send a JSON value")),
        (
            post(b"/v1/jobs", more=JSON + b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n"),
            malformed(b"Idempotency-Key: send it once"),
        ),
        (post(b"/v1/jobs", more=b""), UNTYPED),
        (post(b"/v1/jobs", more=b"Content-Type: text/plain\r\n"), UNTYPED),
        (
            post(b"/v1/jobs", more=JSON + b"Content-Encoding: gzip\r\n"),
            problem(
                b"415 Unsupported Media Type",
                TYPE,
                b"send the body without a Content-Encoding",
                b"/v1/jobs",
            ),
        ),
        (
            get(b"/v1/jobs", JSON + b"Content-Length: 2000000\r\n", b"POST"),
            problem(
                TOO_LARGE,
                (b"too-large", b"The request is too large"),
                b"the body exceeds the limit of 1048576 bytes",
                b"/v1/jobs",
            ),
        ),
        (get(b"/livez"), ALIVE),
        (get(b"/livez?x=%20y#z"), ALIVE),
        (get(b"http://x/livez"), ALIVE),
        (get(b"/livez", method=b"HEAD"), ALIVE.removesuffix(b'{"status":"ok"}')),
        (get(b"/livez", method=b"DELETE"), refused(b"DELETE", b"/livez", b"GET, HEAD")),
        (get(b"/v1/jobs", method=b"PUT"), refused(b"PUT", b"/v1/jobs", b"GET, HEAD, POST")),
        (get(b"/v1/jobs/bulk"), refused(b"GET", b"/v1/jobs/bulk", b"POST")),
        (get(b"/v1/jobs/abc"), nothing(b"no job with id 'abc'", b"/v1/jobs/abc")),
        (get(b"/v1/jobs/%61%62%63"), nothing(b"no job with id 'abc'", b"/v1/jobs/%61%62%63")),
        (
            get(b"/v1/jobs/"),
            nothing(
                b"there is nothing at /v1/jobs/; paths have no slash at their end: /v1/jobs",
                b"/v1/jobs/",
            ),
        ),
        (get(b"/v1/nothing"), nothing(b"there is nothing at /v1/nothing", b"/v1/nothing")),
        (
            get(b"/v1/stream"),
            problem(
                b"426 Upgrade Required",
                (b"upgrade-required", b"The request must be an upgrade"),
                b"this is a WebSocket endpoint: send an upgrade",
                b"/v1/stream",
                b"upgrade: websocket\r\nconnection: Upgrade\r\n",
            ),
        ),
    ],
)
async def test_an_answer_is_stable_to_the_byte(wire: Wire, sent: bytes, expected: bytes) -> None:
    assert await wire.ask(sent) == expected


async def test_answers_about_a_job_are_stable_to_the_byte(
    wire: Wire, client: httpx2.AsyncClient
) -> None:
    id = (await client.post("/v1/jobs", content=BODY, headers=TYPED)).json()["id"].encode()
    path, shown_path = b"/v1/jobs/" + id, b"/v1/jobs/" + ID
    fresh = answer(b"200 OK", PRIVATE + VERSION, FRESH)
    assert await wire.ask(get(path)) == fresh
    assert await wire.ask(get(path + b"?payload=false")) == fresh
    assert await wire.ask(get(path, method=b"HEAD")) == fresh.removesuffix(FRESH)
    unchanged = (
        b"HTTP/1.1 304 Not Modified\r\ndate: now\r\nx-content-type-options: nosniff\r\n"
        + PRIVATE
        + VERSION
        + b"\r\n"
    )
    for method in (b"GET", b"HEAD"):
        assert await wire.ask(get(path, b"If-None-Match: *\r\n", method)) == unchanged
    early = answer(b"202 Accepted", PRIVATE + b"retry-after: 1\r\n", FRESH)
    assert await wire.ask(get(path + b"/result")) == early
    assert await wire.ask(get(path, method=b"PATCH")) == refused(
        b"PATCH", shown_path, b"DELETE, GET, HEAD"
    )
    assert await wire.ask(get(path + b"/nothing")) == nothing(
        b"there is nothing at " + shown_path + b"/nothing", shown_path + b"/nothing"
    )
    conflict = b"409 Conflict", (b"conflict", b"The request does not fit the current state")
    assert await wire.ask(get(path, method=b"DELETE")) == problem(
        *conflict, b"the job is queued: cancel it first", shown_path
    )
    assert (await wire.ask(get(path + b"/cancel", method=b"POST"))).startswith(
        b"HTTP/1.1 202 Accepted\r\n"
    )
    assert (
        await wire.ask(get(path, method=b"DELETE"))
        == b"HTTP/1.1 204 No Content\r\ndate: now\r\nx-content-type-options: nosniff\r\n\r\n"
    )
    not_found = nothing(b"no job with id '" + ID + b"'", shown_path)
    assert await wire.ask(get(path)) == not_found


async def test_a_result_is_sent_bare(
    wire: Wire, worker: FakeWorker, client: httpx2.AsyncClient
) -> None:
    await client.post("/v1/jobs", content=BODY, headers=TYPED)
    await worker.succeed(job := await worker.claim(), {"a": [1]})
    path = b"/v1/jobs/" + job.id.encode()
    bare = answer(b"200 OK", PRIVATE + VERSION, b'{"a":[1]}')
    assert await wire.ask(get(path + b"/result")) == bare
    assert await wire.ask(get(path + b"/result", method=b"HEAD")) == bare.removesuffix(b'{"a":[1]}')
    received = await wire.ask(get(path))
    job_view = msgspec.json.decode(received.partition(b"\r\n\r\n")[2])
    assert (job_view["result"], job_view["finished_at"]) == ({"a": [1]}, TIME.decode())


async def test_a_request_without_a_key_reveals_nothing(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    title, detail = (
        (b"unauthenticated", b"An API key is needed"),
        "send an API key: Authorization: Bearer tk_…".encode(),
    )
    async with (
        serving(redis_url, tmp_path, keys=("tk_first_0123456789abcdef",)) as client,
        wired(client) as wire,
    ):
        assert await wire.ask(post(b"/v1/jobs")) == problem(
            b"401 Unauthorized", title, detail, b"/v1/jobs", b"www-authenticate: Bearer\r\n"
        )


async def test_pipelined_requests_are_answered_in_order(wire: Wire) -> None:
    requests = [
        post(b"/v1/jobs"),
        get(b"/livez"),
        get(b"/v1/nothing"),
        post(b"/v1/jobs"),
        get(b"/livez"),
    ]
    answers = [await wire.ask(b"".join(requests))] + [await wire.next() for _ in requests[1:]]
    missing = nothing(b"there is nothing at /v1/nothing", b"/v1/nothing")
    assert answers == [ACCEPTED, ALIVE, missing, ACCEPTED, ALIVE]


async def test_a_body_may_arrive_late_and_in_chunks(wire: Wire) -> None:
    head = get(b"/v1/jobs", JSON + b"Transfer-Encoding: chunked\r\n", b"POST")
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:5], BODY[5:])] + [b"0\r\n\r\n"]
    assert await wire.ask(head + b"".join(chunks)) == ACCEPTED
    waiting = head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    assert (
        await wire.ask(waiting) == b"HTTP/1.1 100 Continue\r\n\r\n"
    )  # the server is waiting for the body by now
    assert await wire.ask(b"".join(chunks)) == ACCEPTED


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_client_that_expects_100_continue_gets_it(wire: Wire, *, at_once: bool) -> None:
    head = get(
        b"/v1/jobs", JSON + b"Content-Length: %d\r\nExpect: 100-continue\r\n" % len(BODY), b"POST"
    )
    assert await wire.ask(head + (BODY if at_once else b"")) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await wire.next() if at_once else await wire.ask(BODY)) == ACCEPTED
    assert await wire.ask(get(b"/livez")) == ALIVE


@pytest.mark.parametrize(
    "sent",
    [
        get(b"/livez", b"Connection: close\r\n"),
        b"GET /livez HTTP/1.0\r\n\r\n",
        b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ],
)
async def test_a_connection_without_keep_alive_is_closed(wire: Wire, sent: bytes) -> None:
    assert await wire.ask(sent) == ALIVE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    assert await wire.rest() == b""


def test_plain_routes_agree_with_the_router() -> None:
    routes = all_routes()
    plain = PlainRoutes(routes)
    id = "0123456789ABCDEFGHIJKa"
    paths = [route.path.replace("{id:job}", id) for route in routes]
    odd = [
        "/v1/jobs/",
        "/v1/jobs/short",
        f"/v1/jobs/{id}x",
        f"/v1/jobs/{id}/",
        f"/v1/jobs/{id}/result/",
        "/v1/jobs//result",
        "/v1/jobs/" + "/" * 22,
        "/v1/jobs/bulk" + "x" * 18,
        "/v1/jobs/replay/cancel",
        "/v1/jobs/bulk/1234567890123456",
        "/livez/",
        "/v1/jobs\n",
        f"/v1/jobs/{id}\n",
        "",
        "*",
        "/v1/jobs/{id:job}",
        "/v1/jobs/{id:job}/result",
    ]
    found = 0
    for path in [*paths, *odd]:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
            scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
            route = plain.find(scope)
            if route is None:
                continue
            found += 1
            matches = (route.matches({**scope, "path_params": {}}) for route in routes)
            child = next(child for match, child in matches if match is Match.FULL)
            assert (route.endpoint, scope["path_params"]) == (
                child["endpoint"],
                child["path_params"],
            ), (method, path)
            assert scope["endpoint"] is route.endpoint
    assert found >= 12  # guards against a loop that compares no route
