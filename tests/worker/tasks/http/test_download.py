"""`http.download`: names, limits, statuses, cancellation."""

import asyncio
import gzip
import hashlib
from pathlib import Path

import jsonschema_rs
import pytest
from aiohttp import web

from tandem_worker.tasks.http.download import download as http_download
from tests.conftest import eventually
from tests.worker.bench import Bench
from tests.worker.connectors.http.servers import serving
from tests.worker.tasks.http.downloads import DATA, ETAG, TASK, Site, failure, stored


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
    totals = [one["total"] for one in bench.recorder.progressed]
    assert set(totals) == {len(DATA)}
    assert bench.recorder.progressed[-1]["current"] == len(DATA)
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


@pytest.mark.parametrize("declared", [True, False])
async def test_a_wrong_sha256_fails_at_once_unless_the_body_may_have_been_cut(
    bench: Bench, declared: bool
) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        if declared:
            response.content_length = 3
        await response.prepare(request)
        await response.write(b"abc")
        return response

    async with serving(handler) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/a", "sha256": "0" * 64})
    assert (error.type, error.retryable) == ("sha256_mismatch", not declared)
    assert hashlib.sha256(b"abc").hexdigest() in error.message


@pytest.mark.parametrize("declared", [True, False])
async def test_more_than_max_bytes_is_too_large(
    bench: Bench, tmp_path: Path, declared: bool
) -> None:
    sent = 0

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        if declared:
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
