"""Resumable uploads (draft-ietf-httpbis-resumable-upload), through two APIs on one store."""

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from tandem_shared.errors import NotFound
from tandem_shared.files.store import open_store
from tandem_shared.files.uploads import find_upload
from tests.api.server.test_supervisor import address, api, ready
from tests.api.serving import problem, serving, stored_paths, upload
from tests.conftest import eventually

MIB = 1 << 20
LIMIT = 8 * MIB
DATA = random.Random(5).randbytes(3 * MIB + 321)
PARTIAL = "application/partial-upload"


@pytest.fixture(params=["file", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url: str = (
        f"file://{tmp_path}/store" if request.param == "file" else request.getfixturevalue("s3_url")
    )
    return url


@pytest.fixture
async def pair(
    redis_url: str, redis: Redis, store_url: str
) -> AsyncIterator[tuple[httpx2.AsyncClient, httpx2.AsyncClient]]:
    async with (
        serving(redis_url, store_url, max_upload=LIMIT) as one,
        serving(redis_url, store_url, max_upload=LIMIT) as two,
    ):
        yield one, two


@pytest.fixture
async def client(redis_url: str, redis: Redis, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, tmp_path / "store", max_upload=LIMIT) as client:
        yield client


async def begin(client: httpx2.AsyncClient, data: bytes = b"", **options: Any) -> str:
    options["headers"] = {"Upload-Complete": "?0", **options.get("headers", {})}
    answer = await client.post("/v1/files", content=data, **options)
    assert answer.status_code == 201, answer.text
    assert answer.headers["upload-complete"] == "?0"
    assert answer.headers["upload-offset"] == str(len(data))
    assert answer.headers["location"] == f"/v1/files/{answer.json()['id']}"
    location: str = answer.headers["location"]
    return location


async def send(
    client: httpx2.AsyncClient,
    path: str,
    offset: int,
    data: Any,
    *,
    last: bool = False,
    more: Mapping[str, str] = {},
) -> httpx2.Response:
    headers = {
        "Content-Type": PARTIAL,
        "Upload-Offset": str(offset),
        "Upload-Complete": "?1" if last else "?0",
    }
    return await client.patch(path, content=data, headers={**headers, **more})


async def test_a_file_is_uploaded_in_parts_through_two_apis(
    pair: tuple[httpx2.AsyncClient, httpx2.AsyncClient],
) -> None:
    one, two = pair
    path = await begin(
        one,
        DATA[:1000],
        headers={
            "Content-Disposition": "inline; filename*=UTF-8''%c3%bc.csv",
            "Content-Type": "text/csv",
        },
    )
    answer = await two.head(path)
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, "1000")
    assert answer.headers["upload-complete"] == "?0"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["upload-limit"].startswith(f"max-size={LIMIT}, max-age=604")
    answer = await send(two, path, 1000, DATA[1000 : 2 * MIB])
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(2 * MIB))
    assert answer.headers["upload-complete"] == "?0"
    assert problem(await one.get(path))[0] == 409
    answer = await send(one, path, 2 * MIB, DATA[2 * MIB :], last=True)
    assert (answer.status_code, answer.headers["location"], answer.headers["upload-complete"]) == (
        201,
        path,
        "?1",
    )
    assert answer.json() == {
        "id": path.rpartition("/")[2],
        "name": "ü.csv",
        "size": len(DATA),
        "sha256": hashlib.sha256(DATA).hexdigest(),
        "content_type": "text/csv",
        "expires_at": answer.json()["expires_at"],
    }
    assert (await two.get(path)).content == DATA
    head = await two.head(path)
    assert (head.headers["upload-complete"], head.headers["upload-offset"]) == (
        "?1",
        str(len(DATA)),
    )
    # A client that lost the answer gets it again.
    assert (await send(two, path, len(DATA), b"", last=True)).json() == answer.json()
    assert problem(await send(two, path, len(DATA), b"x"))[0] == 409
    assert problem(await send(two, path, 5, b"", last=True))[0] == 409


