"""Authentication, internal errors that reveal nothing, and an unreachable Redis."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from tandem_api.app import create_app
from tandem_api.server.process import make_server
from tandem_api.server.sockets import listen
from tandem_shared.settings import load_settings
from tests.api.fake_worker import FakeWorker
from tests.api.serving import problem, serving
from tests.conftest import eventually

KEYS = ("tk_first_0123456789abcdef", "tk_first_fedcba9876543210", "tk_other_0123456789abcdef")


@pytest.fixture
async def locked(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, tmp_path, keys=KEYS) as client:
        yield client


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer tk_first_0123456789abcdee",
        "Bearer tk_nobody_0123456789abcdef",
        "Basic dGs6eA==",
        KEYS[0],
        "Bearer tk_other_fedcba9876543210",
    ],
)
async def test_every_endpoint_requires_a_key_once_keys_are_set(
    locked: httpx2.AsyncClient, given: str | None
) -> None:
    headers = {} if given is None else {"Authorization": given}
    for method, path in (
        ("GET", "/v1/tasks"),
        ("POST", "/v1/jobs"),
        ("POST", "/v1/jobs/bulk"),
        ("GET", "/v1/jobs/x/stream"),
        ("POST", "/v1/files"),
        ("GET", "/v1/nothing"),
        ("DELETE", "/v1/jobs"),
        ("GET", "/metrics"),
        ("GET", "/livez/"),
    ):
        answer = await locked.request(method, path, headers=headers)
        assert problem(answer)[0] == 401, path
        # RFC 6750 (3.1): a wrong key is told from a missing one.
        wrong = given is not None and given.startswith("Bearer tk_")
        reason = ' error="invalid_token"' if wrong else ""
        assert answer.headers["www-authenticate"] == f"Bearer{reason}"
        title = "The API key is not valid" if wrong else "An API key is needed"
        assert (answer.json()["title"], answer.json()["type"]) == (
            title,
            "/problems/unauthenticated",
        )


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
@pytest.mark.parametrize("key", KEYS)
async def test_each_key_opens_every_endpoint(
    locked: httpx2.AsyncClient, scheme: str, key: str
) -> None:
    headers = {"Authorization": f"{scheme} {key}"}
    assert (
        await locked.post("/v1/jobs", json={"task": "t.any"}, headers=headers)
    ).status_code == 202
    assert (await locked.post("/v1/files", content=b"x", headers=headers)).status_code == 201
    assert problem(await locked.get("/v1/nothing", headers=headers))[0] == 404


async def test_probes_and_pages_need_no_key(locked: httpx2.AsyncClient) -> None:
    for path in ("/livez", "/readyz", "/openapi.json", "/docs"):
        assert (await locked.get(path)).status_code == 200
    assert (await locked.get("/")).status_code == 404


@pytest.mark.parametrize("sent", ["req-1.A_b", "bad id", "x" * 65, None])
async def test_an_internal_error_shows_only_its_trace_id(
    redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: str | None
) -> None:
    settings = load_settings(redis_url=redis_url, store_url=f"file://{tmp_path}", keys=(), linger=0)
    edge = create_app(settings)

    @edge.fastapi.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the password is hunter2")

    server, sockets = make_server(edge, settings), listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    running = asyncio.create_task(server.serve(sockets))
    await eventually(lambda: server.started)
    try:
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            answer = await client.get(
                "/broken", headers={} if sent is None else {"X-Request-ID": sent}
            )
    finally:
        server.should_exit = True
        await running
    assert problem(answer)[0] == 500
    trace = answer.json()["trace_id"]
    assert trace == sent if sent == "req-1.A_b" else re.fullmatch("[0-9a-f]{32}", trace)
    assert answer.headers.get("x-request-id") == (sent if sent == "req-1.A_b" else None)
    assert "hunter2" not in answer.text
    assert set(answer.json()) == {"type", "title", "status", "detail", "instance", "trace_id"}


async def test_without_redis_the_api_answers_503_with_retry_after(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        async with serving(url, tmp_path) as client:
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/openapi.json")).status_code == 200
            for answer in (
                await client.get("/readyz"),
                await client.post("/v1/jobs", json={"task": "t.any"}),
                await client.get("/v1/jobs/x"),
                await client.post("/v1/jobs/x/cancel"),
                await client.get("/v1/jobs/x/stream"),
                await client.post("/v1/jobs/bulk", json=[{"task": "t.any"}]),
                await client.post(
                    "/v1/jobs/bulk",
                    content=b'{"task":"t.any"}\n',
                    headers={"content-type": "application/x-ndjson"},
                ),
                await client.get("/v1/tasks"),
                await client.get("/v1/queues"),
                await client.get("/v1/workers"),
            ):
                assert problem(answer)[0] == 503
                assert answer.headers["retry-after"] == "1"
                assert "127.0.0.1" not in answer.text


async def test_a_probe_does_not_wait_for_a_hanging_redis(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # accepts connections and never answers
        async with serving(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", tmp_path) as client:
            answer = await client.get("/readyz")
    assert problem(answer)[0] == 503
    assert answer.json()["checks"]["redis"] == {
        "ok": False,
        "detail": "Redis did not answer within 1 s",
    }
