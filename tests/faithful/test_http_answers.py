"""Answers of a hostile server: what a task makes of them, and what curl does."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import brotli
import pytest

from tandem_worker.errors import TaskError
from tandem_worker.tasks.http.download import download
from tandem_worker.tasks.http.gather import gather
from tandem_worker.tasks.http.request import request
from tandem_worker.tasks.http.webhook import webhook
from tests.faithful.http_servers import CHUNKED, CURL, OK, TWO, body_or_error, curl, serving, target
from tests.worker.bench import Bench, open_bench


def typed(value: str) -> bytes:
    return OK + f"Content-Type: {value}\r\n".encode("latin-1") + TWO


# Each answer, and the body that it has or the type of its error.
ANSWERS: dict[str, tuple[bytes, bytes | str]] = {
    "plain": (OK + TWO, b"ok"),
    "no reason": (b"HTTP/1.1 200\r\n" + TWO, b"ok"),
    "empty reason": (b"HTTP/1.1 200 \r\n" + TWO, b"ok"),
    "reason in latin-1": (b"HTTP/1.1 200 \xe9t\xe9\r\n" + TWO, b"ok"),
    "HTTP/1.0 until the end": (b"HTTP/1.0 200 OK\r\n\r\nok", b"ok"),
    "HTTP/1.1 until the end": (OK + b"\r\nok", b"ok"),
    "line feeds alone": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", b"ok"),
    "status 404": (b"HTTP/1.1 404 No\r\n" + TWO, b"ok"),
    "status 299": (b"HTTP/1.1 299 X\r\n" + TWO, b"ok"),
    "status 503": (b"HTTP/1.1 503 X\r\n" + TWO, b"ok"),
    "status 99": (b"HTTP/1.1 99 X\r\n" + TWO, "bad_response"),
    "HTTP/0.9": (b"hello", "bad_response"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", "bad_response"),
    "no answer": (b"", "connection_failed"),
    "half a header": (b"HTTP/1.1 200 OK\r\nX: y", "connection_failed"),
    "interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK + TWO,
        b"ok",
    ),
    "204 with a body": (b"HTTP/1.1 204 No Content\r\n" + TWO, b""),
    "204 in chunks": (b"HTTP/1.1 204 No Content\r\n" + CHUNKED + b"0\r\n\r\n", b""),
    "204 and a last chunk": (b"HTTP/1.1 204 No Content\r\n\r\n0\r\n\r\n", b""),
    "304 with a length": (b"HTTP/1.1 304 X\r\nContent-Length: 9\r\n\r\n", b""),
    "304 with a body": (b"HTTP/1.1 304 X\r\n" + TWO, b""),
    "more than the length": (OK + TWO + b"more", b"ok"),
    "another answer after it": (OK + TWO + OK + TWO, b"ok"),
    "more than no bytes": (OK + b"Content-Length: 0\r\n\r\nmore", b""),
    "less than the length": (OK + b"Content-Length: 9\r\n\r\nok", "connection_failed"),
    "two equal lengths": (OK + b"Content-Length: 2\r\n" + TWO, b"ok"),
    "three equal lengths": (OK + b"Content-Length: 2\r\ncontent-length:2\r\n" + TWO, b"ok"),
    "two lengths": (OK + b"Content-Length: 3\r\n" + TWO, "bad_response"),
    "a negative length": (OK + b"Content-Length: -1\r\n\r\nok", "bad_response"),
    "a length that is a word": (OK + b"Content-Length: two\r\n\r\nok", "bad_response"),
    "chunks": (OK + CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n", b"ok"),
    "chunk extensions": (OK + CHUNKED + b"2;a=b\r\nok\r\n0\r\n\r\n", b"ok"),
    "trailers": (OK + CHUNKED + b"2\r\nok\r\n0\r\nT: x\r\n\r\n", b"ok"),
    "more than the chunks": (OK + CHUNKED + b"2\r\nok\r\n0\r\n\r\nmore", b"ok"),
    "chunks and a length": (
        OK + b"Content-Length: 9\r\n" + CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
        b"ok",
    ),
    "a chunk without a size": (OK + CHUNKED + b"zz\r\nok\r\n", "connection_failed"),
    "no last chunk": (OK + CHUNKED + b"2\r\nok\r\n", "connection_failed"),
    "half a chunk": (OK + CHUNKED + b"9\r\nok", "connection_failed"),
    "9,000 bytes of header": (OK + b"X: " + b"a" * 9000 + b"\r\n" + TWO, b"ok"),
    "60,000 bytes of header": (OK + b"X: " + b"a" * 60_000 + b"\r\n" + TWO, b"ok"),
    "70,000 bytes of header": (OK + b"X: " + b"a" * 70_000 + b"\r\n" + TWO, "too_large"),
    "200 headers": (OK + b"X: a\r\n" * 200 + TWO, b"ok"),
    "1,000 headers": (OK + b"X: a\r\n" * 999 + TWO, b"ok"),
    "1,200 headers": (OK + b"X: a\r\n" * 1200 + TWO, "too_large"),
    "300,000 bytes of headers": (OK + (b"X: " + b"a" * 50_000 + b"\r\n") * 6 + TWO, "too_large"),
    "a header without a value": (OK + b"X:\r\n" + TWO, b"ok"),
    "a header in latin-1": (OK + b"X: \xe9\r\n" + TWO, b"ok"),
    "a folded header": (OK + b"X: a\r\n b\r\n" + TWO, b"ok"),
    "a NUL in a header": (OK + b"X: a\0b\r\n" + TWO, "bad_response"),
    "an unknown coding": (OK + b"Content-Encoding: x\r\n" + TWO, b"ok"),
    "not gzip": (OK + b"Content-Encoding: gzip\r\n" + TWO, "bad_response"),
    "not br": (OK + b"Content-Encoding: br\r\n\r\n\xff\xff\xff\xff", "bad_response"),
    "br": (OK + b"Content-Encoding: br\r\n\r\n" + brotli.compress(b"ok"), b"ok"),
    "charset=undefined": (typed("text/plain; charset=undefined"), b"ok"),
    "charset=punycode": (typed("text/plain; charset=punycode"), b"ok"),
    "charset=idna": (typed("text/plain; charset=idna"), b"ok"),
    "charset=unicode_escape": (typed("text/plain; charset=unicode_escape"), b"ok"),
    "charset=rot13": (typed("text/plain; charset=rot13"), b"ok"),
    "charset=klingon": (typed("text/plain; charset=klingon"), b"ok"),
    "charset=é": (typed("text/plain; charset=é"), b"ok"),
    "charset without a value": (typed("text/plain; charset="), b"ok"),
    "a type that is none": (typed(";;="), b"ok"),
    "half a surrogate pair": (
        OK + b"Content-Type: text/plain; charset=utf-7\r\n\r\n+2AA-",
        b"+2AA-",
    ),
    "deep JSON": (
        OK + b"Content-Type: application/json\r\n\r\n" + b"[" * 400 + b"]" * 400,
        b"[" * 400 + b"]" * 400,
    ),
    "a location that is none": (
        b"HTTP/1.1 302 X\r\nLocation: http://[\r\n\r\n",
        "redirect_refused",
    ),
    "a location out of HTTP": (b"HTTP/1.1 302 X\r\nLocation: ftp://h/\r\n\r\n", "redirect_refused"),
    "a redirect to itself": (b"HTTP/1.1 302 X\r\nLocation: /\r\n" + TWO, "redirect_refused"),
    "a redirect without a location": (b"HTTP/1.1 302 X\r\n" + TWO, b"ok"),
}
# curl has other bounds, takes lengths that contradict each other and headers that break off, and
# refuses a coding that it does not know; a task returns such a body as it came.
CURL_DIFFERS = {
    "status 99",
    "1,200 headers",
    "70,000 bytes of header",
    "300,000 bytes of headers",
    "half a header",
    "two lengths",
    "an unknown coding",
}
TARGETS = [
    "/f%27b%28a%29r?x=application%2Fgzip&X-Amz-Credential=a%40b%2Fc",
    "/a'b(c)!*,;:@&=+$~_-.",
    "/%7e%41%zz/100%",
    "/?a=b+c%20d&&e==f&g",
    "/a//b///",
    "/p;v=1?q=/?",
    '/|^`<>"?{}',
]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_its_body_or_a_documented_error(bench: Bench, name: str) -> None:
    answer, expected = ANSWERS[name]
    async with serving(answer) as (url, _):
        assert await body_or_error(bench, f"{url}/") == expected


@pytest.mark.skipif(CURL is None, reason="curl is not on PATH")
@pytest.mark.parametrize("name", [name for name in ANSWERS if name not in CURL_DIFFERS])
async def test_curl_reads_the_same(name: str) -> None:
    answer, expected = ANSWERS[name]
    async with serving(answer) as (url, _):
        code, body = await curl("-L", "--compressed", f"{url}/")
    assert (code == 0, body if code == 0 else b"") == (
        isinstance(expected, bytes),
        expected if isinstance(expected, bytes) else b"",
    )


@pytest.mark.parametrize("path", TARGETS)
async def test_a_url_goes_out_byte_for_byte(bench: Bench, path: str) -> None:
    async with serving(OK + TWO) as (url, requests):
        await body_or_error(bench, url + path)
    assert target(requests[0]) == path.encode()
    if CURL is not None:
        async with serving(OK + TWO) as (url, requests):
            await curl("-g", url + path)
        assert target(requests[0]) == path.encode()


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (b"/caf\xe9", b"/caf%E9"),
        ("/café".encode(), b"/caf%C3%A9"),
        (b"/f%27b%28a%29r?x=a%2Fb", b"/f%27b%28a%29r?x=a%2Fb"),
        (b"next?x='1'", b"/dir/next?x='1'"),
        (b"../up", b"/up"),
        (b"?only=query", b"/dir/page?only=query"),
        (b"/a/./b/../c", b"/a/c"),
        (b"/a b", b"/a%20b"),
        (b"/x#fragment", b"/x"),
    ],
)
async def test_a_redirect_goes_to_the_bytes_of_its_location(
    bench: Bench, location: bytes, expected: bytes
) -> None:
    moved = b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"
    async with serving(moved, OK + TWO) as (url, requests):
        assert await body_or_error(bench, f"{url}/dir/page?q") == b"ok"
    assert target(requests[1]) == expected
    if CURL is not None:
        async with serving(moved, OK + TWO) as (url, requests):
            await curl("-L", f"{url}/dir/page?q")
        # This curl writes hexadecimal digits in lower case, RFC 3986 in upper case.
        assert target(requests[1]).lower() == expected.lower()


@pytest.mark.parametrize(
    "name", ["204 with a body", "204 and a last chunk", "more than the length"]
)
async def test_a_delivered_webhook_is_one_post(bench: Bench, name: str) -> None:
    async with serving(ANSWERS[name][0]) as (url, requests):
        await bench.run(webhook, {"url": f"{url}/", "type": "t", "data": 1})
    assert [request.split(b" ")[0] for request in requests] == [b"POST"]


async def test_the_passed_bound_of_headers_is_named(bench: Bench) -> None:
    for name, bound in [
        ("70,000 bytes of header", "64 KiB"),
        ("1,200 headers", "1000 headers"),
        ("300,000 bytes of headers", "256 KiB"),
    ]:
        async with serving(ANSWERS[name][0]) as (url, _):
            with pytest.raises(TaskError, match=bound) as caught:
                await bench.run(request, {"url": f"{url}/"})
        assert not caught.value.retryable


async def test_a_bomb_in_br_ends_at_max_bytes(bench: Bench) -> None:
    bomb = OK + b"Content-Encoding: br\r\n\r\n" + brotli.compress(bytes(100 << 20), quality=1)
    async with serving(bomb) as (url, _):
        assert await body_or_error(bench, f"{url}/") == "too_large"


async def test_odd_items_do_not_fail_a_gather(bench: Bench) -> None:
    names = ["charset=undefined", "deep JSON", "half a surrogate pair", "no answer", "plain"]
    for name in names:
        async with serving(ANSWERS[name][0]) as (odd, _), serving(OK + TWO) as (good, _):
            payload = {"requests": [{"url": f"{odd}/"}, {"url": f"{good}/"}]}
            result = await bench.run(gather, payload)
        assert result["results"][0]["ok"] == isinstance(ANSWERS[name][1], bytes)
        assert result["results"][1]["text"] == "ok"


async def test_a_cookie_is_kept_within_one_call_on_one_host(bench: Bench) -> None:
    again = (
        b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: /\r\n"
        b"Set-Cookie: a=1; Path=/\r\nSet-Cookie: b=2; Path=/other\r\n\r\n"
    )
    async with serving(again, OK + TWO) as (url, requests):
        payload = {"url": f"{url}/", "headers": {"Cookie": "a=0; c=3"}}
        await bench.run(request, payload)
        await bench.run(request, {"url": f"{url}/"})
    assert b"\r\nCookie: c=3; a=1\r\n" in requests[1]
    assert b"\r\nCookie:" not in requests[2]
    away = again.replace(b"Location: /", b"Location: http://127.0.0.2:<port>/")
    async with serving(away, OK + TWO) as (url, requests):
        assert await body_or_error(bench, f"{url}/") == b"ok"
    assert b"\r\nHost: 127.0.0.2:" in requests[1]
    assert b"\r\nCookie:" not in requests[1]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("attachment; filename=\"x.csv\"; filename*=UTF-8''%E6%97%A5.csv", "日.csv"),
        ("attachment; filename*=utf-8'de'%E6%97%A5.csv; filename=x.csv", "日.csv"),
        ("attachment; filename*=ISO-8859-1''%e9.csv", "é.csv"),
        ("attachment; filename*=klingon''a.csv; filename=x.csv", "x.csv"),
        ("attachment; filename*=UTF-8''%ff.csv; filename=x.csv", "x.csv"),
        ("attachment; filename=\"a; filename*=UTF-8''b.csv\"", "a; filename*=UTF-8''b.csv"),
        ('attachment; filename="a\\"b.csv"', 'a"b.csv'),
    ],
)
async def test_the_extended_file_name_comes_first(bench: Bench, header: str, name: str) -> None:
    answer = OK + f"Content-Disposition: {header}\r\n".encode() + TWO
    async with serving(answer) as (url, _):
        result: Any = await bench.run(download, {"url": f"{url}/"})
    assert result["file"]["name"] == name
