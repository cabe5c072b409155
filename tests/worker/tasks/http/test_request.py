"""`http.request` as a job, against real servers on loopback."""

import base64
import gzip
import zlib
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest
from aiohttp import web
from multidict import CIMultiDict
from pydantic import ValidationError

from tandem_worker.errors import TaskError
from tandem_worker.task import task_of
from tandem_worker.tasks.http.request import request as http_request
from tests.worker.bench import Bench
from tests.worker.connectors.http.servers import echo, serving

TASK = task_of(http_request)
SCHEMA = jsonschema_rs.validator_for(TASK.entry.payload_schema)


async def failure(bench: Bench, payload: dict[str, Any], **job: Any) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await bench.run(http_request, payload, **job)
    return caught.value


async def test_a_get_request(bench: Bench) -> None:
    async with serving(echo) as port:
        result = await bench.run(
            http_request, {"url": f"http://127.0.0.1:{port}/a?b=1#c", "params": {"d": 2}}
        )
    assert result["status"] == 200
    assert result["url"] == f"http://127.0.0.1:{port}/a?b=1&d=2"
    assert result["headers"]["content-type"] == "application/json; charset=utf-8"
    assert result["json"]["path"] == "/a?b=1&d=2"
    assert result["elapsed_ms"] > 0
    assert set(result) == {"status", "headers", "url", "elapsed_ms", "json"}
    jsonschema_rs.validator_for(TASK.entry.result_schema).validate(result)


async def test_post_json_text_and_a_file(bench: Bench) -> None:
    data = bytes(range(256)) * 1000

    async def handler(request: web.BaseRequest) -> web.Response:
        body = await request.read()
        names = ("Content-Type", "Content-Length", "Transfer-Encoding")
        return web.json_response(
            {"headers": [request.headers.get(name) for name in names], "body": len(body)}
        )

    async with serving(handler) as port:
        url = f"http://127.0.0.1:{port}/"
        one = await bench.run(http_request, {"url": url, "method": "POST", "json": {"a": 2**70}})
        two = await bench.run(http_request, {"url": url, "method": "PUT", "body": "grüße"})
        upload = await bench.upload("body.bin", data, "image/png")
        three = await bench.run(
            http_request, {"url": url, "method": "POST", "body_file": {"file": upload}}
        )
    assert one["json"] == {"headers": ["application/json", "28", None], "body": 28}
    assert two["json"] == {"headers": ["text/plain; charset=utf-8", "7", None], "body": 7}
    assert three["json"] == {"headers": ["image/png", str(len(data)), None], "body": len(data)}


async def test_a_missing_body_file_fails_permanently(bench: Bench) -> None:
    error = await failure(
        bench, {"url": "http://127.0.0.1:1/", "method": "POST", "body_file": {"file": "0" * 22}}
    )
    assert (error.type, error.retryable) == ("file_not_found", False)


async def test_the_jobs_trace_is_sent_unless_the_payload_has_one(bench: Bench) -> None:
    async with serving(echo) as port:
        payload: dict[str, Any] = {"url": f"http://127.0.0.1:{port}/"}
        carried = await bench.run(http_request, payload, traceparent="00-1-2-01")
        own = await bench.run(
            http_request, {**payload, "headers": {"Traceparent": "own"}}, traceparent="00-1-2-01"
        )
    assert carried["json"]["headers"]["traceparent"] == "00-1-2-01"
    assert CIMultiDict(own["json"]["headers"]).getall("traceparent") == ["own"]


@pytest.mark.parametrize(
    ("content_type", "body", "key", "expected"),
    [
        (
            "application/json",
            b'{"a": [1, 12345678901234567890123]}',
            "json",
            {"a": [1, 12345678901234567890123]},
        ),
        ("application/problem+json", b"null", "json", None),
        ("application/json", b"{broken", "text", "{broken"),
        ("application/json", b"\xff\xfe", "base64", "//4="),
        ("application/json", b"", "text", ""),
        ("text/html; charset=latin-1", "größe".encode("latin-1"), "text", "größe"),
        ("text/plain", b"\xff", "base64", "/w=="),
        ("text/plain; charset=klingon", b"a", "base64", "YQ=="),
        ("application/octet-stream", b"plain", "base64", "cGxhaW4="),
        ("image/svg+xml", b"<svg/>", "text", "<svg/>"),
        ("application/x-ndjson", b"{}\n{}\n", "text", "{}\n{}\n"),
        ("image/png", b"\x89PNG", "base64", "iVBORw=="),
    ],
)
async def test_the_body_is_decoded_by_its_type_and_its_bytes(
    bench: Bench, content_type: str, body: bytes, key: str, expected: Any
) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(body=body, headers={"Content-Type": content_type})

    async with serving(handler) as port:
        result = await bench.run(http_request, {"url": f"http://127.0.0.1:{port}/"})
    assert {name: result[name] for name in ("json", "text", "base64") if name in result} == {
        key: expected
    }


