"""TCP in between: what comes is passed on, slowly, not for a while, or no more."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

PIECE = 64 << 10
QUEUED = 15.0  # seconds
Open = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Relay:
    """Listens on a port of the loopback address and connects each client by `open_there`."""

    def __init__(self, open_there: Open) -> None:
        self.port = 0
        self.delay = 0.0  # seconds, for each piece
        self.held = 0  # pieces that a stall keeps back
        self._open = open_there
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
        """Nothing passes any more, and nobody is told."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def cut(self, share: float = 1.0, chance: random.Random | None = None) -> None:
        """Resets that share of the connections."""
        for writer in list(self._writers):
            if (chance or random).random() < share:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await self._open()
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there_writer}
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, there_writer))
                both.create_task(self._pump(there_reader, writer))
        finally:
            self._writers -= {writer, there_writer}
            for one in (writer, there_writer):
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE):
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
    """A load balancer of the simplest kind: a connection goes to a replica that said `/readyz` 200 a moment ago."""

    def __init__(self) -> None:
        super().__init__(self._open_ready)
        self.replicas: dict[int, bool] = {}  # by port
        self._asking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await super().start()
        self._asking = asyncio.create_task(self._ask())

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        await super().close()

    async def _ask(self) -> None:
        while True:
            ports = list(self.replicas)
            answers = await asyncio.gather(*(ready(port) for port in ports))
            for port, answer in zip(ports, answers, strict=True):
                if port in self.replicas:
                    self.replicas[port] = answer
            await asyncio.sleep(0.1)

    async def _open_ready(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises OSError; a connection for which no replica is ready waits for one, as a balancer lets it."""
        async with asyncio.timeout(QUEUED):  # TimeoutError is an OSError
            while not (ports := [port for port, is_ready in self.replicas.items() if is_ready]):
                await asyncio.sleep(0.05)
        return await asyncio.open_connection("127.0.0.1", random.choice(ports))


async def ready(port: int) -> bool:
    """Whether the API there says that it can take and give jobs."""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError):
        return False