async def test_one_of_two_writers_at_the_same_offset_wins(
    pair: tuple[httpx2.AsyncClient, httpx2.AsyncClient],
) -> None:
    path = await begin(pair[0], b"start")
    gate = asyncio.Barrier(2)

    async def late(letter: bytes) -> AsyncIterator[bytes]:
        yield letter
        await gate.wait()  # both requests have arrived
        yield letter * MIB

    answers = await asyncio.gather(
        send(pair[0], path, 5, late(b"a"), last=True), send(pair[1], path, 5, late(b"b"), last=True)
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409]
    winner = b"ab"[[answer.status_code for answer in answers].index(201) :][:1]
    assert (await pair[0].get(path)).content == b"start" + winner * (MIB + 1)


async def test_a_wrong_offset_is_a_problem_with_the_expected_offset(
    client: httpx2.AsyncClient,
) -> None:
    path = await begin(client, b"12345")
    answer = await send(client, path, 3, b"x")
    assert problem(answer) == (409, "the upload continues at byte 5, not 3")
    assert (answer.headers["upload-offset"], answer.headers["upload-complete"]) == ("5", "?0")
    members = answer.json()
    assert members["type"] == "/problems/upload-offset"
    assert (members["expected-offset"], members["provided-offset"]) == (5, 3)


async def test_a_broken_connection_keeps_the_received_bytes(client: httpx2.AsyncClient) -> None:
    path = await begin(client)
    _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    head = (
        f"PATCH {path} HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: {PARTIAL}\r\nUpload-Offset: 0\r\nUpload-Complete: ?1\r\n"
        f"Content-Length: {len(DATA)}\r\n\r\n"
    )
    cut = 2 * MIB + 54321
    writer.write(head.encode() + DATA[:cut])
    await writer.drain()
    writer.close()

    async def offset() -> int:
        answer = await client.head(path)
        assert answer.headers["upload-complete"] == "?0"
        return int(answer.headers["upload-offset"])

    async def came() -> bool:
        return await offset() == cut

    await eventually(came)
    answer = await send(client, path, cut, DATA[cut:], last=True)
    assert answer.json()["sha256"] == hashlib.sha256(DATA).hexdigest()


