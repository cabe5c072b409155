"""A server whose responses break off, and what tests of `http.download` share."""

import random
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tandem_worker.errors import TaskError
from tandem_worker.task import task_of
from tandem_worker.tasks.http.download import download as http_download
from tests.worker.bench import Bench

TASK = task_of(http_download)
DATA = random.Random(7).randbytes(3 << 20)
ETAG = {"ETag": '"one"'}


async def failure(bench: Bench, payload: dict[str, Any], **job: Any) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await bench.run(http_download, payload, **job)
    return caught.value


def stored(tmp_path: Path) -> list[bytes]:
    """The contents of all files in the store, read from the disk."""
    return [path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()]


class Site:
    """A server of one body; while it has `breaks`, it closes responses after that many bytes."""

    def __init__(self, data: bytes = DATA, headers: dict[str, str] | None = None) -> None:
        self.data, self.headers = data, ETAG if headers is None else headers
        self.breaks: list[int] = []
        self.ranges = True
        self.requests: list[tuple[str | None, str | None]] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        self.requests.append((wanted, condition))
        start, status, headers = 0, 200, dict(self.headers)
        if wanted is not None and self.ranges and condition in self.headers.values():
            start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
        return await send(
            request, self.data[start:], status, headers, self.breaks.pop(0) if self.breaks else None
        )


async def send(
    request: web.BaseRequest, body: bytes, status: int, headers: dict[str, str], stop: int | None
) -> web.StreamResponse:
    """Send the body, or reset the connection after `stop` bytes."""
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[:stop])
    if stop is not None and request.transport is not None:
        # Send the bytes before the connection is aborted.
        request.transport.close()
    return response
