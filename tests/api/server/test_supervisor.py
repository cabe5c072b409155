"""`python -m tandem_api` as a process: its address, its start-up errors, and its shutdown."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import parse_url

from tests.api.fake_worker import FakeWorker
from tests.chaos.relay import Relay
from tests.conftest import eventually

KEY = "tk_main_0123456789abcdef"


@asynccontextmanager
async def api(
    tmp_path: Path, redis_url: str, *options: str, **env: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    given = {
        "TANDEM_REDIS_URL": redis_url,
        "TANDEM_STORE_URL": f"file://{tmp_path}",
        "PYTHONUNBUFFERED": "1",
        "TANDEM_LINGER": "0",
        **env,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tandem_api",
        *options,
        env={"PATH": os.environ["PATH"], **given},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    children = []
    try:
        yield process
    finally:
        if process.returncode is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        await process.communicate()
        for child in children:
            child.kill()


async def address(process: asyncio.subprocess.Process) -> str:
    """The URL that the process logs when it starts to serve."""
    assert process.stdout is not None
    async with asyncio.timeout(30):
        line = (await process.stdout.readline()).decode().strip()
    assert line.startswith("serving at http://127.0.0.1:"), line
    return line.removeprefix("serving at ")


async def ready(url: str, **headers: str) -> None:
    async def answers() -> bool:
        try:
            async with httpx2.AsyncClient(trust_env=False) as client:
                return (await client.get(f"{url}/readyz", headers=headers)).status_code == 200
        except httpx2.TransportError:
            return False

    await eventually(answers, timeout=30)


async def test_port_0_is_logged_and_sigterm_ends_open_requests(
    redis: Redis, redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    async with api(tmp_path, redis_url, "--port", "0") as process:
        url = await address(process)
        await ready(url)
        async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
            id = (await client.post("/v1/jobs", json={"task": "t.any"})).json()["id"]
            other = (await client.post("/v1/jobs", json={"task": "t.any"})).json()["id"]
            poll = asyncio.create_task(client.get(f"/v1/jobs/{other}?wait=30"))
            await eventually(
                lambda: redis.pubsub_channels(f"*:{other}")
            )  # the request has arrived and is waiting
            async with client.stream("GET", f"/v1/jobs/{id}/stream") as stream:
                chunks = stream.aiter_text()
                text = await anext(chunks)
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(10):
                    text += "".join([chunk async for chunk in chunks])
                    assert (await poll).json()["state"] == "queued"
                assert "event: end" not in text
        async with asyncio.timeout(10):
            assert await process.wait() == 0


async def test_a_start_without_keys_logs_a_warning(redis_url: str, tmp_path: Path) -> None:
    async with api(tmp_path, redis_url, "--port", "0") as process:
        await address(process)
        process.terminate()
        _, stderr = await process.communicate()
        assert b"TANDEM_KEYS is not set" in stderr
    async with api(tmp_path, redis_url, "--port=0", TANDEM_KEYS=KEY) as process:
        url = await address(process)
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            await ready(url)
            assert (await client.get("/v1/tasks")).status_code == 401
            assert (
                await client.get("/v1/tasks", headers={"Authorization": f"Bearer {KEY}"})
            ).status_code == 200
        process.terminate()
        _, stderr = await process.communicate()
        assert b"TANDEM_KEYS" not in stderr
        assert b"0123456789abcdef" not in stderr


@pytest.mark.parametrize(
    ("options", "env", "expected"),
    [
        (("--host", "0.0.0.0"), {}, b"TANDEM_KEYS: the API would be open to everybody"),
        (
            ("--host", "203.0.113.7", "--port", "0"),
            {"TANDEM_KEYS": KEY},
            b"TANDEM_HOST, TANDEM_PORT: cannot listen on",
        ),
        (("--port", "70000"), {}, b"TANDEM_PORT: "),
        (("--processes", "0"), {}, b"--processes"),
        ((), {"TANDEM_STORE_URL": "file://elsewhere/x"}, b"TANDEM_STORE_URL: "),
    ],
)
async def test_an_invalid_setting_aborts_the_start_with_one_line(
    redis_url: str, tmp_path: Path, options: tuple[str, ...], env: dict[str, str], expected: bytes
) -> None:
    async with api(tmp_path, redis_url, *options, **env) as process, asyncio.timeout(30):
        _, error = await process.communicate()
        assert process.returncode == 2
        assert expected in error
        assert b"Traceback" not in error


async def several(process: asyncio.subprocess.Process, count: int) -> list[psutil.Process]:
    def children() -> list[psutil.Process]:
        found = psutil.Process(process.pid).children()
        return found if len(found) == count else []

    return await eventually(children)


async def test_several_processes_share_the_port_and_end_together(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    async with api(tmp_path, redis_url, "--port", "0", "--processes", "2") as process:
        url = await address(process)
        await ready(url)
        first, second = await several(process, 2)
        first.kill()  # a dead process is restarted while the other one serves
        await eventually(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
        await ready(url)
        await eventually(
            lambda: second.is_running() and len(psutil.Process(process.pid).children()) == 2
        )
        children = psutil.Process(process.pid).children()
        process.terminate()
        async with asyncio.timeout(20):
            assert await process.wait() == 0
        assert not [child for child in children if child.is_running()]


async def test_a_stopped_process_is_replaced(redis_url: str, tmp_path: Path) -> None:
    async with api(tmp_path, redis_url, "--port", "0", "--processes", "2") as process:
        await ready(await address(process))
        first, second = await several(process, 2)
        first.suspend()
        await eventually(lambda: not alive(first), timeout=30)
        replaced = await several(process, 2)
        assert second in replaced
        assert first not in replaced
        process.terminate()
        async with asyncio.timeout(20):
            assert await process.wait() == 0


async def test_connections_are_refused_once_the_processes_stop_accepting(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    async with api(tmp_path, redis_url, "--port", "0", "--processes", "2") as process:
        url = httpx2.URL(await address(process))
        await ready(str(url))
        _, upload = await asyncio.open_connection(url.host, url.port)
        upload.write(b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1")
        await upload.drain()
        process.terminate()

        async def refused() -> bool:
            try:
                reader, writer = await asyncio.open_connection(url.host, url.port)
            except ConnectionRefusedError:
                return True
            # Until then, each connection is served.
            writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):  # closed while it waited
                await reader.read()
            writer.close()
            return False

        await eventually(refused, timeout=5)
        assert process.returncode is None, "the upload keeps it from ending"
        upload.close()
        async with asyncio.timeout(20):
            assert await process.wait() == 0


async def test_processes_end_when_their_parent_is_killed(redis_url: str, tmp_path: Path) -> None:
    async with api(tmp_path, redis_url, "--port", "0", "--processes", "2") as process:
        await ready(await address(process))
        children = await several(process, 2)
        process.kill()

        def ended() -> bool:
            return not any(alive(child) for child in children)

        await eventually(ended, timeout=20)


def alive(child: psutil.Process) -> bool:
    try:
        status: Any = child.status()
    except psutil.NoSuchProcess:
        return False
    return bool(status != psutil.STATUS_ZOMBIE)


async def test_after_sigterm_the_api_is_unready_and_still_serves(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    async with api(tmp_path, redis_url, "--port", "0", TANDEM_LINGER="50s") as process:
        url = await address(process)
        await ready(url)
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            assert "connection" not in (await client.get("/livez")).headers
        process.terminate()

        async def unready() -> bool:
            async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
                answer = await client.get("/readyz")
            return answer.status_code == 503 and "retry-after" in answer.headers

        await eventually(unready)
        async with httpx2.AsyncClient(
            base_url=url, trust_env=False
        ) as client:  # opens a new connection
            answer = await client.post("/v1/jobs", json={"task": "t.any"})
            assert answer.status_code == 202
            assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["?wait=20", "/stream"])
async def test_requests_waiting_for_a_hanging_redis_get_503_at_shutdown(
    redis_url: str, worker: FakeWorker, tmp_path: Path, path: str
) -> None:
    socket = parse_url(redis_url)["path"]
    relay = Relay(lambda: asyncio.open_unix_connection(socket))
    await relay.start()
    try:
        url = f"redis://127.0.0.1:{relay.port}"
        async with api(tmp_path, url, TANDEM_LINGER="1s", TANDEM_DRAIN="1s") as process:
            url = await address(process)
            await ready(url)
            async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
                id = (await client.post("/v1/jobs", json={"task": "t.any"})).json()["id"]
                relay.stall()
                request = asyncio.create_task(client.get(f"/v1/jobs/{id}{path}"))
                await eventually(lambda: relay.held)
                # new requests are still accepted during the linger second
                process.terminate()
                async with asyncio.timeout(30):
                    answer = await request
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["detail"].startswith("the process is shutting down")
            async with asyncio.timeout(30):
                output = b"".join(await process.communicate())
            assert process.returncode == 0
            assert b"cancelling unfinished requests" in output, output
            assert b"error" not in output, output
    finally:
        await relay.close()


async def test_a_client_that_leaves_pipelined_requests_causes_no_error(
    redis: Redis, redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    async with api(tmp_path, redis_url) as process:
        url = await address(process)
        await ready(url)
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            id = (await client.post("/v1/jobs", json={"task": "t.any"})).json()["id"]
            _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
            for path in ("/livez", f"/v1/jobs/{id}?wait=20", "/livez"):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

            async def subscribers(wanted: int) -> bool:
                return bool(
                    sum(count for _, count in await redis.pubsub_numsub(f"tandem:{{a}}:news:{id}"))
                    == wanted
                )

            await eventually(lambda: subscribers(1))  # the second request is being answered
            writer.transport.abort()
            await worker.drain()
            await eventually(lambda: subscribers(0))  # its subscription is gone
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            output = b"".join(await process.communicate())
    assert b"error" not in output, output
