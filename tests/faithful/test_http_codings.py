"""Bodies with a Content-Encoding: whole, cut off, damaged, stacked; curl decodes them too."""

import gzip
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest

from tandem_worker.connectors.http import decoding
from tests.faithful.http_servers import CHUNKED, CURL, OK, body_or_error, curl, serving
from tests.worker.bench import open_bench

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def bare_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


HELLO = b"hello " * 1000
# Four steps of the decoder, of which the last three take almost no input.
LARGE = random.Random(1).randbytes(decoding.STEP_BYTES) + bytes(3 * decoding.STEP_BYTES)
ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without zlib's header": ("deflate", bare_deflate),
    "br": ("br", lambda data: brotli.compress(data, quality=1)),
    "zstd": ("zstd", zstd.compress),
}


def answer(coding: str, body: bytes) -> bytes:
    return OK + f"Content-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def many(data: bytes, times: int) -> bytes:
    for _ in range(times):
        data = gzip.compress(data)
    return data


# Each answer, and its body or the type of its error; curl 7.88 agrees with all of these.
ANSWERS: dict[str, tuple[bytes, bytes | str]] = {
    "stacked": (answer("gzip, br", brotli.compress(gzip.compress(HELLO))), HELLO),
    "in two headers": (
        OK
        + b"Content-Encoding: gzip\r\n"
        + answer("br", brotli.compress(many(HELLO, 1)))[len(OK) :],
        HELLO,
    ),
    "in capitals": (answer("GZIP", gzip.compress(HELLO)), HELLO),
    "identity": (answer("identity", b"ok"), b"ok"),
    "gzip and identity": (answer("gzip, identity", gzip.compress(HELLO)), HELLO),
    "no name": (answer("", b"ok"), b"ok"),
    "five times": (answer("gzip, gzip, gzip, gzip, gzip", many(HELLO, 5)), HELLO),
    "until the end": (OK + b"Content-Encoding: br\r\n\r\n" + brotli.compress(HELLO), HELLO),
    "a wrong checksum": (
        answer("gzip", gzip.compress(HELLO)[:-8] + bytes(4) + gzip.compress(HELLO)[-4:]),
        "bad_response",
    ),
    "bytes after gzip": (answer("gzip", gzip.compress(HELLO) + b"more"), "bad_response"),
    "bytes after br": (answer("br", brotli.compress(HELLO) + b"more"), "bad_response"),
    "bytes after zstd": (answer("zstd", zstd.compress(HELLO) + b"more"), "bad_response"),
    "zstd in two frames": (answer("zstd", zstd.compress(b"a") + zstd.compress(b"b")), b"ab"),
    "not zstd": (answer("zstd", b"ok"), "bad_response"),
    "not deflate": (answer("deflate", b"\xff\xff\xff"), "bad_response"),
}


async def ours(tmp_path: Path, sent: bytes) -> bytes | str:
    async with open_bench(tmp_path) as bench, serving(sent) as (url, _):
        return await body_or_error(bench, f"{url}/", max_bytes=8 << 20)


async def curls(sent: bytes) -> bytes | None:
    async with serving(sent) as (url, _):
        code, body = await curl("--compressed", f"{url}/")
    return body if code == 0 else None


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_coded_body_is_decoded_or_wrong(tmp_path: Path, name: str) -> None:
    sent, expected = ANSWERS[name]
    assert await ours(tmp_path, sent) == expected
    if CURL is not None:
        assert await curls(sent) == (expected if isinstance(expected, bytes) else None)


@pytest.mark.parametrize("data", [b"", b"ok", HELLO, LARGE], ids=["none", "2", "6 kB", "1 MB"])
@pytest.mark.parametrize("name", ENCODERS)
async def test_every_coding_is_decoded_in_steps(tmp_path: Path, name: str, data: bytes) -> None:
    coding, encode = ENCODERS[name]
    body = encode(data)
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(body[at : at + 5000]), body[at : at + 5000])
        for at in range(0, len(body), 5000)
    )
    in_chunks = OK + f"Content-Encoding: {coding}\r\n".encode() + CHUNKED + chunks + b"0\r\n\r\n"
    for sent in (answer(coding, body), in_chunks):
        assert await ours(tmp_path, sent) == data
        if CURL is not None:
            assert await curls(sent) == data


@pytest.mark.parametrize("name", ENCODERS)
async def test_a_body_that_ends_in_the_middle_broke_off(tmp_path: Path, name: str) -> None:
    coding, encode = ENCODERS[name]
    body = encode(HELLO)
    async with open_bench(tmp_path) as bench:
        for end in range(1, len(body)):
            async with serving(answer(coding, body[:end])) as (url, _):
                assert await body_or_error(bench, f"{url}/") == "connection_failed", end
        # Nothing at all is an empty body, for curl, too.
        async with serving(answer(coding, b"")) as (url, _):
            assert await body_or_error(bench, f"{url}/") == b""


async def test_a_body_in_more_codings_than_curl_decodes_comes_as_it_is(tmp_path: Path) -> None:
    body = many(HELLO, 6)
    assert await ours(tmp_path, answer(", ".join(["gzip"] * 6), body)) == body
    if CURL is not None:
        assert await curls(answer(", ".join(["gzip"] * 6), body)) is None


@pytest.mark.parametrize("name", ENCODERS)
async def test_a_bomb_ends_at_max_bytes(tmp_path: Path, name: str) -> None:
    coding, encode = ENCODERS[name]
    bomb = answer(coding, encode(bytes(100 << 20)))
    async with open_bench(tmp_path) as bench, serving(bomb) as (url, _):
        assert await body_or_error(bench, f"{url}/") == "too_large"
