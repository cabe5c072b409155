"""Uploads over HTTP: raw bodies and forms, names and types, refusals, and cleanup."""

import asyncio
import hashlib
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from redis.asyncio import Redis

from tests.api.serving import problem, serving, stored_paths, upload
from tests.conftest import eventually

MIB = 1 << 20
LIMIT = 4 * MIB
DATA = random.Random(1).randbytes(2 * MIB + 12345)
DIGEST = hashlib.sha256(DATA).hexdigest()
ETAG = f'"{DIGEST}"'
SIZE = len(DATA)
FORM = {"Content-Type": "multipart/form-data; boundary=B"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def client(redis_url: str, redis: Redis, root: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, root, max_upload=LIMIT) as client:
        yield client


def form(*parts: tuple[str, bytes], end: bytes = b"--B--\r\n") -> bytes:
    """A multipart body; each part is its header lines and its content."""
    return (
        b"".join(
            b"--B\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts
        )
        + end
    )


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def test_a_raw_body_comes_back_byte_for_byte(client: httpx2.AsyncClient) -> None:
    view = await upload(client, DATA, params={"name": "a b.bin"})
    assert view == {
        "id": view["id"],
        "name": "a b.bin",
        "size": len(DATA),
        "sha256": DIGEST,
        "content_type": "application/octet-stream",
        "expires_at": view["expires_at"],
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", view["expires_at"])
    answer = await client.get(f"/v1/files/{view['id']}")
    assert (answer.status_code, answer.content) == (200, DATA)
    headers = answer.headers
    assert headers["etag"] == ETAG
    assert headers["accept-ranges"] == "bytes"
    assert headers["content-length"] == str(len(DATA))
    assert headers["content-disposition"] == 'attachment; filename="a b.bin"'
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "sandbox"
    head = await client.head(f"/v1/files/{view['id']}")
    assert (head.status_code, head.content) == (200, b"")
    assert {k: v for k, v in head.headers.items() if k != "date"} == {
        k: v for k, v in headers.items() if k not in ("date", "transfer-encoding")
    }


@pytest.mark.parametrize("size", [1, 7, 1000, 70_000, 10 * MIB])
async def test_a_form_is_parsed_however_it_is_chunked(
    client: httpx2.AsyncClient, size: int
) -> None:
    # The content resembles boundaries; fields stand before and after the file.
    data = (b"\r\n--B\r\n--" * 3 + b"\r\n--C--\r\n-")[10:] + (DATA[:50_000] if size > 7 else b"")
    data = data.replace(b"\r\n--B", b"\r\n--b")
    body = form(
        ('Content-Disposition: form-data; name="a"', b"1"),
        (
            (
                'Content-Disposition: form-data; name="f"; filename="../ü/x y.csv"'
                "\r\nContent-Type: text/x-own"
            ),
            data,
        ),
        ('Content-Disposition: form-data; name="b"', b"2"),
    )
    answer = await client.post("/v1/files", content=pieces(body, size), headers=FORM)
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert (view["name"], view["content_type"]) == ("x y.csv", "text/x-own")
    assert (view["size"], view["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (await client.get(f"/v1/files/{view['id']}")).content == data


async def test_an_empty_file_is_accepted(client: httpx2.AsyncClient) -> None:
    for view in (
        await upload(client, b""),
        await upload(
            client,
            form(('Content-Disposition: form-data; name="f"; filename=""', b"")),
            headers=FORM,
        ),
    ):
        assert (view["size"], view["name"]) == (0, None)
        answer = await client.get(f"/v1/files/{view['id']}")
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (
            200,
            b"",
            "0",
        )
        answer = await client.get(f"/v1/files/{view['id']}", headers={"Range": "bytes=0-"})
        assert (problem(answer)[0], answer.headers["content-range"]) == (416, "bytes */0")


@pytest.mark.parametrize(
    ("header", "name", "attachment"),
    [
        ('attachment; filename="x.txt"', "x.txt", 'filename="x.txt"'),
        (
            "attachment; filename*=UTF-8''%e2%82%ac; filename=e",
            "€",
            "filename=\"_\"; filename*=UTF-8''%E2%82%AC",
        ),
        (
            "attachment; filename=e; filename*=UTF-8''%e2%82%ac",
            "€",
            "filename=\"_\"; filename*=UTF-8''%E2%82%AC",
        ),
        (
            'attachment; filename="ü.txt"',
            "ü.txt",
            "filename=\"_.txt\"; filename*=UTF-8''%C3%BC.txt",
        ),
        ('attachment; filename="../../etc/passwd"', "passwd", 'filename="passwd"'),
        ('attachment; filename="C:\\\\dir\\\\x.txt"', "x.txt", 'filename="x.txt"'),
        (
            'attachment; filename="a\\"b;c.txt"',
            'a"b;c.txt',
            "filename=\"a_b;c.txt\"; filename*=UTF-8''a%22b%3Bc.txt",
        ),
        ("attachment", None, None),
        ("nonsense;;;=", None, None),
        (
            "attachment; filename*=UTF-8''%0d%0aSet-Cookie:%20x",
            "Set-Cookie: x",
            'filename="Set-Cookie: x"',
        ),
    ],
)
async def test_a_name_is_read_from_and_written_to_content_disposition(
    client: httpx2.AsyncClient, header: str, name: str | None, attachment: str | None
) -> None:
    view = await upload(client, b"x", headers={"Content-Disposition": header.encode()})
    assert view["name"] == name
    answer = await client.get(f"/v1/files/{view['id']}")
    assert answer.headers["content-disposition"] == "attachment; " + (
        attachment or f'filename="{view["id"]}"'
    )


async def test_a_name_in_the_query_wins_and_is_cleaned(
    client: httpx2.AsyncClient,
) -> None:
    header = {"Content-Disposition": 'attachment; filename="x"'}
    assert (await upload(client, b"x", params={"name": "y"}, headers=header))["name"] == "y"
    assert (await upload(client, b"x", params={"name": "a\r\n\0b"}))["name"] == "ab"
    assert (await upload(client, b"x", params={"name": "n" * 900}))["name"] == "n" * 255
    assert (
        problem(await client.post("/v1/files", content=b"x", params={"name": "n" * 2000}))[0] == 422
    )


@pytest.mark.parametrize(
    ("sent", "name", "kept"),
    [
        ("text/html; charset=utf-8", None, "text/html; charset=utf-8"),
        (None, "a.json", "application/json"),
        (None, None, "application/octet-stream"),
        ("application/x-www-form-urlencoded", "a.csv", "text/csv"),
        ("nonsense", None, "application/octet-stream"),
    ],
)
async def test_the_content_type_is_kept_and_never_rendered(
    client: httpx2.AsyncClient, sent: str | None, name: str | None, kept: str
) -> None:
    view = await upload(
        client,
        b"<script>alert(1)</script>",
        params={"name": name} if name else {},
        headers={"Content-Type": sent} if sent else {},
    )
    answer = await client.get(f"/v1/files/{view['id']}")
    assert view["content_type"] == answer.headers["content-type"] == kept
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox"


async def test_a_declared_size_above_the_limit_is_refused_before_the_body(
    client: httpx2.AsyncClient, root: Path
) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        head = (
            f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: {LIMIT + 1}\r\n"
            "Expect: 100-continue\r\n\r\n"
        )
        writer.write(head.encode())
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    finally:
        writer.close()
    assert stored_paths(root) == []  # no upload has started


@pytest.mark.parametrize("headers", [{}, FORM])
async def test_a_body_above_the_limit_is_refused_while_it_is_read(
    client: httpx2.AsyncClient, root: Path, headers: dict[str, str]
) -> None:
    data = bytes(LIMIT + 1)
    body = (
        form(('Content-Disposition: form-data; name="f"; filename="x"', data)) if headers else data
    )
    answer = await client.post("/v1/files", content=pieces(body, 100_000), headers=headers)
    assert problem(answer) == (413, f"the file exceeds the limit of {LIMIT} bytes")
    await eventually(lambda: stored_paths(root) == [])
    assert (await upload(client, data[:-1]))["size"] == LIMIT


@pytest.mark.parametrize("headers", [{}, FORM])
async def test_an_interrupted_upload_leaves_nothing_behind(
    client: httpx2.AsyncClient, root: Path, headers: dict[str, str]
) -> None:
    body = (
        form(('Content-Disposition: form-data; name="f"; filename="x"', DATA)) if headers else DATA
    )
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body[:-10])
    await writer.drain()
    await eventually(lambda: len(stored_paths(root)) == 1)
    assert stored_paths(root)[0].endswith("data#1")
    writer.close()
    await eventually(lambda: stored_paths(root) == [])


async def test_a_stalled_upload_times_out(
    client: httpx2.AsyncClient, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_api.files.uploads.IDLE_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n".encode() + DATA[:-1]
    )
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()
    await eventually(lambda: stored_paths(root) == [])


FILE = ('Content-Disposition: form-data; name="f"; filename="x"', b"1")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "multipart/form-data"}, form(FILE), 400),
        ({"Content-Type": "multipart/form-data; boundary=" + "B" * 300}, form(FILE), 400),
        (FORM, b"nonsense", 400),
        (FORM, b"", 400),
        (FORM, form(FILE, end=b""), 400),
        (FORM, form(FILE)[:-5], 400),
        (FORM, form(("Content-Disposition: form-data; x" + "y" * 100_000, b"1")), 400),
        (FORM, form(('Content-Disposition: form-data; name="f"', b"1")), 422),
        (FORM, form(("X: y", b"1")), 422),
        (FORM, form(FILE, FILE), 422),
        (FORM, form(('Content-Disposition: form-data; name="a"', b"1" * 100_000), FILE), 413),
        (FORM, form(FILE) + b"x" * 100_000, 413),
        ({"Content-Encoding": "gzip"}, b"x", 415),
    ],
)
async def test_malformed_forms_are_refused(
    client: httpx2.AsyncClient, root: Path, headers: dict[str, str], body: bytes, status: int
) -> None:
    answer = await client.post("/v1/files", content=body, headers=headers)
    assert problem(answer)[0] == status
    await eventually(lambda: stored_paths(root) == [])


async def test_a_failing_store_answers_503_without_details(
    client: httpx2.AsyncClient, root: Path
) -> None:
    (root / "uploads").write_bytes(b"a file in the directory's place")
    answer = await client.post("/v1/files", content=b"x")
    assert problem(answer)[0] == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert str(root) not in answer.text
