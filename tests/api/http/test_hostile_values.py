"""Hostile values in every parameter, header and part of a path: a client's error, never a 5xx."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from tests.api.fake_worker import FakeWorker
from tests.api.serving import serving, upload

LONG = "9" * 5000
VALUES = [
    b"", b"0", b"-1", LONG.encode(), b"0" * 5000, b"1e999", b"nan", b"-" + LONG.encode(),
    b"\xff\xfe", b"\xc3\xa9", "☃".encode(), b"%00", b"%ed%a0%80", b"%FF%2F..", b"..", b"*",
    b'"', b'"unclosed', b'""', b"," * 3000, b";" * 3000, b"=" * 3000, b"'" * 3000,
    b"a" * 20_000, b"{}", b"null", b"a,b", b"%", b"&&==",
]  # fmt: skip
# For each header, what its own parser could fail on.
HEADERS = {
    b"Range": [
        b"bytes=%b-", b"bytes=0-%b", b"bytes=-%b", b"bytes=%b-%b", b"bytes=0-1,%b-", b"%b=0-1",
    ],
    b"If-Range": [b"%b", b'"%b"', b"W/%b"],
    b"If-Match": [b"%b", b'W/"%b', b'"%b", "a"'],
    b"If-None-Match": [b"%b", b'W/"%b', b'"%b", "a"'],
    b"Content-Disposition": [
        b"%b", b"attachment; filename=%b", b'attachment; filename="%b',
        b"attachment; filename*=%b''abc", b"attachment; filename*=UTF-8''%b",
        b"attachment; filename*=UTF-8''a; filename*0=%b", b"attachment; filename*%b=x",
        b"attachment; filename*0*=%b''a; filename*1=b; filename*%b*=c",
        b"form-data; name=f; filename*1*=%b",
    ],
    b"Content-Type": [
        b"%b", b"text/%b", b"application/json; charset=%b", b"multipart/form-data; boundary=%b",
        b"multipart/form-data; boundary*0=%b; boundary*=x''a", b"application/json; a*=x''a; a*0=%b",
    ],
    b"Content-Encoding": [b"%b"],
    b"Accept": [b"%b", b"text/csv;q=%b", b"*/*;q=nan, text/%b", b"application/jsonl;%b=1"],
    b"Prefer": [b"%b", b"wait=%b", b'wait="%b', b"a=%b, wait=0"],
    b"Idempotency-Key": [b"%b", b'"%b"', b'"%b'],
    b"traceparent": [b"%b", b"00-%b-%b-01"],
    b"X-Request-ID": [b"%b"],
    b"Authorization": [b"%b", b"Bearer %b"],
    b"Last-Event-ID": [b"%b", b"%b-00000", b"0000000000000000-%b"],
    b"Upload-Complete": [b"%b", b"?%b"],
    b"Upload-Offset": [b"%b"],
    b"Upload-Length": [b"%b"],
    b"Upload-Draft-Interop-Version": [b"%b"],
    b"Tus-Resumable": [b"%b"],
    b"Sec-WebSocket-Protocol": [b"%b"],
    b"Cookie": [b"%b"],
    b"Expect": [b"%b"],
}  # fmt: skip
# Charsets of Python that are not charsets of text, or that fail in their own ways.
CHARSETS = [
    b"idna", b"punycode", b"undefined", b"unicode-escape", b"utf-7", b"rot13", b"base64", b"hex",
    b"mbcs", b"utf-16", b"utf-8\x80", b"iso-8859-12",
]  # fmt: skip
CHARSETS_OF = {b"Content-Disposition", b"Content-Type"}
JSON = {b"Content-Type": b"application/json"}
RANGES = {b"Range", b"If-Range"}
CONDITIONS = {b"If-Match", b"If-None-Match"}
TYPES = {b"Content-Type", b"Content-Encoding"}
UPLOADS = TYPES | {
    b"Content-Disposition", b"Upload-Complete", b"Upload-Offset", b"Upload-Length",
    b"Upload-Draft-Interop-Version", b"Tus-Resumable",
}  # fmt: skip


class Connection:
    """Sends bytes that no HTTP client would, one request after another."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def status(
        self, method: bytes, target: bytes, headers: dict[bytes, bytes], body: bytes = b""
    ) -> int:
        """The status of the response, or 0 if the connection was closed without one."""
        fields = {b"Host": self._address[0].encode(), **headers}
        fields.setdefault(b"Content-Length", b"%d" % len(body))
        lines = [b"%b: %b\r\n" % field for field in fields.items()]
        request = b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target, b"".join(lines), body)
        async with asyncio.timeout(30):
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._address)
            reader, writer = self._streams
            writer.write(request)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                await self.close()
                return 0
            status, lower = int(head[9:12]), head.lower()
            if method != b"HEAD" and b"content-length: " in lower:
                length = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
            elif method != b"HEAD" and status not in (204, 304):
                await self.close()  # a stream
        if b"connection: close" in lower:
            await self.close()
        return status

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@pytest.fixture
async def client(
    redis_url: str, worker: FakeWorker, tmp_path: Path, any_ledger_url: str
) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, tmp_path, database_url=any_ledger_url) as client:
        yield client


