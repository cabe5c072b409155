"""TCP relays that pass bytes on, with delays, stalls and cuts."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

PIECE_BYTES = 64 << 10
QUEUE_SECONDS = 15.0  # that a connection waits for a ready replica
Open = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Relay:
    """Listens on a loopback port and connects each client with `open_target`."""

    def __init__(self, open_target: Open) -> None:
        self.port = 0
        self.delay = 0.0  # seconds for each piece
        self.held = 0  # pieces that a stall holds back
        self._open = open_target
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()

    def stall(self) -> None:
        """Pass nothing on from now on, with all connections left open."""
        self._flowing.clear()

    def flow(self) -> None:
        """End a stall."""
        self._flowing.set()

    def cut(self, share: float = 1.0, chance: random.Random | None = None) -> None:
        """Reset that share of the connections."""
        for writer in list(self._writers):
            if (chance or random).random() < share:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await self._open()
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, target_writer}
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, target_writer))
                both.create_task(self._pump(target_reader, writer))
        finally:
            self._writers -= {writer, target_writer}
            for end in (writer, target_writer):
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                if self.delay:
                    await asyncio.sleep(self.delay)
                self.held += 1
                await self._flowing.wait()
                self.held -= 1
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()


class Front(Relay):
    """A minimal load balancer: connections go to replicas whose `/readyz` was 200 a moment ago."""

    def __init__(self) -> None:
        super().__init__(self._open_ready)
        self.replicas: dict[int, bool] = {}  # port → whether it is ready
        self._polling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await super().start()
        self._polling = asyncio.create_task(self._poll())

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
        await super().close()

    async def _poll(self) -> None:
        while True:
            ports = list(self.replicas)
            answers = await asyncio.gather(*(ready(port) for port in ports))
            for port, answer in zip(ports, answers, strict=True):
                if port in self.replicas:
                    self.replicas[port] = answer
            await asyncio.sleep(0.1)

    async def _open_ready(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a ready replica, or wait for one. Raises OSError."""
        async with asyncio.timeout(QUEUE_SECONDS):  # TimeoutError is an OSError
            while not (ports := [port for port, is_ready in self.replicas.items() if is_ready]):
                await asyncio.sleep(0.05)
        return await asyncio.open_connection("127.0.0.1", random.choice(ports))


async def ready(port: int) -> bool:
    """Whether the API on that port says that it is ready."""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError):
        return False
