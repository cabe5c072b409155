"""Downloads over HTTP: ranges, preconditions, missing files, uploads and files of jobs."""

import asyncio
import hashlib
import itertools
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import msgspec
import pytest
from redis.asyncio import Redis

from tandem_shared import catalogue
from tandem_shared.files.names import job_path
from tandem_shared.files.store import FileStore, open_store
from tandem_shared.files.uploads import save_upload
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Finish, WorkerInfo
from tandem_shared.queue.queue import Queue
from tests.api.serving import problem, serving, stored_paths, upload

MIB = 1 << 20
calls = itertools.count(1)  # numbers the claims of all tests
DATA = random.Random(1).randbytes(2 * MIB + 12345)
DIGEST = hashlib.sha256(DATA).hexdigest()
ETAG = f'"{DIGEST}"'
SIZE = len(DATA)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def client(redis_url: str, redis: Redis, root: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, root) as client:
        yield client


@pytest.fixture
async def store(root: Path) -> AsyncIterator[FileStore]:
    async with open_store(f"file://{root}") as store:
        yield store


@pytest.fixture
async def path(client: httpx2.AsyncClient) -> str:
    return f"/v1/files/{(await upload(client, DATA))['id']}"


@pytest.mark.parametrize(
    ("range_header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=5-", 5, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        (f"bytes=-{SIZE + 5}", 0, SIZE),
        (f"bytes={SIZE - 1}-{SIZE + 100}", SIZE - 1, SIZE),
        (f"bytes=0-{SIZE - 1}", 0, SIZE),
        ("BYTES= 1048570-1048580", 1048570, 1048581),
        ("bytes=, 5-9 ,", 5, 10),  # empty items of a list are ignored (RFC 9110, 5.6.1.2)
        (f"bytes=0-{'9' * 5000}", 0, SIZE),
        (f"bytes=-{'9' * 5000}", 0, SIZE),
        (f"bytes={'0' * 5000}5-9", 5, 10),
    ],
)
async def test_ranges(
    client: httpx2.AsyncClient, path: str, range_header: str, start: int, end: int
) -> None:
    answer = await client.get(path, headers={"Range": range_header})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)
    assert answer.headers["etag"] == ETAG
    assert answer.content == DATA[start:end]


@pytest.mark.parametrize(
    "range_header",
    [
        f"bytes={SIZE}-",
        f"bytes={SIZE + 5}-{SIZE + 9}",
        "bytes=-0",
        f"bytes={'9' * 5000}-",
        f"bytes={'9' * 5000}-{'9' * 5000}",
    ],
)
async def test_ranges_outside_the_file_are_refused(
    client: httpx2.AsyncClient, path: str, range_header: str
) -> None:
    answer = await client.get(path, headers={"Range": range_header})
    assert (problem(answer)[0], answer.headers["content-range"]) == (416, f"bytes */{SIZE}")


@pytest.mark.parametrize(
    "range_header",
    ["bytes=0-1,5-6", "bytes=9-5", "bytes=-", "bytes=", "lines=0-1", "bytes=a-b", "bytes=1"],
)
async def test_other_range_headers_get_the_whole_file(
    client: httpx2.AsyncClient, path: str, range_header: str
) -> None:
    answer = await client.get(path, headers={"Range": range_header})
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
async def test_conditions(
    client: httpx2.AsyncClient, path: str, headers: dict[str, str], status: int
) -> None:
    answer = await client.get(path, headers=headers)
    assert answer.status_code == status
    if status != 412:
        assert answer.headers["etag"] == ETAG
    assert len(answer.content) == {200: SIZE, 206: 2, 304: 0}.get(status, len(answer.content))


