"""Servers that answer with given bytes, and what a task and curl make of them."""

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tandem_worker.errors import TaskError
from tandem_worker.tasks.http.request import request
from tests.worker.bench import Bench

CURL = shutil.which("curl")
ANY_STATUS = ["1xx", "2xx", "3xx", "4xx", "5xx"]
OK = b"HTTP/1.1 200 OK\r\n"
TWO = b"Content-Length: 2\r\n\r\nok"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def serving(*answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """The URL of a server that sends the answers in turn, and the requests that it received."""
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        port = str(writer.get_extra_info("sockname")[1]).encode()
        writer.write(answers[min(len(requests), len(answers)) - 1].replace(b"<port>", port))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "0.0.0.0", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


def target(request: bytes) -> bytes:
    return request.split(b" ")[1]


async def body_or_error(bench: Bench, url: str, **more: Any) -> bytes | str:
    """The body of the response, or the type of the error."""
    payload = {"url": url, "expect_status": ANY_STATUS, "max_bytes": 1 << 20, **more}
    try:
        result = await bench.run(request, payload)
    except TaskError as error:
        return error.type
    if "base64" in result:
        return base64.b64decode(result["base64"])
    return str(result["text"]).encode() if "text" in result else json.dumps(result["json"]).encode()


async def curl(*arguments: str) -> tuple[int, bytes]:
    """curl's exit code and output."""
    assert CURL is not None
    process = await asyncio.create_subprocess_exec(
        CURL, "-q", "-s", "--max-redirs", "10", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output
