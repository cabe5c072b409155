"""`http.download` against servers that break off, change, lie and refuse."""

import asyncio
import gzip
import hashlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from aiohttp import web

from tandem_worker.errors import TaskError
from tandem_worker.task import task_of
from tandem_worker.tasks.http.download import download as http_download
from tests.conftest import eventually
from tests.worker.bench import Bench, open_bench
from tests.worker.connectors.http.test_client import serving

TASK = task_of(http_download)
DATA = random.Random(7).randbytes(3 << 20)
ETAG = {"ETag": '"one"'}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem_worker.tasks.http.download.FIRST_PAUSE_SECONDS", 0.001)


async def failure(bench: Bench, payload: dict[str, Any], **job: Any) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await bench.run(http_download, payload, **job)
    return caught.value


def stored(tmp_path: Path) -> list[bytes]:
    """The contents of all the store's files, read past the service."""
    return [path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()]


class Site:
    """A server of one body that breaks off after so many bytes of each response, as long as it has `breaks`."""

    def __init__(self, data: bytes = DATA, headers: dict[str, str] | None = None) -> None:
        self.data, self.headers = data, ETAG if headers is None else headers
        self.breaks: list[int] = []
        self.ranges = True
        self.asked: list[tuple[str | None, str | None]] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        self.asked.append((wanted, condition))
        start, status, headers = 0, 200, dict(self.headers)
        if wanted is not None and self.ranges and condition in self.headers.values():
            start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
        return await send(
            request, self.data[start:], status, headers, self.breaks.pop(0) if self.breaks else None
        )


async def send(
    request: web.BaseRequest, body: bytes, status: int, headers: dict[str, str], stop: int | None
) -> web.StreamResponse:
    """All of the body, or a reset connection after `stop` bytes of it."""
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[:stop])
    if stop is not None and request.transport is not None:
        # The bytes leave, then the connection ends in the middle.
        request.transport.close()
    return response


