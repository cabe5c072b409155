"""Starts the application on a real server, and checks what its answers have in common."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from tandem_api.app import create_app
from tandem_api.server.process import make_server
from tandem_api.server.sockets import listen, url_of
from tandem_shared.settings import load_settings
from tests.conftest import eventually


@asynccontextmanager
async def serving(
    redis_url: str, root: Path | str, **given: Any
) -> AsyncIterator[httpx2.AsyncClient]:
    """Serves the application on a free port, with files in `root` (a path or a URL).

    It accepts the Host `x`, which tests with raw sockets send.
    """
    store_url = root if isinstance(root, str) else f"file://{root}"
    defaults = {"keys": (), "linger": 0, "origins": "http://x"}
    settings = load_settings(redis_url=redis_url, store_url=store_url, **{**defaults, **given})
    server = make_server(create_app(settings), settings)
    sockets = listen("127.0.0.1", 0)
    running = asyncio.create_task(server.serve(sockets))
    await eventually(lambda: server.started or running.done())
    if isinstance(root, Path) and not running.done():
        # The first check of the store has removed the object that it writes, so that a test which
        # looks at the files sees those of its requests only.
        await server.lifespan.state["setup"].first()
    async with httpx2.AsyncClient(
        base_url=url_of(sockets, "127.0.0.1"), trust_env=False, timeout=30
    ) as client:
        yield client
    server.should_exit = True
    await running


def stored_paths(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def upload(client: httpx2.AsyncClient, data: bytes, **options: Any) -> dict[str, Any]:
    answer = await client.post("/v1/files", content=data, **options)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/files/{answer.json()['id']}"
    view: dict[str, Any] = answer.json()
    return view


def problem(answer: httpx2.Response) -> tuple[int, str]:
    """Asserts that the answer is a problem; returns its status and its detail."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert answer.json()["status"] == answer.status_code
    assert answer.json()["type"].startswith("/problems/")
    return answer.status_code, answer.json().get("detail", "")


async def raw_answer(client: httpx2.AsyncClient, data: bytes) -> bytes:
    """Sends `data` over a new TCP connection; returns all bytes up to the server's close."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        writer.write(data)
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.close()