async def test_repeated_headers_are_joined(bench: Bench) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(
            headers=[("X-A", "1"), ("x-a", "2"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
        )

    async with serving(handler) as port:
        result = await bench.run(http_request, {"url": f"http://127.0.0.1:{port}/"})
    assert (result["headers"]["x-a"], result["headers"]["set-cookie"]) == ("1, 2", "a=1\nb=2")


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
async def test_max_bytes_counts_decompressed_bytes(bench: Bench, encoding: str) -> None:
    size = 3 << 20
    packers: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
    packed = packers.get(encoding, bytes)(bytes(size))

    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": encoding})

    async with serving(handler) as port:
        url = f"http://127.0.0.1:{port}/"
        error = await failure(bench, {"url": url})
        complete = await bench.run(http_request, {"url": url, "max_bytes": size})
        short = await failure(bench, {"url": url, "max_bytes": size - 1})
    assert (error.type, error.retryable, short.type) == ("too_large", False, "too_large")
    assert len(base64.b64decode(complete["base64"])) == size


@pytest.mark.parametrize(
    ("status", "method", "extra", "retryable"),
    [
        (408, "GET", {}, True),
        (425, "GET", {}, True),
        (429, "HEAD", {}, True),
        (500, "GET", {}, True),
        (503, "OPTIONS", {}, True),
        (501, "GET", {}, True),
        (400, "GET", {}, False),
        (404, "GET", {}, False),
        (304, "GET", {}, False),
        (503, "POST", {}, False),
        (503, "PUT", {}, False),
        (503, "POST", {"retry_unsafe": True}, True),
        (503, "POST", {"headers": {"Idempotency-Key": "a"}}, True),
        (404, "POST", {"retry_unsafe": True}, False),
        (200, "GET", {"expect_status": ["4xx"]}, False),
    ],
)
async def test_unexpected_statuses(
    bench: Bench, status: int, method: str, extra: dict[str, Any], retryable: bool
) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status)

    async with serving(handler) as port:
        error = await failure(
            bench, {"url": f"http://127.0.0.1:{port}/p?key=secret", "method": method, **extra}
        )
    assert (error.type, error.retryable) == ("http_status", retryable)
    assert error.message == f"{method} http://127.0.0.1:{port}/p answered {status}"


@pytest.mark.parametrize("pattern", [404, "404", "4xx", "4XX", "400-499", "404-404"])
async def test_a_status_can_be_expected(bench: Bench, pattern: int | str) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(status=404, text="none")

    async with serving(handler) as port:
        payload = {"url": f"http://127.0.0.1:{port}/", "expect_status": ["2xx", pattern]}
        assert (await bench.run(http_request, payload))["status"] == 404


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", 7),
        ("0", 0),
        ("999999999", 7 * 86400),
        ("Sat, 21 Nov 2026 09:01:30 GMT", 90),
        ("Saturday, 21-Nov-26 09:01:30 GMT", 90),
        ("Sat Nov 21 09:01:30 2026", 90),
        ("Sat, 21 Nov 2026 08:59:00 GMT", 0),
    ],
)
async def test_retry_after_delays_the_next_attempt(
    bench: Bench, value: str, expected: float
) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        # A date counts from the server's clock, even if that is wrong.
        return web.Response(
            status=503, headers={"Retry-After": value, "Date": "Sat, 21 Nov 2026 09:00:00 GMT"}
        )

    async with serving(handler) as port:
        error = await failure(bench, {"url": f"http://127.0.0.1:{port}/"})
    assert (error.retryable, error.after) == (True, expected)