async def test_a_download_is_a_file_of_the_job(bench: Bench, tmp_path: Path) -> None:
    site = Site(headers={**ETAG, "Content-Type": "text/csv; charset=utf-8"})
    async with serving(site) as port:
        url = f"http://127.0.0.1:{port}/data/ro%C3%BCws.csv?key=1"
        result = await bench.run(
            http_download, {"url": url, "sha256": hashlib.sha256(DATA).hexdigest().upper()}
        )
    assert result["status"] == 200
    assert result["file"]["name"] == "roüws.csv"
    assert result["file"]["size"] == len(DATA)
    assert result["file"]["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert result["file"]["content_type"] == "text/csv"
    assert stored(tmp_path) == [DATA]
    totals = [one["total"] for one in bench.kept.progressed]
    assert set(totals) == {len(DATA)}
    assert bench.kept.progressed[-1]["current"] == len(DATA)
    jsonschema_rs.validator_for(TASK.entry.result_schema).validate(result)


@pytest.mark.parametrize(
    ("path", "disposition", "name"),
    [
        ("/a/b.bin", None, "b.bin"),
        ("/", None, "download"),
        ("/x", 'attachment; filename="report 1.csv"', "report 1.csv"),
        ("/x", "attachment; filename*=UTF-8''gr%C3%BC%C3%9Fe.txt", "grüße.txt"),
        ("/x", 'attachment; filename="../../etc/passwd"', "passwd"),
        ("/x", 'attachment; filename="C:\\\\temp\\\\a.txt"', "a.txt"),
        ("/x", 'attachment; filename=".."', "x"),
        ("/x", "attachment; filename*=klingon''a", "a"),
        ("/x", ";;;=", "x"),
        ("/%2e%2e%2fpasswd", None, "passwd"),
        (f"/{'a' * 300}", None, "download"),
    ],
)
async def test_the_name_comes_from_the_response_or_the_url(
    bench: Bench, path: str, disposition: str | None, name: str
) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(headers={"Content-Disposition": disposition} if disposition else {})

    async with serving(handler) as port:
        result = await bench.run(http_download, {"url": f"http://127.0.0.1:{port}{path}"})
        named = await bench.run(
            http_download, {"url": f"http://127.0.0.1:{port}{path}", "name": "in/my.bin"}
        )
    assert (result["file"]["name"], named["file"]["name"]) == (name, "in/my.bin")


@pytest.mark.parametrize(
    "headers",
    [ETAG, {"Last-Modified": "Sat, 21 Nov 2015 09:00:00 GMT"}],
    ids=["etag", "last-modified"],
)
async def test_a_broken_download_is_resumed(
    bench: Bench, tmp_path: Path, headers: dict[str, str]
) -> None:
    site = Site(headers=headers)
    site.breaks = [1_000_000, 1_500_000, 1]
    async with serving(site) as port:
        result = await bench.run(http_download, {"url": f"http://127.0.0.1:{port}/a"})
    (validator,) = headers.values()
    starts = [
        int((wanted or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        for wanted, _ in site.asked
    ]
    # What the client had read when the connection broke: never more than was sent, and it only goes
    # forward.
    assert starts == sorted(starts)
    assert starts[1] <= 1_000_000
    assert len(site.asked) == 4
    assert starts[-1] > 0
    assert {condition for _, condition in site.asked[1:]} == {validator}
    assert stored(tmp_path) == [DATA]
    assert result["status"] == 200
    assert result["file"]["sha256"] == hashlib.sha256(DATA).hexdigest()


async def test_a_changed_body_restarts_the_download(bench: Bench, tmp_path: Path) -> None:
    site = Site()
    other = DATA[::-1]

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if len(site.asked) == 1:
            site.data, site.headers = other, {"ETag": '"two"'}
        return await site(request)

    site.breaks = [2_000_000]
    async with serving(handler) as port:
        result = await bench.run(http_download, {"url": f"http://127.0.0.1:{port}/a"})
    assert len(site.asked) == 2
    assert stored(tmp_path) == [other]
    assert result["file"]["sha256"] == hashlib.sha256(other).hexdigest()


async def test_without_ranges_the_download_restarts(bench: Bench, tmp_path: Path) -> None:
    site = Site()
    site.ranges, site.breaks = False, [2_000_000]
    async with serving(site) as port:
        await bench.run(http_download, {"url": f"http://127.0.0.1:{port}/a"})
    assert [wanted is None for wanted, _ in site.asked] == [True, False]
    assert stored(tmp_path) == [DATA]


async def test_the_attempt_fails_if_every_response_breaks_off(bench: Bench, tmp_path: Path) -> None:
    site = Site()
    site.ranges, site.breaks = False, [1_000_000] * 20
    async with serving(site) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a"})
    assert (error.type, error.retryable) == ("connection_failed", True)
    assert len(site.asked) < 10
    assert stored(tmp_path) == []


async def test_failures_without_a_new_byte_are_limited(bench: Bench, tmp_path: Path) -> None:
    site = Site()
    site.breaks = [1_000_000, *[0] * 50]
    async with serving(site) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a"})
    assert (error.type, error.retryable) == ("connection_failed", True)
    assert len(site.asked) == 6
    assert stored(tmp_path) == []


@pytest.mark.parametrize(
    "headers",
    [{}, {"ETag": 'W/"weak"'}, {"ETag": 'W/"w"', "Last-Modified": "Sat, 21 Nov 2015 09:00:00 GMT"}],
)
async def test_without_a_validator_parts_are_not_joined(
    bench: Bench, headers: dict[str, str]
) -> None:
    site = Site(headers=headers)
    site.breaks = [1_000_000]
    async with serving(site) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a"})
    assert (error.type, error.retryable, len(site.asked)) == ("connection_failed", True, 1)


@pytest.mark.parametrize(
    "range_",
    [
        "bytes 0-9/3145728",
        "bytes 5-3145727/3145728",
        "bytes */3145728",
        "pages 1-2/3",
        "",
        "bytes {start}-9999999/*",
    ],
)
async def test_a_range_that_was_not_requested_is_refused(
    bench: Bench, tmp_path: Path, range_: str
) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        wanted = request.headers.get("Range")
        if wanted is None:
            return await send(request, DATA, 200, ETAG, 1_000_000)
        start = wanted.removeprefix("bytes=").removesuffix("-")
        # The last of the table begins where it should, but it is of something else.
        etag = {"ETag": '"two"'} if "{start}" in range_ else ETAG
        return web.Response(
            status=206,
            body=b"x" * 10,
            headers={**etag, "Content-Range": range_.format(start=start)},
        )

    async with serving(handler) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a"})
    assert (error.type, error.retryable) == ("bad_response", True)
    assert stored(tmp_path) == []


async def test_a_body_that_shrank_restarts_the_download(bench: Bench, tmp_path: Path) -> None:
    asked: list[str | None] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.headers.get("Range"))
        if len(asked) == 1:
            return await send(request, DATA, 200, ETAG, 2_000_000)
        return web.Response(status=416) if asked[-1] else web.Response(body=b"short", headers=ETAG)

    async with serving(handler) as port:
        await bench.run(http_download, {"url": f"http://127.0.0.1:{port}/a"})
    assert stored(tmp_path) == [b"short"]
    assert [wanted is not None for wanted in asked] == [False, True, False]


async def test_a_busy_server_is_called_again_within_the_attempt(
    bench: Bench, tmp_path: Path
) -> None:
    site = Site()
    site.breaks = [1_000_000]
    busy = 2

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal busy
        if site.asked and busy:
            busy -= 1
            return web.Response(status=503)
        return await site(request)

    async with serving(handler) as port:
        await bench.run(http_download, {"url": f"http://127.0.0.1:{port}/a"})
    assert stored(tmp_path) == [DATA]


@pytest.mark.parametrize("said", [True, False])
async def test_a_wrong_sha256_fails_at_once_unless_the_body_may_have_been_cut(
    bench: Bench, said: bool
) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        if said:
            response.content_length = 3
        await response.prepare(request)
        await response.write(b"abc")
        return response

    async with serving(handler) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a", "sha256": "0" * 64})
    assert (error.type, error.retryable) == ("sha256_mismatch", not said)
    assert hashlib.sha256(b"abc").hexdigest() in error.message


@pytest.mark.parametrize("said", [True, False])
async def test_more_than_max_bytes_is_too_large(bench: Bench, tmp_path: Path, said: bool) -> None:
    sent = 0

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        if said:
            response.content_length = 1 << 40
        await response.prepare(request)
        while True:
            await response.write(bytes(1 << 16))
            sent += 1 << 16

    async with serving(handler) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a", "max_bytes": 2_000_000})
    assert (error.type, error.retryable) == ("too_large", False)
    assert stored(tmp_path) == []
    assert sent < 32 << 20


async def test_max_bytes_counts_decompressed_bytes(bench: Bench, tmp_path: Path) -> None:
    packed = gzip.compress(bytes(5 << 20))

    async def handler(request: web.BaseRequest) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=packed, headers={"Content-Encoding": "gzip", **ETAG})

    async with serving(handler) as port:
        url = f"http://127.0.0.1:{port}/a"
        headers = {"accept-encoding": "gzip"}
        error = await failure(bench, {"url": url, "max_bytes": (5 << 20) - 1, "headers": headers})
        await bench.run(http_download, {"url": url, "max_bytes": 5 << 20, "headers": headers})
    assert error.type == "too_large"
    assert stored(tmp_path) == [bytes(5 << 20)]


@pytest.mark.parametrize(
    ("status", "retryable"), [(404, False), (206, False), (304, False), (429, True), (503, True)]
)
async def test_unexpected_statuses_of_a_download(
    bench: Bench, status: int, retryable: bool
) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status, headers={"Retry-After": "7"})

    async with serving(handler) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a?key=abc"})
    assert (error.type, error.retryable, error.after) == (
        "http_status",
        retryable,
        7 if retryable else None,
    )
    assert "abc" not in error.message


