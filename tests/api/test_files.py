"""Files over HTTP, through a real server: uploads of both kinds, ranges, conditions, refusals, nothing left behind."""

import asyncio
import hashlib
import itertools
import random
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec
import pytest
from redis.asyncio import Redis

from api.app import create_app
from api.server import listen, make_server, url_of
from shared import catalogue
from shared.files import FileStore, job_path, open_store
from shared.jobs import Options, State, Submission, new_id
from shared.queue import Finish, Queue, WorkerInfo
from shared.settings import load
from shared.uploads import save_upload
from tests.conftest import eventually

MIB = 1 << 20
calls = itertools.count(1)  # to claim, which are numbered
LIMIT = 4 * MIB
DATA = random.Random(1).randbytes(2 * MIB + 12345)
DIGEST = hashlib.sha256(DATA).hexdigest()
ETAG = f'"{DIGEST}"'
SIZE = len(DATA)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[FileStore]:
    async with open_store(f"file://{root}") as store:
        yield store


@pytest.fixture
async def queue(redis: Redis) -> AsyncIterator[Queue]:
    queue = Queue(redis)
    yield queue
    await queue.close()


@pytest.fixture
async def client(redis_url: str, redis: Redis, root: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the application, which a real server serves on a port of its own."""
    settings = load(redis_url=redis_url, store_url=f"file://{root}", max_upload=LIMIT, keys=())
    server = make_server(create_app(settings), settings)
    sockets = listen("127.0.0.1", 0)
    serving = asyncio.create_task(server.serve(sockets))
    await eventually(lambda: server.started or serving.done())
    async with httpx2.AsyncClient(base_url=url_of(sockets, "127.0.0.1"), trust_env=False, timeout=30) as client:
        yield client
    server.should_exit = True
    await serving


def stored(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def form(*parts: tuple[str, bytes], end: bytes = b"--B--\r\n") -> bytes:
    """A multipart body of parts: the headers' lines and the content."""
    return b"".join(b"--B\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts) + end


FORM = {"Content-Type": "multipart/form-data; boundary=B"}


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def upload(client: httpx2.AsyncClient, data: bytes = DATA, **options: Any) -> dict[str, Any]:
    answer = await client.post("/v1/files", content=data, **options)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/files/{answer.json()['id']}"
    view: dict[str, Any] = answer.json()
    return view


def problem(answer: httpx2.Response) -> tuple[int, str]:
    """Status of an answer that is a problem of that status, and its detail."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert answer.json()["status"] == answer.status_code
    assert answer.json()["type"].startswith("/problems/")
    return answer.status_code, answer.json().get("detail", "")


# Uploads.


async def test_a_raw_body_comes_back_byte_for_byte(client: httpx2.AsyncClient) -> None:
    view = await upload(client, params={"name": "a b.bin"})
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
async def test_a_form_is_taken_apart_wherever_it_is_cut(client: httpx2.AsyncClient, size: int) -> None:
    # Content that looks like boundaries, and fields before and after the file.
    data = (b"\r\n--B\r\n--" * 3 + b"\r\n--C--\r\n-")[10:] + (DATA[:50_000] if size > 7 else b"")
    data = data.replace(b"\r\n--B", b"\r\n--b")
    body = form(
        ('Content-Disposition: form-data; name="a"', b"1"),
        ('Content-Disposition: form-data; name="f"; filename="../ü/x y.csv"\r\nContent-Type: text/x-own', data),
        ('Content-Disposition: form-data; name="b"', b"2"),
    )
    answer = await client.post("/v1/files", content=pieces(body, size), headers=FORM)
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert (view["name"], view["content_type"]) == ("x y.csv", "text/x-own")
    assert (view["size"], view["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (await client.get(f"/v1/files/{view['id']}")).content == data


async def test_an_empty_file_is_a_file(client: httpx2.AsyncClient) -> None:
    for view in (
        await upload(client, b""),
        await upload(client, form(('Content-Disposition: form-data; name="f"; filename=""', b"")), headers=FORM),
    ):
        assert (view["size"], view["name"]) == (0, None)
        answer = await client.get(f"/v1/files/{view['id']}")
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")
        answer = await client.get(f"/v1/files/{view['id']}", headers={"Range": "bytes=0-"})
        assert (problem(answer)[0], answer.headers["content-range"]) == (416, "bytes */0")


@pytest.mark.parametrize(
    ("header", "name", "attachment"),
    [
        ('attachment; filename="x.txt"', "x.txt", 'filename="x.txt"'),
        ("attachment; filename*=UTF-8''%e2%82%ac; filename=e", "€", "filename=\"_\"; filename*=UTF-8''%E2%82%AC"),
        ("attachment; filename=e; filename*=UTF-8''%e2%82%ac", "€", "filename=\"_\"; filename*=UTF-8''%E2%82%AC"),
        ('attachment; filename="ü.txt"', "ü.txt", "filename=\"_.txt\"; filename*=UTF-8''%C3%BC.txt"),
        ('attachment; filename="../../etc/passwd"', "passwd", 'filename="passwd"'),
        ('attachment; filename="C:\\\\dir\\\\x.txt"', "x.txt", 'filename="x.txt"'),
        ('attachment; filename="a\\"b;c.txt"', 'a"b;c.txt', "filename=\"a_b;c.txt\"; filename*=UTF-8''a%22b%3Bc.txt"),
        ("attachment", None, None),
        ("nonsense;;;=", None, None),
        ("attachment; filename*=UTF-8''%0d%0aSet-Cookie:%20x", "Set-Cookie: x", 'filename="Set-Cookie: x"'),
    ],
)  # fmt: skip
async def test_names_come_from_the_disposition_and_go_into_one(
    client: httpx2.AsyncClient, header: str, name: str | None, attachment: str | None
) -> None:
    view = await upload(client, b"x", headers={"Content-Disposition": header.encode()})
    assert view["name"] == name
    answer = await client.get(f"/v1/files/{view['id']}")
    assert answer.headers["content-disposition"] == "attachment; " + (attachment or f'filename="{view["id"]}"')


async def test_a_name_in_the_query_wins_and_is_one_line_of_bounded_length(client: httpx2.AsyncClient) -> None:
    header = {"Content-Disposition": 'attachment; filename="x"'}
    assert (await upload(client, b"x", params={"name": "y"}, headers=header))["name"] == "y"
    assert (await upload(client, b"x", params={"name": "a\r\n\0b"}))["name"] == "ab"
    assert (await upload(client, b"x", params={"name": "n" * 900}))["name"] == "n" * 255
    assert problem(await client.post("/v1/files", content=b"x", params={"name": "n" * 2000}))[0] == 422


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
async def test_the_content_type_is_kept_and_never_shown_as_a_page(
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


# Refusals.


async def test_too_much_is_refused_before_it_is_sent(client: httpx2.AsyncClient, root: Path) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: {LIMIT + 1}\r\nExpect: 100-continue\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    finally:
        writer.close()
    assert stored(root) == []  # nothing was begun


@pytest.mark.parametrize("headers", [{}, FORM])
async def test_too_much_is_refused_while_it_is_read(
    client: httpx2.AsyncClient, root: Path, headers: dict[str, str]
) -> None:
    data = bytes(LIMIT + 1)
    body = form(('Content-Disposition: form-data; name="f"; filename="x"', data)) if headers else data
    answer = await client.post("/v1/files", content=pieces(body, 100_000), headers=headers)
    assert problem(answer) == (413, f"the file exceeds the limit of {LIMIT} bytes")
    await eventually(lambda: stored(root) == [])
    assert (await upload(client, data[:-1]))["size"] == LIMIT


@pytest.mark.parametrize("headers", [{}, FORM])
async def test_an_upload_that_is_cut_leaves_nothing(
    client: httpx2.AsyncClient, root: Path, headers: dict[str, str]
) -> None:
    body = form(('Content-Disposition: form-data; name="f"; filename="x"', DATA)) if headers else DATA
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body[:-10])
    await writer.drain()
    await eventually(lambda: len(stored(root)) == 1)
    assert stored(root)[0].endswith("data#1")
    writer.close()
    await eventually(lambda: stored(root) == [])


async def test_an_upload_that_stalls_is_given_up(
    client: httpx2.AsyncClient, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.files.IDLE", 0.05)
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n".encode() + DATA[:-1])
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()
    await eventually(lambda: stored(root) == [])


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
async def test_bodies_that_are_refused(
    client: httpx2.AsyncClient, root: Path, headers: dict[str, str], body: bytes, status: int
) -> None:
    answer = await client.post("/v1/files", content=body, headers=headers)
    assert problem(answer)[0] == status
    await eventually(lambda: stored(root) == [])


async def test_a_store_that_fails_is_unavailable_and_nothing_of_it_is_told(
    client: httpx2.AsyncClient, root: Path
) -> None:
    (root / "uploads").write_bytes(b"a file in the directory's place")
    answer = await client.post("/v1/files", content=b"x")
    assert problem(answer)[0] == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert str(root) not in answer.text


# Downloads.


@pytest.fixture
async def path(client: httpx2.AsyncClient) -> str:
    return f"/v1/files/{(await upload(client))['id']}"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=5-", 5, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        (f"bytes=-{SIZE + 5}", 0, SIZE),
        (f"bytes={SIZE - 1}-{SIZE + 100}", SIZE - 1, SIZE),
        (f"bytes=0-{SIZE - 1}", 0, SIZE),
        ("BYTES= 1048570-1048580", 1048570, 1048581),
    ],
)
async def test_ranges(client: httpx2.AsyncClient, path: str, asked: str, start: int, end: int) -> None:
    answer = await client.get(path, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)
    assert answer.headers["etag"] == ETAG
    assert answer.content == DATA[start:end]


@pytest.mark.parametrize(
    "asked", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0", "bytes=9" + "9" * 99 + "-"]
)
async def test_ranges_outside(client: httpx2.AsyncClient, path: str, asked: str) -> None:
    answer = await client.get(path, headers={"Range": asked})
    assert (problem(answer)[0], answer.headers["content-range"]) == (416, f"bytes */{SIZE}")


@pytest.mark.parametrize(
    "asked", ["bytes=0-1,5-6", "bytes=9-5", "bytes=-", "bytes=", "lines=0-1", "bytes=a-b", "bytes=1"]
)
async def test_what_is_no_single_range_is_answered_by_the_whole(
    client: httpx2.AsyncClient, path: str, asked: str
) -> None:
    answer = await client.get(path, headers={"Range": asked})
    assert (answer.status_code, len(answer.content)) == (200, SIZE)
    assert "content-range" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-None-Match": ETAG}, 304),
        ({"If-None-Match": f'"x", W/{ETAG}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": ETAG, "Range": "bytes=0-1"}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-None-Match": DIGEST}, 200),
        ({"If-Match": ETAG}, 200),
        ({"If-Match": f'W/"x", {ETAG}'}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": f"W/{ETAG}"}, 412),
        ({"If-Match": '"x"'}, 412),
        ({"If-Range": ETAG, "Range": "bytes=0-1"}, 206),
        ({"If-Range": f"W/{ETAG}", "Range": "bytes=0-1"}, 200),
        ({"If-Range": '"x"', "Range": f"bytes={SIZE}-"}, 200),
        ({"If-Range": "Sat, 01 Jan 2000 00:00:00 GMT", "Range": "bytes=0-1"}, 200),
    ],
)
async def test_conditions(client: httpx2.AsyncClient, path: str, headers: dict[str, str], status: int) -> None:
    answer = await client.get(path, headers=headers)
    assert answer.status_code == status
    if status != 412:
        assert answer.headers["etag"] == ETAG
    assert len(answer.content) == {200: SIZE, 206: 2, 304: 0}.get(status, len(answer.content))


async def test_a_range_is_of_a_get_only(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.head(path, headers={"Range": "bytes=0-1"})
    assert (answer.status_code, answer.headers["content-length"]) == (200, str(SIZE))


async def test_delete(client: httpx2.AsyncClient, path: str, root: Path) -> None:
    answer = await client.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    for method in ("GET", "DELETE"):
        assert problem(await client.request(method, path))[0] == 404
    assert (await client.head(path)).status_code == 404
    assert stored(root) == []


@pytest.mark.parametrize("id", ["nope", "..%2f..%2fetc%2fpasswd", "%2e%2e", "0" * 30, "%00"])
async def test_unknown_uploads(client: httpx2.AsyncClient, id: str) -> None:
    assert problem(await client.get(f"/v1/files/{id}"))[0] == 404


async def test_what_is_anothers_or_expired_is_not_there(client: httpx2.AsyncClient, store: FileStore) -> None:
    anothers = await save_upload(store, b"x", tenant="another", keep=60)
    expired = await save_upload(store, b"x", tenant="default", keep=-1)
    for upload in (anothers, expired):
        for method in ("GET", "DELETE"):
            assert problem(await client.request(method, f"/v1/files/{upload.id}"))[0] == 404
    assert await store.load(anothers.path, 10) == b"x"


async def test_bytes_that_are_gone_are_a_404_and_no_broken_200(
    client: httpx2.AsyncClient, path: str, root: Path
) -> None:
    (root / "uploads" / path.rpartition("/")[2] / "data").unlink()
    assert problem(await client.get(path))[0] == 404


async def test_many_at_once_in_bounded_pieces(client: httpx2.AsyncClient, path: str) -> None:
    async def part(start: int) -> bytes:
        answer = await client.get(path, headers={"Range": f"bytes={start}-{start + 99_999}"})
        return answer.content

    starts = range(0, SIZE, 100_000)
    assert b"".join(await asyncio.gather(*map(part, starts))) == DATA


# Files of jobs.


async def produce(queue: Queue, store: FileStore, files: dict[str, bytes], tenant: str = "default") -> str:
    """A job that succeeded and published these files; its id."""
    entry = catalogue.Entry(name="t", payload_schema={}, result_schema={}, defaults={})
    await queue.register(WorkerInfo("w", "host", 1, ("q",), 1, "1", time.time()), [entry])
    options = Options(timeout=30)
    await queue.submit(Submission(id=new_id(), task="t", payload=b"{}", options=options, tenant=tenant, queue="q"))
    claim = await queue.claim("w", next(calls), slots=1, tasks=catalogue.digest([entry]), queues=["q"])
    (job,) = claim.jobs
    views = []
    for name, data in files.items():
        written = await store.write(job_path(job.id, int(job.token.partition(".")[0]), name), data)
        url = f"/v1/jobs/{job.id}/files/{name}"
        views.append({"name": name, **written._asdict(), "content_type": "text/x-own", "url": url})
    finish = Finish(job.id, job.token, State.SUCCEEDED, "succeeded", files=msgspec.json.encode(views))
    assert await queue.finish([finish]) == ["ok"]
    return job.id


async def test_files_of_a_job(client: httpx2.AsyncClient, queue: Queue, store: FileStore) -> None:
    files = {"a.csv": b"1,2\n", "out/ü #1?.bin": DATA, "empty": b""}
    job = await produce(queue, store, files)
    for name, data in files.items():
        path = f"/v1/jobs/{job}/files/{quote(name)}"
        answer = await client.get(path)
        assert (answer.status_code, answer.content) == (200, data)
        assert answer.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
        assert answer.headers["content-type"] == "text/x-own"
        assert (await client.head(path)).headers["content-length"] == str(len(data))
    answer = await client.get(f"/v1/jobs/{job}/files/out/%C3%BC%20%231%3F.bin", headers={"Range": "bytes=-5"})
    assert (answer.status_code, answer.content) == (206, DATA[-5:])
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"_ #1?.bin\"; filename*=UTF-8''%C3%BC%20%231%3F.bin"
    )


async def test_files_that_a_job_does_not_have(client: httpx2.AsyncClient, queue: Queue, store: FileStore) -> None:
    job = await produce(queue, store, {"a": b"1"})
    anothers = await produce(queue, store, {"a": b"1"}, tenant="another")
    none = await produce(queue, store, {})
    for path in (
        f"{job}/files/b",
        f"{job}/files/..%2fa",
        f"{job}/files/a%2f",
        f"{anothers}/files/a",
        "x/files/a",
        f"{none}/files/a",
    ):
        assert problem(await client.get(f"/v1/jobs/{path}"))[0] == 404
