"""Readers of streams in a chaos run: they take up again where they were cut off, and note every entry."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec

from tests.chaos.check.evidence import Told, View

FAULTS = (aiohttp.ClientError, TimeoutError, OSError)
SILENCE = 40.0  # seconds that a socket may say nothing, which is more than two pings


async def follow_lines(
    session: aiohttp.ClientSession, told: Told, id: str, again: Callable[[], None]
) -> None:
    """The whole stream as NDJSON, however often it breaks off; `again` is called before each further request."""

    async def read() -> None:
        headers = {"Accept": "application/x-ndjson"}
        if told.places:
            headers["Last-Event-ID"] = told.places[-1]
        async with session.get(f"/v1/jobs/{id}/stream", headers=headers) as answer:
            if answer.status != 200:
                _refused(told, answer.status, await answer.read())
                return
            async for line in answer.content:
                if (
                    line.endswith(b"\n") and line.strip()
                ):  # else it was cut off, or is a sign of life
                    _heard(told, msgspec.json.decode(line))

    await _to_the_end(read, told, again)


async def follow_socket(
    session: aiohttp.ClientSession, told: Told, id: str, again: Callable[[], None]
) -> None:
    """The same over a WebSocket."""

    async def read() -> None:
        wish = {"subscribe": id} | ({"after": told.places[-1]} if told.places else {})
        timeout = aiohttp.ClientWSTimeout(ws_receive=SILENCE, ws_close=2)
        async with session.ws_connect(
            "/v1/stream", protocols=("tandem.v1",), timeout=timeout
        ) as socket:
            await socket.send_str(msgspec.json.encode(wish).decode())
            async for message in socket:
                entry = msgspec.json.decode(message.data)
                if entry["type"] == "error":
                    _refused(told, entry["data"]["status"], message.data)
                    return
                _heard(told, entry)
                if told.ended:
                    return

    await _to_the_end(read, told, again)


async def _to_the_end(
    read: Callable[[], Awaitable[None]], told: Told, again: Callable[[], None]
) -> None:
    while True:
        with contextlib.suppress(*FAULTS):
            await read()
        if told.ended or told.gone or told.wrong:
            return
        again()
        await asyncio.sleep(random.uniform(0.02, 0.2))


def _refused(told: Told, status: int, body: object) -> None:
    """Where there is a use in asking again, nothing is noted."""
    if status == 404:
        told.gone = True
    elif status != 503:
        told.wrong.append(f"stream: {status} {str(body)[:200]}")


def _heard(told: Told, entry: dict[str, Any]) -> None:
    told.places.append(entry["id"])
    if entry["type"] == "output":
        told.output.append((entry["attempt"], entry["data"]["number"]))
    elif entry["type"] == "end":
        told.ended = True
        now = time.time()
        told.finals.append(View(entry["data"]["state"], "", now, now))