async def test_retry_after_ends_the_attempt(bench: Bench) -> None:
    site = Site()
    site.breaks = [1_000_000]

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return (
            web.Response(status=503, headers={"Retry-After": "7"})
            if site.asked
            else await site(request)
        )

    async with serving(handler) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a"})
    assert (error.type, error.retryable, error.after) == ("http_status", True, 7)


async def test_a_silent_server_counts_as_broken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_worker.tasks.http.download.STALL_TIMEOUT_SECONDS", 0.05)
    hold = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one")
        await hold.wait()
        return response

    async with serving(handler) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a"})
        hold.set()
    assert (error.type, error.retryable) == ("connection_failed", True)
    assert "no byte for" in error.message


async def test_a_cancelled_download_closes_its_connection_and_stores_nothing(
    bench: Bench, tmp_path: Path
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        begun.set()
        try:
            while True:
                await response.write(bytes(1 << 16))
        finally:
            ended.set()

    async with serving(handler) as port:
        running = asyncio.create_task(
            bench.run(http_download, {"url": f"http://127.0.0.1:{port}/a"})
        )
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.wait_for(ended.wait(), 10)
    assert stored(tmp_path) == []


async def test_a_reset_before_the_first_byte_fails_the_attempt(bench: Bench) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        raw: socket.socket = request.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
        return web.Response()

    async with serving(handler) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a"})
    assert (error.type, error.retryable) == ("connection_failed", True)


async def test_every_request_carries_the_trace(bench: Bench) -> None:
    seen: list[str | None] = []
    site = Site()
    site.breaks = [1_000_000]

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.headers.get("traceparent"))
        return await site(request)

    async with serving(handler) as port:
        await bench.run(
            http_download, {"url": f"http://127.0.0.1:{port}/a"}, traceparent="00-1-2-01"
        )
    await eventually(lambda: seen == ["00-1-2-01"] * 2)
