"""Uploads by other protocols for parts are refused by name, and never stored as empty files."""

import asyncio
from pathlib import Path

import httpx2
import pytest
from redis.asyncio import Redis

from tests.api.serving import problem, serving, stored_paths, upload


async def test_tus_is_refused_by_name(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    async with serving(redis_url, tmp_path) as client:
        # The first request of every tus 1.0 client.
        created = await client.post(
            "/v1/files", headers={"Tus-Resumable": "1.0.0", "Upload-Length": "3000000"}
        )
        assert problem(created)[0] == 412
        assert created.json()["type"] == "/problems/upload-protocol"
        assert "draft-ietf-httpbis-resumable-upload" in created.json()["detail"]
        assert "ietf-draft-05" in created.json()["detail"]
        assert stored_paths(tmp_path) == []
        id = (await upload(client, b"x"))["id"]
        for method in ("PATCH", "HEAD"):
            answer = await client.request(
                method, f"/v1/files/{id}", headers={"Tus-Resumable": "1.0.0"}
            )
            assert answer.status_code == 412
        assert (await client.get(f"/v1/files/{id}")).content == b"x"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Draft-Interop-Version": "3", "Upload-Incomplete": "?1"}, 412),
        ({"Upload-Draft-Interop-Version": "5", "Upload-Complete": "?0"}, 412),
        ({"Upload-Draft-Interop-Version": "6", "Upload-Complete": "?0"}, 201),
        ({"Upload-Draft-Interop-Version": "8", "Upload-Complete": "?0;a=1"}, 201),
        # Whole files, as the HTTP library of iOS sends them to every server
        ({"Upload-Draft-Interop-Version": "3", "Upload-Incomplete": "?0"}, 201),
        ({"Upload-Draft-Interop-Version": "5", "Upload-Complete": "?1"}, 201),
    ],
)
async def test_versions_of_the_draft(
    client: httpx2.AsyncClient, headers: dict[str, str], status: int
) -> None:
    answer = await client.post("/v1/files", content=b"abc", headers=headers)
    assert answer.status_code == status
    if status == 201:
        complete = "?0" not in headers.get("Upload-Complete", "?1")
        assert ("size" in answer.json()) is complete


@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        (3, ["--data-binary", "123"]),
        (3, ["--data-binary", "123", "--header", "Upload-Complete: ?1"]),
        (3, ["--form", "file=123;filename=x"]),
        (0, ["--data-binary", ""]),
    ],
)
async def test_an_announced_length_is_always_held(
    client: httpx2.AsyncClient, size: int, arguments: list[str]
) -> None:
    for length in range(5):
        process = await asyncio.create_subprocess_exec(
            *("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *arguments),
            *("--header", f"Upload-Length: {length}", f"{client.base_url}/v1/files"),
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30):
            status, _ = await process.communicate()
        assert status == (b"201" if length == size else b"400"), length


@pytest.mark.parametrize("length", ["-1", "x", "", "3.0", "9" * 16, "9" * 5000])
async def test_a_length_that_is_no_number_is_malformed(
    client: httpx2.AsyncClient, length: str
) -> None:
    answer = await client.post("/v1/files", content=b"123", headers={"Upload-Length": length})
    assert problem(answer)[0] == 400
    assert "Upload-Length" in answer.json()["detail"]


async def test_a_length_above_the_limit_is_refused_at_once(
    redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    async with serving(redis_url, tmp_path, max_upload=1024) as client:
        for headers in ({}, {"Upload-Complete": "?0"}, {"Upload-Complete": "?1"}):
            answer = await client.post(
                "/v1/files", content=b"x", headers={**headers, "Upload-Length": "1025"}
            )
            assert problem(answer)[0] == 413
            assert answer.headers["upload-limit"] == "max-size=1024"