async def test_a_range_applies_to_get_only(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.head(path, headers={"Range": "bytes=0-1"})
    assert (answer.status_code, answer.headers["content-length"]) == (200, str(SIZE))


async def test_delete(client: httpx2.AsyncClient, path: str, root: Path) -> None:
    answer = await client.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    for method in ("GET", "DELETE"):
        assert problem(await client.request(method, path))[0] == 404
    assert (await client.head(path)).status_code == 404
    assert stored_paths(root) == []


@pytest.mark.parametrize("id", ["nope", "..%2f..%2fetc%2fpasswd", "%2e%2e", "0" * 30, "%00"])
async def test_unknown_uploads(client: httpx2.AsyncClient, id: str) -> None:
    assert problem(await client.get(f"/v1/files/{id}"))[0] == 404


async def test_foreign_and_expired_uploads_are_not_found(
    client: httpx2.AsyncClient, store: FileStore
) -> None:
    anothers = await save_upload(store, b"x", tenant="another", keep=60, now=time.time)
    expired = await save_upload(store, b"x", tenant="default", keep=-1, now=time.time)
    for one in (anothers, expired):
        for method in ("GET", "DELETE"):
            assert problem(await client.request(method, f"/v1/files/{one.id}"))[0] == 404
    assert await store.load(anothers.path, 10) == b"x"


async def test_missing_bytes_give_a_404_instead_of_a_truncated_200(
    client: httpx2.AsyncClient, path: str, root: Path
) -> None:
    (root / "uploads" / path.rpartition("/")[2] / "data").unlink()
    assert problem(await client.get(path))[0] == 404


async def test_many_parallel_downloads_are_correct(client: httpx2.AsyncClient, path: str) -> None:
    async def part(start: int) -> bytes:
        answer = await client.get(path, headers={"Range": f"bytes={start}-{start + 99_999}"})
        return answer.content

    starts = range(0, SIZE, 100_000)
    assert b"".join(await asyncio.gather(*map(part, starts))) == DATA


async def produce(
    queue: Queue,
    store: FileStore,
    files: dict[str, bytes],
    tenant: str = "default",
    kind: str = "text/x-own",
) -> str:
    """Runs a job that publishes these files and succeeds; returns its id."""
    entry = catalogue.CatalogueEntry(name="t", payload_schema={}, result_schema={}, defaults={})
    await queue.register(WorkerInfo("w", "host", 1, ("q",), 1, "1", time.time()), [entry])
    options = JobOptions(timeout=30)
    await queue.submit(
        Submission(id=new_id(), task="t", payload=b"{}", options=options, tenant=tenant, queue="q")
    )
    claim = await queue.claim(
        "w", next(calls), slots=1, tasks=catalogue.digest([entry]), queues=["q"]
    )
    (job,) = claim.jobs
    views = []
    for name, data in files.items():
        written = await store.write(job_path(job.id, int(job.token.partition(".")[0]), name), data)
        url = f"/v1/jobs/{job.id}/files/{name}"
        views.append({"name": name, **written._asdict(), "content_type": kind, "url": url})
    finish = Finish(
        job.id, job.token, State.SUCCEEDED, "succeeded", files=msgspec.json.encode(views)
    )
    assert await queue.finish([finish]) == ["ok"]
    return job.id


async def test_files_of_a_job(client: httpx2.AsyncClient, queue: Queue, store: FileStore) -> None:
    files = {"a.csv": b"1,2\n", "out/ü #1?.bin": DATA, "empty": b"", "data:a/☃,x": b"1"}
    job = await produce(queue, store, files)
    for name, data in files.items():
        path = f"/v1/jobs/{job}/files/{quote(name)}"
        answer = await client.get(path)
        assert (answer.status_code, answer.content) == (200, data)
        assert answer.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
        assert answer.headers["content-type"] == "text/x-own"
        assert (await client.head(path)).headers["content-length"] == str(len(data))
    answer = await client.get(
        f"/v1/jobs/{job}/files/out/%C3%BC%20%231%3F.bin", headers={"Range": "bytes=-5"}
    )
    assert (answer.status_code, answer.content) == (206, DATA[-5:])
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"_ #1?.bin\"; filename*=UTF-8''%C3%BC%20%231%3F.bin"
    )


async def test_a_type_that_no_header_can_hold_is_not_sent(
    client: httpx2.AsyncClient, queue: Queue, store: FileStore
) -> None:
    for kind in ("a/☃", "text/x\r\nSet-Cookie: a=b", "", "nonsense"):
        job = await produce(queue, store, {"a": b"1"}, kind=kind)
        answer = await client.get(f"/v1/jobs/{job}/files/a")
        assert (answer.status_code, answer.content) == (200, b"1")
        assert answer.headers["content-type"] == "application/octet-stream"


async def test_missing_files_of_a_job_are_not_found(
    client: httpx2.AsyncClient, queue: Queue, store: FileStore
) -> None:
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
