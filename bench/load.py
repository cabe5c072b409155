"""A load generator for HTTP: a number of connections, each with one request in flight."""

import asyncio
from collections.abc import Callable
from time import perf_counter

from bench.processes import TIMEOUT_SECONDS, MeasurementFailed


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """A request as it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


class Load:
    """Counts answers. `ask` returns the next request, or None after the last one."""

    def __init__(self, ask: Callable[[], bytes | None], status: int) -> None:
        self.ask, self.status = ask, b" %d " % status
        self.answered = 0
        self.open = 0
        self.wrong: str | None = None
        self.idle = asyncio.Event()

    def next(self) -> bytes | None:
        """The next request; None at the end, or after a wrong answer."""
        return None if self.wrong else self.ask()

    def closed(self) -> None:
        self.open -= 1
        if not self.open:
            self.idle.set()


class Connection(asyncio.Protocol):
    """One connection; it understands only answers with a Content-Length."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # TCP connections have a full Transport
        self._transport = transport
        self._load.open += 1
        self._next()

    def connection_lost(self, _error: Exception | None) -> None:
        self._load.closed()

    def _next(self) -> None:
        following = self._load.next()
        if self._transport is None:
            return
        if following is None:
            self._transport.close()
        else:
            self._transport.write(following)

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
    """Send requests until `load` has no more. Raises MeasurementFailed after a wrong answer."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        for _ in range(connections):
            await loop.create_connection(lambda: Connection(load), "127.0.0.1", port)
        await load.idle.wait()
    if load.wrong:
        raise MeasurementFailed(
            f"expected a status of{load.status.decode()}but the answer was: {load.wrong}"
        )


async def rate(
    port: int, ask: Callable[[], bytes], status: int, seconds: float, connections: int = 64
) -> tuple[float, int]:
    """(answers per second, all answers); the rate leaves out the first tenth of the time."""
    start = perf_counter()
    counted_from, end = start + seconds / 10, start + seconds * 1.1
    first: tuple[float, int] | None = None  # when counting began, and the answers until then
    load: Load

    def next_request() -> bytes | None:
        nonlocal first
        now = perf_counter()
        if first is None and now >= counted_from:
            first = now, load.answered
        return ask() if now < end else None

    load = Load(next_request, status)
    await drive(port, load, connections)
    since, before = first or (start, 0)
    return (load.answered - before) / (perf_counter() - since), load.answered
