"""Files on an S3 store: uploads, downloads, redirects to the store, and an outage."""

import hashlib
import random
import time
from collections.abc import AsyncIterator

import httpx2
import pytest
from redis.asyncio import Redis

from tandem_shared.dev.servers import free_port
from tandem_shared.errors import Unavailable
from tandem_shared.files.names import job_path
from tandem_shared.files.store import FileStore, open_store
from tandem_shared.files.sweep import sweep
from tandem_shared.files.uploads import save_upload
from tests.api.serving import problem, serving, upload
from tests.conftest import s3_environment
from tests.shared.files.test_sweep import none_alive

MIB = 1 << 20
DATA = random.Random(9).randbytes(20 * MIB + 99)  # more than one part of an S3 multipart upload
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
async def client(redis_url: str, redis: Redis, s3_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, s3_url) as client:
        yield client


@pytest.fixture
async def signing(redis_url: str, redis: Redis, s3_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, s3_url, store_presign="60s") as client:
        yield client


@pytest.fixture
async def store(s3_url: str) -> AsyncIterator[FileStore]:
    async with open_store(s3_url) as store:
        yield store


async def paths(store: FileStore) -> list[str]:
    return [stat.path async for stat in store.list("uploads")]


async def test_a_large_upload_is_served_whole_and_by_ranges_and_deleted(
    client: httpx2.AsyncClient, store: FileStore
) -> None:
    view = await upload(client, DATA)
    assert (view["size"], view["sha256"]) == (len(DATA), DIGEST)
    path = f"/v1/files/{view['id']}"
    assert (await client.get(path)).content == DATA
    for start, end in [(0, 1), (8 * MIB - 1, 8 * MIB + 1), (5 * MIB, len(DATA))]:
        answer = await client.get(
            path, headers={"Range": f"bytes={start}-{end - 1}", "If-Range": f'"{DIGEST}"'}
        )
        assert (answer.status_code, answer.content) == (206, DATA[start:end])
    assert (await client.delete(path)).status_code == 204
    assert await paths(store) == []
    assert problem(await client.get(path))[0] == 404


async def test_a_refused_upload_leaves_nothing_behind(
    redis_url: str, redis: Redis, s3_url: str, store: FileStore
) -> None:
    async with serving(redis_url, s3_url, max_upload=MIB) as client:
        assert problem(await client.post("/v1/files", content=_pieces(9 * MIB)))[0] == 413
    assert await paths(store) == []


async def _pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(0, size, 1000):
        yield bytes(1000)


async def test_a_download_redirects_to_a_signed_url(signing: httpx2.AsyncClient) -> None:
    view = await upload(signing, b"0123456789", params={"name": "ü.txt"})
    path = f"/v1/files/{view['id']}"
    answer = await signing.get(path)
    assert (answer.status_code, answer.headers["cache-control"]) == (307, "private, no-store")
    assert answer.content == b""
    there = answer.headers["location"]
    async with httpx2.AsyncClient(trust_env=False) as outside:
        whole = await outside.get(there)
        assert (whole.status_code, whole.content) == (200, b"0123456789")
        assert (
            whole.headers["content-disposition"]
            == "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%BC.txt"
        )
        assert whole.headers["content-type"].startswith("text/plain")
        part = await outside.get(there, headers={"Range": "bytes=3-4"})
        assert (part.status_code, part.content) == (206, b"34")
    # Preconditions are answered by the API, which knows the entity tags.
    assert (await signing.head(path)).status_code == 200
    assert (
        await signing.get(path, headers={"If-None-Match": f'"{view["sha256"]}"'})
    ).status_code == 304
    answer = await signing.get(path, headers={"If-Match": f'"{view["sha256"]}"'})
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert problem(await signing.get(path, headers={"Range": "bytes=10-"}))[0] == 416
    assert problem(await signing.get("/v1/files/" + "0" * 30))[0] == 404


async def test_a_local_store_never_redirects(
    redis_url: str, redis: Redis, tmp_path: object
) -> None:
    async with serving(redis_url, f"file://{tmp_path}", store_presign=60) as client:
        view = await upload(client, b"x")
        assert (await client.get(f"/v1/files/{view['id']}")).content == b"x"


async def test_a_sweep_removes_expired_uploads(store: FileStore) -> None:
    live = await save_upload(store, b"1", tenant="a", keep=60, now=time.time)
    await save_upload(store, b"1", tenant="a", keep=-1, now=time.time)
    await store.write(job_path("J", 1, "a"), b"1")
    assert await sweep(store, keep=-1, alive=none_alive, now=time.time()) == 1
    assert sorted(await paths(store)) == [f"uploads/{live.id}/data", f"uploads/{live.id}/meta.json"]
    assert await store.load(job_path("J", 1, "a"), 1) == b"1"


@pytest.fixture
def away_url(monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an S3 store whose server is down."""
    s3_environment(free_port(), monkeypatch)
    return "s3://tests/away"


async def test_a_store_outage_answers_503(redis_url: str, redis: Redis, away_url: str) -> None:
    async with serving(redis_url, away_url) as client:
        for answer in (
            await client.post("/v1/files", content=b"x"),
            await client.post("/v1/files", content=b"x", headers={"Upload-Complete": "?0"}),
            await client.get("/v1/files/" + "0" * 30),
            await client.delete("/v1/files/" + "0" * 30),
        ):
            assert problem(answer)[0] == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert "127.0.0.1" not in answer.text
    async with open_store(away_url) as store:
        with pytest.raises(Unavailable):
            await store.ping()
        with pytest.raises(Unavailable):
            await store.write("jobs/J/1/a", b"x")