@pytest.fixture
async def connection(client: httpx2.AsyncClient) -> AsyncIterator[Connection]:
    connection = Connection(client.base_url.host, client.base_url.port or 80)
    yield connection
    await connection.close()


async def operations(client: httpx2.AsyncClient) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of every operation in the document."""
    document = (await client.get("/openapi.json")).json()
    return [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def escaped(value: bytes) -> bytes:
    """The value as a part of a target: already percent-encoded bytes stay."""
    return quote(value[:20_000], safe="%*&=,;'.").encode()


def targets(path: str, operation: dict[str, Any]) -> Iterator[bytes]:
    """The path with a hostile value in each of its parts and query parameters."""
    names = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
    plain = path
    for name in ("id", "name", "task"):
        plain = plain.replace(f"{{{name}}}", "x")
    for value in map(escaped, VALUES):
        for name in ("id", "name", "task"):
            if f"{{{name}}}" in path:
                hostile = path.replace(f"{{{name}}}", value.decode())
                for other in ("id", "name", "task"):
                    hostile = hostile.replace(f"{{{other}}}", "01M7Z1YRWG26XDJFATWWCa")
                yield hostile.encode()
        for name in names:
            yield b"%b?%b=%b" % (plain.encode(), name.encode(), value)
    ids = [b"01M7YSJ94N" + tail for tail in (b"%00" * 12, b"%ff" * 12, "é".encode() * 12)]
    yield from (plain.replace("/x", f"/{escaped(id).decode()}", 1).encode() for id in ids)


@pytest.mark.timeout(300)
async def test_no_path_or_query_is_a_server_error(
    client: httpx2.AsyncClient, connection: Connection
) -> None:
    for method, path, operation in await operations(client):
        for target in targets(path, operation):
            status = await connection.status(method.encode(), target, {})
            assert 200 <= status < 500, (method, target[:200])


@pytest.mark.parametrize("any_ledger_url", ["sqlite"], indirect=True)
@pytest.mark.timeout(300)
async def test_no_header_is_a_server_error(
    client: httpx2.AsyncClient, connection: Connection
) -> None:
    upload_id = (await upload(client, b"12345"))["id"]
    job = (await client.post("/v1/jobs", json={"task": "t.any"})).json()["id"]
    await client.post(f"/v1/jobs/{job}/cancel")
    file, any_job = f"/v1/files/{upload_id}", f"/v1/jobs/{job}"
    part = {b"Content-Type": b"application/partial-upload"}
    requests: list[tuple[bytes, str, dict[bytes, bytes], bytes, set[bytes]]] = [
        (b"GET", file, {}, b"", CONDITIONS | RANGES),
        (b"HEAD", file, {}, b"", CONDITIONS | RANGES),
        (b"PATCH", file, part, b"", UPLOADS),
        (b"POST", "/v1/files", {}, b"12345", UPLOADS),
        (b"POST", "/v1/jobs", JSON, b'{"task": "t.nope"}', {b"Prefer"} | TYPES),
        (b"POST", "/v1/jobs", JSON, b'{"task": "t.any"}', {b"Idempotency-Key", b"traceparent"}),
        (b"POST", "/v1/jobs/bulk", JSON, b'[{"task": "t.any"}]', TYPES),
        (b"POST", "/v1/jobs/replay", JSON, b'{"dry_run": true}', TYPES),
        (b"POST", f"{any_job}/replay", {}, b"", {b"Idempotency-Key"}),
        (b"GET", any_job, {}, b"", CONDITIONS),
        (b"GET", f"{any_job}/stream", {}, b"", {b"Accept", b"Last-Event-ID"}),
        (b"GET", f"{any_job}/stream?types=output", {}, b"", {b"Accept", b"Last-Event-ID"}),
        (b"GET", "/metrics", {}, b"", {b"Accept"}),
        (b"GET", "/livez", {}, b"", set(HEADERS) - UPLOADS - CONDITIONS - RANGES),
    ]
    for method, target, given, body, names in requests:
        for name in sorted(names):
            for template in HEADERS[name]:
                for value in (*VALUES, *(CHARSETS if name in CHARSETS_OF else ())):
                    text = template.replace(b"%b", value)
                    status = await connection.status(
                        method, target.encode(), {**given, name: text}, body
                    )
                    # 0: the parser may refuse bytes, and closes the connection.
                    assert status < 500, (method, target, name, text[:200])


BODIES = [
    b"9" * 5000, b'{"task": "t.any", "payload": {"n": %b}}' % (b"9" * 5000),
    b'{"task": "t.any", "options": {"timeout": %b}}' % (b"9" * 5000),
    b'{"task": "t.any", "options": {"timeout": "%bs"}}' % (b"9" * 5000),
    b'{"task": "t.any", "options": {"delay": 1e400}}',
    b'{"task": "t.any", "options": {"retry": {"max_attempts": %b}}}' % (b"9" * 5000),
    b'{"task": "t.any", "options": {"retry": {"max_attempts": 1e300}}}',
    b'{"task": "t.any", "options": {"retry": {"base": 1e308, "cap": 1e308}}}',
    b'{"task": "t.any", "options": {"concurrency_key": "\\u0000", "concurrency_limit": 1e4}}',
    b'{"task": "t.any", "options": {"run_at": "0000-01-01T00:00:00Z"}}',
    b'{"task": "t.any", "options": {"run_at": "9999-12-31T23:59:59-23:59"}}',
    b'{"task": "t.any", "options": {"tags": {"\\u0000": "\\ud800"}}}',
    b'{"task": "\\ud800"}', b'{"task": "t.any", "\\ud800": 1}', b'{"task": "t.strict\\u0000"}',
    b'{"task": "t.strict", "payload": {"url": 1e400}}', b'{"task": "t.any", "payload": 1e400}',
    b'{"ids": ["0"], "since": "9999-12-31T23:59:59.999999999+00:01"}', b'{"limit": 1e300}',
    b'{"limit": %b}' % (b"9" * 5000), b'{"q": "\\u0000\\ud800%_!"}', b'{"cursor": "AAAA"}',
    b'{"tags": {"\\u0000": "\\ud800"}}', b'{"task": "\\u0000"}', b'{"queue": "\\u0000"}',
    b"\xef\xbb\xbf{}", b"\xff", b"{" * 5000, b"[" * 5000, b'{"a":' * 5000, b"",
]  # fmt: skip


async def test_no_body_is_a_server_error(
    client: httpx2.AsyncClient, connection: Connection
) -> None:
    for path in (b"/v1/jobs", b"/v1/jobs/bulk", b"/v1/jobs/replay"):
        for body in BODIES:
            for wrapped in (body, b"[%b]" % body):
                status = await connection.status(b"POST", path, JSON, wrapped)
                assert 200 <= status < 500, (path, wrapped[:200])
    ndjson = {b"Content-Type": b"application/x-ndjson"}
    status = await connection.status(b"POST", b"/v1/jobs/bulk", ndjson, b"\n".join(BODIES))
    assert status == 200