@pytest.mark.parametrize("value", ["", "soon", "-5", "1.5", "Wed, 99 Foo 2026"])
async def test_an_invalid_retry_after_is_ignored(bench: Bench, value: str) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": value})

    async with serving(handler) as port:
        assert (await failure(bench, {"url": f"http://127.0.0.1:{port}/"})).after is None


URL = "https://example.org/"
REFUSED: list[dict[str, Any]] = [
    {},
    {"url": "ftp://example.org/"},
    {"url": "file:///etc/passwd"},
    {"url": "//example.org/"},
    {"url": "https://"},
    {"url": "https:///path"},
    {"url": "https://user@example.org/"},
    {"url": "https://user:pw@example.org/"},
    {"url": "https://exa mple.org/"},
    {"url": "https://example.org\\@evil.org/"},
    {"url": "https://example.org/\r\nX: y"},
    {"url": URL, "method": "TRACE"},
    {"url": URL, "method": "CONNECT"},
    {"url": URL, "method": "get"},
    {"url": URL, "unknown": 1},
    {"url": URL, "headers": {"Host": "x"}},
    {"url": URL, "headers": {"host": "x"}},
    {"url": URL, "headers": {"CONTENT-LENGTH": "1"}},
    {"url": URL, "headers": {"Transfer-Encoding": "chunked"}},
    {"url": URL, "headers": {"Connection": "close"}},
    {"url": URL, "headers": {"te": "trailers"}},
    {"url": URL, "headers": {"Trailer": "x"}},
    {"url": URL, "headers": {"Upgrade": "h2c"}},
    {"url": URL, "headers": {"Keep-Alive": "1"}},
    {"url": URL, "headers": {"Proxy-Authorization": "x"}},
    {"url": URL, "headers": {"proxy-anything": "x"}},
    {"url": URL, "headers": {"Forwarded": "for=x"}},
    {"url": URL, "headers": {"X-Forwarded-For": "x"}},
    {"url": URL, "headers": {"Metadata-Flavor": "Google"}},
    {"url": URL, "headers": {"Metadata": "true"}},
    {"url": URL, "headers": {"X-aws-ec2-metadata-token-ttl-seconds": "1"}},
    {"url": URL, "headers": {"X-Metadata-Token": "1"}},
    {"url": URL, "headers": {"X-A": "1\r\nHost: y"}},
    {"url": URL, "headers": {"X-A": "1\n"}},
    {"url": URL, "headers": {"X-A": "a\u0000"}},
    {"url": URL, "headers": {"X A": "1"}},
    {"url": URL, "headers": {"X-A\n": "1"}},
    {"url": URL, "headers": {"": "1"}},
    {"url": URL, "headers": {"X-A": 1}},
    {"url": URL, "expect_status": []},
    {"url": URL, "expect_status": ["6xx"]},
    {"url": URL, "expect_status": ["200-"]},
    {"url": URL, "expect_status": [99]},
    {"url": URL, "max_bytes": -1},
    {"url": URL, "max_bytes": 1 << 40},
    {"url": URL, "json": 1, "body": "x"},
    {"url": URL, "body": "x", "body_file": {"file": "x"}},
    {"url": URL, "params": {"a": {"b": 1}}},
]


@pytest.mark.parametrize("payload", REFUSED)
def test_the_schema_and_the_worker_refuse_the_same(payload: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid(payload)
    with pytest.raises(ValidationError):
        TASK.signature.payload.validate_python(payload)


ACCEPTED: list[dict[str, Any]] = [
    {"url": "HTTPS://Example.org"},
    {"url": "http://127.0.0.1:8000/a b?c=d#e"},
    {"url": "http://[::1]:80?x"},
    {"url": "https://例え.テスト/"},
    {
        "url": URL,
        "headers": {"X-A": "tab\tand ü", "hosts": "1", "X-Forwarded": "1"},
        "method": "PATCH",
    },
    {"url": URL, "headers": None, "params": None, "json": None, "body": None, "body_file": None},
    {"url": URL, "json": None, "body": "x"},
    {"url": URL, "json": False},
    {"url": URL, "params": {"a": [1, "b", True, None, 1.5]}},
    {"url": URL, "expect_status": ["2xx", 404, "500-599"]},
]


@pytest.mark.parametrize("payload", ACCEPTED)
def test_the_schema_and_the_worker_accept_the_same(payload: dict[str, Any]) -> None:
    SCHEMA.validate(payload)
    TASK.signature.payload.validate_python(payload)
