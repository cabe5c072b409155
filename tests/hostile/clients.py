"""One hostile connection of each kind. None of them reads more than it must, or ever finishes."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import httpx2

Hostile = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
DRIP_SECONDS = 0.5
FILE_BYTES = 50 << 20
ITEM = json.dumps({"task": "http.gather", "payload": {"requests": [1] * 8000}}).encode()


def request(line: str, *headers: str) -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{line} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode()


JSON, NDJSON = "Content-Type: application/json", "Content-Type: application/x-ndjson"
ENDLESS = "Content-Length: 60000000"


async def pipeline(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends requests and reads no answer."""
    while True:
        writer.write(request("GET /livez") * 1000)
        await writer.drain()


async def unread_answers(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same with large answers."""
    while True:
        writer.write(request("GET /openapi.json") * 100)
        await writer.drain()


async def drip_after_answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends the body of a request that has been answered."""
    writer.write(request("GET /livez", ENDLESS))
    await drip(writer)


async def drip_head(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends a head byte by byte."""
    writer.write(b"GET /livez HTTP/1.1\r\nX-")
    await drip(writer)


async def half_job(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends most of a job."""
    writer.write(request("POST /v1/jobs", JSON, "Content-Length: 1000000") + b" " * 990_000)
    await drip(writer)


async def half_array(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends most of a large array."""
    writer.write(request("POST /v1/jobs/bulk", JSON, ENDLESS) + b"[")
    for _ in range(50):
        writer.write(b" " * (1 << 20))
        await writer.drain()
    await drip(writer)


async def half_line(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends most of a line."""
    writer.write(request("POST /v1/jobs/bulk", NDJSON, ENDLESS) + b" " * 1_000_000)
    await drip(writer)


async def unread_bulk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends lines with long answers, and reads none of them."""
    writer.write(request("POST /v1/jobs/bulk", NDJSON, "Transfer-Encoding: chunked"))
    while True:
        writer.write(b"4000\r\n" + b"x\n" * 0x2000 + b"\r\n")
        await writer.drain()


async def many_errors(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends items with thousands of errors each."""
    body = b"[" + b",".join([ITEM] * 20) + b"]"
    while True:
        writer.write(request("POST /v1/jobs/bulk", JSON, f"Content-Length: {len(body)}") + body)
        await writer.drain()
        await reader.readuntil(b"\r\n\r\n")


async def drip(writer: asyncio.StreamWriter) -> None:
    """Sends a byte at a time, for ever."""
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(DRIP_SECONDS)


def unread_download(path: str) -> Hostile:
    """Asks for a file and reads nothing."""

    async def run(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(request(f"GET {path}"))
        await writer.drain()
        await asyncio.Event().wait()

    return run


KINDS: Mapping[str, Hostile] = {
    one.__name__: one
    for one in (
        pipeline, unread_answers, drip_after_answer, drip_head, half_job, half_array, half_line,
        unread_bulk, many_errors,
    )
}  # fmt: skip


async def attack(url: str, kind: Hostile) -> None:
    """Runs one client until it is cancelled; connects again when it is cut off."""
    address = httpx2.URL(url)
    while True:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            try:
                await kind(reader, writer)
            finally:
                writer.transport.abort()
        await asyncio.sleep(DRIP_SECONDS)


async def file_to_download(url: str) -> str:
    """Uploads a large file; its path."""
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=120) as client:
        answer = await client.post("/v1/files", content=bytes(FILE_BYTES))
        return f"/v1/files/{answer.json()['id']}"
