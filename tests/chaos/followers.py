"""Stream readers of a chaos run: they resume where they were cut off, and log every entry."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec

from tests.chaos.check.evidence import SubmissionLog, View

FAULTS = (aiohttp.ClientError, TimeoutError, OSError)
SILENCE_SECONDS = 40.0  # without a message on a WebSocket: more than two pings


async def follow_lines(
    session: aiohttp.ClientSession, log: SubmissionLog, id: str, on_retry: Callable[[], None]
) -> None:
    """Read a stream as NDJSON to its end; `on_retry` is called before every further request."""

    async def read() -> None:
        headers = {"Accept": "application/x-ndjson"}
        if log.entry_ids:
            headers["Last-Event-ID"] = log.entry_ids[-1]
        async with session.get(f"/v1/jobs/{id}/stream", headers=headers) as answer:
            if answer.status != 200:
                _refused(log, answer.status, await answer.read())
                return
            async for line in answer.content:
                # An incomplete line was cut off; an empty one only shows that the job still runs.
                if line.endswith(b"\n") and line.strip():
                    _received(log, msgspec.json.decode(line))

    await _repeat(read, log, on_retry)


async def follow_socket(
    session: aiohttp.ClientSession, log: SubmissionLog, id: str, on_retry: Callable[[], None]
) -> None:
    """Read a stream over a WebSocket to its end."""

    async def read() -> None:
        request = {"subscribe": id}
        if log.entry_ids:
            request["after"] = log.entry_ids[-1]
        timeout = aiohttp.ClientWSTimeout(ws_receive=SILENCE_SECONDS, ws_close=2)
        async with session.ws_connect(
            "/v1/stream", protocols=("tandem.v1",), timeout=timeout
        ) as socket:
            await socket.send_str(msgspec.json.encode(request).decode())
            async for message in socket:
                entry = msgspec.json.decode(message.data)
                if entry["type"] == "error":
                    _refused(log, entry["data"]["status"], message.data)
                    return
                _received(log, entry)
                if log.stream_ended:
                    return

    await _repeat(read, log, on_retry)


async def _repeat(
    read: Callable[[], Awaitable[None]], log: SubmissionLog, on_retry: Callable[[], None]
) -> None:
    while True:
        with contextlib.suppress(*FAULTS):
            await read()
        if log.stream_ended or log.not_found or log.unexpected:
            return
        on_retry()
        await asyncio.sleep(random.uniform(0.02, 0.2))


def _refused(log: SubmissionLog, status: int, body: object) -> None:
    """Log a refusal, unless retrying may help."""
    if status == 404:
        log.not_found = True
    elif status != 503:
        log.unexpected.append(f"stream: {status} {str(body)[:200]}")


def _received(log: SubmissionLog, entry: dict[str, Any]) -> None:
    log.entry_ids.append(entry["id"])
    if entry["type"] == "output":
        log.output.append((entry["attempt"], entry["data"]["number"]))
    elif entry["type"] == "end":
        log.stream_ended = True
        now = time.time()
        log.finals.append(View(entry["data"]["state"], "", now, now))
