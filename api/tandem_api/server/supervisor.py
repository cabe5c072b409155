"""Several processes that serve one address: they share the listening sockets, and end together.

Each child is an ordinary command, `python -m tandem_api --fd N`. Its stdin is a pipe that the
parent never writes to: when the parent dies, however it does, the pipe ends and so does the child.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence

import structlog

from tandem_api.metrics import SHARED

CRASH_LOOP = 5  # deaths in a row, each soon after its start
SOON = 5.0  # seconds
BACKOFF = 0.25  # seconds after the first of them; doubles
# seconds from SIGTERM, after those in which more is accepted, until what is left is killed
END = 12.0

log = structlog.get_logger()


def serve_many(
    count: int, sockets: Sequence[socket.socket], argv: Sequence[str], *, linger: float
) -> int:
    """Keeps `count` children until SIGTERM or SIGINT; the exit code, 1 after a crash loop."""
    with tempfile.TemporaryDirectory(
        prefix="tandem-metrics-", ignore_cleanup_errors=True
    ) as numbers:
        return asyncio.run(_Group(sockets, argv, numbers, linger + END).run(count))


class _Group:
    def __init__(
        self, sockets: Sequence[socket.socket], argv: Sequence[str], numbers: str, end: float
    ) -> None:
        self._end = end
        self._fds = [one.fileno() for one in sockets]
        self._argv = [
            sys.executable,
            "-m",
            "tandem_api",
            *argv,
            *(f"--fd={fd}" for fd in self._fds),
        ]
        self._environment = {**os.environ, SHARED: numbers}
        self._ending = asyncio.Event()
        self._crashed = False

    async def run(self, count: int) -> int:
        loop = asyncio.get_running_loop()
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(one, self._ending.set)
        await asyncio.gather(*(self._keep(number) for number in range(1, count + 1)))
        return 1 if self._crashed else 0

    async def _keep(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        deaths = 0
        while not self._ending.is_set():
            begun = loop.time()
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                pass_fds=self._fds,
                env=self._environment,
            )
            await self._watch(process)
            if self._ending.is_set():
                return
            deaths = deaths + 1 if loop.time() - begun < SOON else 1
            log.warning(
                "an API process ended",
                number=number,
                pid=process.pid,
                code=process.returncode,
                deaths=deaths,
            )
            if deaths == CRASH_LOOP:
                self._crashed = True
                self._ending.set()
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BACKOFF * 2 ** (deaths - 1)):
                    await self._ending.wait()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Returns when the process has ended, which it is told when all end."""
        gone, ending = asyncio.create_task(process.wait()), asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait((gone, ending), return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await asyncio.wait((gone,), timeout=self._end)
            if not gone.done():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await gone
        finally:
            ending.cancel()
            if process.stdin is not None:
                process.stdin.close()