async def test_a_killed_api_keeps_the_written_bytes(
    client: httpx2.AsyncClient, redis_url: str, tmp_path: Path
) -> None:
    path = await begin(client)
    async with api(
        tmp_path / "store", redis_url, "--port", "0", TANDEM_MAX_UPLOAD=str(LIMIT)
    ) as other:
        url = await address(other)
        await ready(url)
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        head = (
            f"PATCH {path} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: {PARTIAL}\r\nUpload-Offset: 0\r\n"
        )
        writer.write(
            f"{head}Upload-Complete: ?1\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()
            + DATA[: 2 * MIB + 5]
        )

        async def offset() -> int:
            return int((await client.head(path)).headers["upload-offset"])

        await eventually(offset)
        other.kill()
        await other.wait()
        writer.close()
    kept = await offset()
    assert MIB <= kept <= 2 * MIB + 5
    answer = await send(client, path, kept, DATA[kept:], last=True)
    assert answer.json()["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert (await client.get(path)).content == DATA


async def test_a_stalled_upload_keeps_the_received_bytes(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_api.files.uploads.IDLE_SECONDS", 0.05)
    path = await begin(client)
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    head = (
        f"PATCH {path} HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: {PARTIAL}\r\nUpload-Offset: 0\r\nUpload-Complete: ?1\r\n"
    )
    writer.write(f"{head}Content-Length: 9\r\n\r\n12345".encode())
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()
    answer = await client.head(path)
    assert (answer.headers["upload-offset"], answer.headers["upload-complete"]) == ("5", "?0")


async def test_delete_abandons_the_upload(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    path = await begin(client, b"12345")
    assert len(stored_paths(tmp_path / "store")) == 2
    assert (await client.delete(path)).status_code == 204
    assert stored_paths(tmp_path / "store") == []
    assert (await client.head(path)).status_code == 404
    assert problem(await send(client, path, 5, b"x"))[0] == 404


async def test_an_unfinished_upload_cannot_be_an_input(
    client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    path = await begin(client, b"12345")
    async with open_store(f"file://{tmp_path}/store") as store:
        with pytest.raises(NotFound):
            await find_upload(store, path.rpartition("/")[2], tenant="default", now=time.time())


async def test_limits_are_announced(client: httpx2.AsyncClient) -> None:
    answer = await client.options("/v1/files")
    assert (answer.status_code, answer.headers["accept-patch"]) == (204, PARTIAL)
    assert answer.headers["upload-limit"] == f"max-size={LIMIT}"
    path = await begin(client, b"12345")
    for refused in (
        await client.post(
            "/v1/files", headers={"Upload-Complete": "?0", "Upload-Length": str(LIMIT + 1)}
        ),
        await client.post("/v1/files", content=bytes(LIMIT + 1), headers={"Upload-Complete": "?0"}),
        await send(client, path, 5, bytes(LIMIT - 4)),
    ):
        assert problem(refused)[0] == 413
        assert refused.headers["upload-limit"] == f"max-size={LIMIT}"
    assert (await client.head(path)).headers["upload-offset"] == "5"
    answer = await send(client, path, 5, bytes(LIMIT - 5), last=True)
    assert (answer.status_code, answer.json()["size"]) == (201, LIMIT)


async def test_an_announced_length_is_enforced(client: httpx2.AsyncClient) -> None:
    path = await begin(client, b"12345", headers={"Upload-Length": "7"})
    assert (await client.head(path)).headers["upload-length"] == "7"
    assert problem(await send(client, path, 5, b"6", more={"Upload-Length": "8"}))[0] == 400
    assert problem(await send(client, path, 5, b"678"))[0] == 400
    offset = int((await client.head(path)).headers["upload-offset"])
    assert problem(await send(client, path, offset, b"", last=True))[0] == 400
    answer = await send(client, path, offset, b"67"[offset - 5 :], last=True)
    assert (answer.status_code, answer.json()["size"]) == (201, 7)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/octet-stream"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Upload-Offset": ""}, 400),
        ({"Upload-Offset": "-1"}, 400),
        ({"Upload-Offset": "1e3"}, 400),
        ({"Upload-Complete": "true"}, 400),
        ({"Upload-Complete": ""}, 400),
    ],
)
async def test_parts_that_are_refused(
    client: httpx2.AsyncClient, headers: dict[str, str], status: int
) -> None:
    path = await begin(client)
    answer = await send(client, path, 0, b"x", more=headers)
    assert problem(answer)[0] == status
    if "Content-Type" in headers:
        assert answer.headers["accept-patch"] == PARTIAL
    assert (await client.head(path)).headers["upload-offset"] == "0"


async def test_an_upload_in_one_request_is_complete(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/files", content=b"x", headers={"Upload-Complete": "?1"})
    assert (answer.status_code, answer.headers["upload-complete"]) == (201, "?1")
    path = f"/v1/files/{(await upload(client, b'12'))['id']}"
    assert (await send(client, path, 2, b"", last=True)).json()["size"] == 2


async def test_the_length_of_an_upload_in_one_request_is_checked(
    client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    for length in ("2", "4"):
        headers = {"Upload-Complete": "?1", "Upload-Length": length}
        assert problem(await client.post("/v1/files", content=b"123", headers=headers))[0] == 400
    assert stored_paths(tmp_path / "store") == []
    answer = await client.post(
        "/v1/files", content=b"123", headers={"Upload-Complete": "?1", "Upload-Length": "3"}
    )
    assert (answer.status_code, answer.json()["size"]) == (201, 3)


async def test_a_form_must_come_in_one_request(client: httpx2.AsyncClient) -> None:
    headers = {"Upload-Complete": "?0", "Content-Type": "multipart/form-data; boundary=B"}
    assert problem(await client.post("/v1/files", content=b"--B--\r\n", headers=headers))[0] == 415


async def test_keys_keep_tenants_apart(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    async with serving(redis_url, tmp_path, keys=("tk_some_" + "s" * 20,)) as client:
        assert problem(await client.patch("/v1/files/x", content=b""))[0] == 401
