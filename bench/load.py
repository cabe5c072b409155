"""A load generator for HTTP: so many connections, each with one request in flight, made before the clock starts."""

import asyncio
from collections.abc import Callable
from time import perf_counter

from bench.processes import PATIENCE, Broken


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """What goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


class Load:
    """Counts answers. `ask` gives the next request, None when there are no more."""

    def __init__(self, ask: Callable[[], bytes | None], status: int) -> None:
        self.ask, self.status = ask, b" %d " % status
        self.answered = 0
        self.open = 0
        self.wrong: str | None = None
        self.idle = asyncio.Event()

    def next(self) -> bytes | None:
        """Also None once anything went wrong."""
        return None if self.wrong else self.ask()

    def closed(self) -> None:
        self.open -= 1
        if not self.open:
            self.idle.set()


class Connection(asyncio.Protocol):
    """One of them; only answers with a Content-Length are understood."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # it is one
        self._transport = transport
        self._load.open += 1
        self._next()

    def connection_lost(self, _error: Exception | None) -> None:
        self._load.closed()

    def _next(self) -> None:
        wanted = self._load.next()
        if self._transport is None:
            return
        if wanted is None:
            self._transport.close()
        else:
            self._transport.write(wanted)

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._data[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].partition(b"\r\n")[0]) if at >= 0 else 0
        if len(self._data) < end + 4 + length:
            return
        if self._load.status not in head[:16]:
            self._load.wrong = self._data[:400].decode(errors="replace")
        self._load.answered += 1
        self._data = self._data[end + 4 + length :]
        self._next()


async def drive(port: int, load: Load, connections: int) -> None:
    """Until `load` has nothing more to ask. Raises Broken after an answer of another status."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        for _ in range(connections):
            await loop.create_connection(lambda: Connection(load), "127.0.0.1", port)
        await load.idle.wait()
    if load.wrong:
        raise Broken(f"the answer was another one: {load.wrong}")


async def rate(
    port: int, ask: Callable[[], bytes], status: int, seconds: float, connections: int = 64
) -> tuple[float, int]:
    """Answers per second after a tenth of the time, and all answers."""
    began = perf_counter()
    early, ends = began + seconds / 10, began + seconds * 1.1
    first: tuple[float, int] | None = None
    load: Load

    def until() -> bytes | None:
        nonlocal first
        now = perf_counter()
        if first is None and now >= early:
            first = now, load.answered
        return ask() if now < ends else None

    load = Load(until, status)
    await drive(port, load, connections)
    since, before = first or (began, 0)
    return (load.answered - before) / (perf_counter() - since), load.answered
