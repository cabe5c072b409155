"""Status lines, headers and framing that a careless or hostile server sends, compared with curl."""

import gzip
from pathlib import Path

import brotli
import pytest

from tests.faithful.http_servers import CHUNKED, CURL, OK, TWO, body_or_error, curl, serving
from tests.worker.bench import open_bench

COMPRESSED = gzip.compress(b"ok")
IN_CHUNKS = b"2\r\nok\r\n0\r\n\r\n"


def status(line: bytes) -> bytes:
    return line + b"\r\n" + TWO


def length(value: bytes) -> bytes:
    return OK + b"Content-Length:" + value + b"\r\n\r\nok"


def transfer(value: bytes, body: bytes = IN_CHUNKS) -> bytes:
    return OK + b"Transfer-Encoding: " + value + b"\r\n\r\n" + body


def header(line: bytes) -> bytes:
    return OK + line + b"\r\n" + TWO


# Each answer, and its body or the type of its error; curl 7.88 agrees.
ANSWERS: dict[str, tuple[bytes, bytes | str]] = {
    "HTTP/1.0 with a length": (status(b"HTTP/1.0 200 OK"), b"ok"),
    "HTTP/1.0 in chunks": (b"HTTP/1.0 200 OK\r\n" + CHUNKED + IN_CHUNKS, b"ok"),
    "HTTP/1.2": (status(b"HTTP/1.2 200 OK"), "bad_response"),
    "HTTP/2.0": (status(b"HTTP/2.0 200 OK"), b"ok"),
    "HTTP/2": (status(b"HTTP/2 200 OK"), b"ok"),
    "a letter after the version": (status(b"HTTP/1.1x 200 OK"), "bad_response"),
    "ICY": (status(b"ICY 200 OK"), "bad_response"),
    "tabs in the status line": (status(b"HTTP/1.1\t200\tOK"), "bad_response"),
    "two spaces in the status line": (status(b"HTTP/1.1  200  OK"), b"ok"),
    "status 20": (status(b"HTTP/1.1 20 OK"), "bad_response"),
    "status 2000": (status(b"HTTP/1.1 2000 OK"), "bad_response"),
    "status 2x0": (status(b"HTTP/1.1 2x0 OK"), "bad_response"),
    "status -200": (status(b"HTTP/1.1 -200 OK"), "bad_response"),
    "a huge status line": (status(b"HTTP/1.1 200 " + b"x" * 60_000), b"ok"),
    "a NUL in the status line": (status(b"HTTP/1.1 200 O\0K"), "bad_response"),
    "a CR in the status line": (status(b"HTTP/1.1 200 O\rK"), b"ok"),
    "20 interim answers": (b"HTTP/1.1 100 C\r\n\r\n" * 20 + OK + TWO, b"ok"),
    "an interim answer with a length": (
        b"HTTP/1.1 102 P\r\nContent-Length: 2\r\n\r\n" + OK + TWO,
        b"ok",
    ),
    "an interim answer in chunks": (b"HTTP/1.1 103 E\r\n" + CHUNKED + OK + TWO, b"ok"),
    "an unknown interim answer": (b"HTTP/1.1 199 X\r\n\r\n" + OK + TWO, b"ok"),
    "an interim answer alone": (b"HTTP/1.1 100 C\r\n\r\n", "connection_failed"),
    "205 with a body": (status(b"HTTP/1.1 205 Reset"), b"ok"),
    "407": (status(b"HTTP/1.1 407 Proxy"), b"ok"),
    "a list of equal lengths": (length(b" 2, 2"), b"ok"),
    "a length with a zero": (length(b" 02"), b"ok"),
    "equal numbers in other digits": (OK + b"Content-Length: 02\r\n" + TWO, b"ok"),
    "tabs around the length": (length(b"\t2\t"), b"ok"),
    "an empty length": (length(b""), "bad_response"),
    "a space before the colon": (OK + b"Content-Length : 2\r\n\r\nok", b"ok"),
    "no length and nothing": (OK + b"\r\n", b""),
    "identity and a length": (OK + b"Transfer-Encoding: identity\r\n" + TWO, b"ok"),
    "no transfer coding": (OK + b"Transfer-Encoding:\r\n" + TWO, b"ok"),
    "chunked in two headers": (OK + b"Transfer-Encoding: chunked\r\n" + CHUNKED + IN_CHUNKS, b"ok"),
    "chunked twice": (transfer(b"chunked, chunked"), b"ok"),
    "CHUNKED": (transfer(b"CHUNKED"), b"ok"),
    "gzip in chunks": (
        transfer(b"gzip, chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(COMPRESSED), COMPRESSED)),
        b"ok",
    ),
    "gzip without chunks": (transfer(b"gzip", COMPRESSED), b"ok"),
    "chunks below gzip": (transfer(b"chunked, gzip"), "bad_response"),
    "an unknown transfer coding": (transfer(b"xchunked"), "bad_response"),
    "an unknown transfer coding and a length": (
        OK + b"Transfer-Encoding: xchunked\r\n" + TWO,
        "bad_response",
    ),
    "chunked with a parameter": (transfer(b"chunked;q=1"), "bad_response"),
    "a vertical tab before chunked": (transfer(b"\x0bchunked"), "bad_response"),
    "codings of both kinds": (
        OK
        + b"Content-Encoding: br\r\nTransfer-Encoding: gzip\r\n\r\n"
        + gzip.compress(brotli.compress(b"ok")),
        b"ok",
    ),
    "a chunk extension in quotes": (OK + CHUNKED + b'2;a="b;c"\r\nok\r\n0;x\r\n\r\n', b"ok"),
    "spaces after a chunk's size": (OK + CHUNKED + b"2  \r\nok\r\n0\r\n\r\n", b"ok"),
    "a space before a chunk's size": (
        OK + CHUNKED + b" 2\r\nok\r\n0\r\n\r\n",
        "connection_failed",
    ),
    "zeros before a chunk's size": (OK + CHUNKED + b"0002\r\nok\r\n0\r\n\r\n", b"ok"),
    "a chunk's size with 0x": (OK + CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n", "connection_failed"),
    "a negative chunk": (OK + CHUNKED + b"-2\r\nok\r\n0\r\n\r\n", "connection_failed"),
    "a huge chunk": (OK + CHUNKED + b"f" * 17 + b"\r\nok\r\n0\r\n\r\n", "connection_failed"),
    "no line end after a chunk": (OK + CHUNKED + b"2\r\nok0\r\n\r\n", "connection_failed"),
    "a long chunk extension": (
        OK + CHUNKED + b"2;" + b"x" * 15_000 + b"\r\nok\r\n0\r\n\r\n",
        b"ok",
    ),
    "200 trailers": (OK + CHUNKED + b"2\r\nok\r\n0\r\n" + b"T: x\r\n" * 200 + b"\r\n", b"ok"),
    "a trailer without a colon": (
        OK + CHUNKED + b"2\r\nok\r\n0\r\nbad\r\n\r\n",
        "connection_failed",
    ),
    "no end after the last chunk": (OK + CHUNKED + b"2\r\nok\r\n0\r\n", "connection_failed"),
    "a folded header with a tab": (header(b"X: a\r\n\tb"), b"ok"),
    "a header without a colon": (header(b"bad"), "bad_response"),
    "a header without a name": (header(b": x"), b"ok"),
    "a space in a name": (header(b"X Y: x"), b"ok"),
    "brackets in a name": (header(b"X(Y): x"), b"ok"),
    "a name in latin-1": (header(b"X\xe9: x"), b"ok"),
    "a NUL in a name": (header(b"X\0: x"), "bad_response"),
    "a control character in a value": (header(b"X: a\x01b"), b"ok"),
    "a CR in a value": (header(b"X: a\rb"), b"ok"),
    "a DEL in a value": (header(b"X: a\x7fb"), b"ok"),
    "line ends of both kinds": (b"HTTP/1.1 200 OK\nX: a\r\nContent-Length: 2\n\r\nok", b"ok"),
    "CR alone": (b"HTTP/1.1 200 OK\rContent-Length: 2\r\rok", "bad_response"),
    "odd cookies": (header(b"Set-Cookie: =;;;\r\nSet-Cookie: a\r\nSet-Cookie: \xff=\xfe"), b"ok"),
    "half a status line": (b"HTTP/1.1 200", "connection_failed"),
    "an upgrade that was not asked for": (header(b"Upgrade: h2c\r\nConnection: Upgrade"), b"ok"),
    "201 with a location": (b"HTTP/1.1 201 Made\r\nLocation: /x\r\n" + TWO, b"ok"),
    "302 with an empty location": (b"HTTP/1.1 302 X\r\nLocation:\r\n" + TWO, b"ok"),
    "a mark before the text": (OK + b"Content-Length: 5\r\n\r\n\xef\xbb\xbfok", b"\xef\xbb\xbfok"),
}
# Where curl takes another way. It guesses at lengths that are none and unfolds no framing; it
# follows 300 and 305, which browsers do not; and its parser has other bounds. aiohttp's takes no
# space before a chunk's extension, no line feed alone in chunks and no length as a trailer.
DIFFERENT: dict[str, tuple[bytes, bytes | str]] = {
    "a length with a sign": (length(b" +2"), "bad_response"),
    "a list of other lengths": (length(b" 2, 3"), "bad_response"),
    "two numbers": (length(b" 2 2"), "bad_response"),
    "a length in hexadecimal": (length(b" 0x2"), "bad_response"),
    "a fraction as length": (length(b" 2.0"), "bad_response"),
    "a length beyond all numbers": (length(b" " + b"9" * 23), "bad_response"),
    "a folded length": (length(b"\r\n 2"), b"ok"),
    "a folded transfer coding": (transfer(b"\r\n chunked"), b"ok"),
    "lower case": (status(b"http/1.1 200 OK"), "bad_response"),
    "empty lines first": (b"\r\n\r\n" + status(b"HTTP/1.1 200 OK"), b"ok"),
    "a status above 599": (status(b"HTTP/1.1 999 X"), "http_status"),
    "300 with a location": (b"HTTP/1.1 300 X\r\nLocation: /\r\n" + TWO, b"ok"),
    "305 with a location": (b"HTTP/1.1 305 X\r\nLocation: /\r\n" + TWO, b"ok"),
    "a space before a chunk's extension": (
        OK + CHUNKED + b"2 ; a\r\nok\r\n0\r\n\r\n",
        "connection_failed",
    ),
    "chunks with line feeds": (OK + CHUNKED + b"2\nok\n0\n\n", "connection_failed"),
    "a length as a trailer": (
        OK + CHUNKED + b"2\r\nok\r\n0\r\nContent-Length: 9\r\n\r\n",
        "connection_failed",
    ),
}


@pytest.mark.parametrize("name", [*ANSWERS, *DIFFERENT])
async def test_an_answer_is_its_body_or_a_documented_error(tmp_path: Path, name: str) -> None:
    answer, expected = {**ANSWERS, **DIFFERENT}[name]
    async with open_bench(tmp_path) as bench, serving(answer) as (url, _):
        assert await body_or_error(bench, f"{url}/") == expected


@pytest.mark.skipif(CURL is None, reason="curl is not on PATH")
@pytest.mark.parametrize("name", ANSWERS)
async def test_curl_reads_the_same(name: str) -> None:
    answer, expected = ANSWERS[name]
    async with serving(answer) as (url, _):
        code, body = await curl("-L", "--compressed", f"{url}/")
    assert (body if code == 0 else None) == (expected if isinstance(expected, bytes) else None)
