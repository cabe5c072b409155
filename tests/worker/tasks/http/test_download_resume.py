"""`http.download` after broken connections: resumed, restarted, or failed."""

import asyncio
import hashlib
import socket
import struct
from pathlib import Path

import pytest
from aiohttp import web

from tandem_worker.tasks.http.download import download as http_download
from tests.worker.bench import Bench
from tests.worker.connectors.http.servers import serving
from tests.worker.tasks.http.downloads import DATA, ETAG, Site, failure, send, stored


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem_worker.tasks.http.download.FIRST_PAUSE_SECONDS", 0.001)


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
        for wanted, _ in site.requests
    ]
    # The client resumes at the bytes it has received: never more than were sent, and only forward.
    assert starts == sorted(starts)
    assert starts[1] <= 1_000_000
    assert len(site.requests) == 4
    assert starts[-1] > 0
    assert {condition for _, condition in site.requests[1:]} == {validator}
    assert stored(tmp_path) == [DATA]
    assert result["status"] == 200
    assert result["file"]["sha256"] == hashlib.sha256(DATA).hexdigest()


async def test_a_changed_body_restarts_the_download(bench: Bench, tmp_path: Path) -> None:
    site = Site()
    other = DATA[::-1]

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if len(site.requests) == 1:
            site.data, site.headers = other, {"ETag": '"two"'}
        return await site(request)

    site.breaks = [2_000_000]
    async with serving(handler) as port:
        result = await bench.run(http_download, {"url": f"http://127.0.0.1:{port}/a"})
    assert len(site.requests) == 2
    assert stored(tmp_path) == [other]
    assert result["file"]["sha256"] == hashlib.sha256(other).hexdigest()


async def test_without_ranges_the_download_restarts(bench: Bench, tmp_path: Path) -> None:
    site = Site()
    site.ranges, site.breaks = False, [2_000_000]
    async with serving(site) as port:
        await bench.run(http_download, {"url": f"http://127.0.0.1:{port}/a"})
    assert [wanted is None for wanted, _ in site.requests] == [True, False]
    assert stored(tmp_path) == [DATA]


async def test_the_attempt_fails_if_every_response_breaks_off(bench: Bench, tmp_path: Path) -> None:
    site = Site()
    site.ranges, site.breaks = False, [1_000_000] * 20
    async with serving(site) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a"})
    assert (error.type, error.retryable) == ("connection_failed", True)
    assert len(site.requests) < 10
    assert stored(tmp_path) == []


async def test_failures_without_a_new_byte_are_limited(bench: Bench, tmp_path: Path) -> None:
    site = Site()
    site.breaks = [1_000_000, *[0] * 50]
    async with serving(site) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a"})
    assert (error.type, error.retryable) == ("connection_failed", True)
    assert len(site.requests) == 6
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
    assert (error.type, error.retryable, len(site.requests)) == ("connection_failed", True, 1)


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
        # The last case starts at the right byte, but belongs to another body.
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
        if site.requests and busy:
            busy -= 1
            return web.Response(status=503)
        return await site(request)

    async with serving(handler) as port:
        await bench.run(http_download, {"url": f"http://127.0.0.1:{port}/a"})
    assert stored(tmp_path) == [DATA]


async def test_retry_after_ends_the_attempt(bench: Bench) -> None:
    site = Site()
    site.breaks = [1_000_000]

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return (
            web.Response(status=503, headers={"Retry-After": "7"})
            if site.requests
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
