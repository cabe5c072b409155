"""Several processes on one port: they share the listening sockets, and end together.

Each child is an ordinary command, `python -m tandem_api --fd N`. Its stdin is a pipe that the
parent never writes to: when the parent dies, for whatever reason, the pipe closes and the child
ends.

uvicorn's own `Multiprocess` does not fit. Its children run a plain `uvicorn.Server`, which cannot
drain; they outlive a parent that is killed; and a child that crashes on every start is restarted
twice a second, forever.
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

from tandem_api.metrics import SHARED_DIRECTORY

MAX_CRASHES = 5  # in a row, each soon after the start
SOON_SECONDS = 5.0
BACKOFF_SECONDS = 0.25  # after the first crash; doubles with each
CHECK_SECONDS = 2.0  # between two looks at whether a child is stopped; twice in a row, it is killed
# From SIGTERM, plus `linger`, until the remaining children are killed.
END_SECONDS = 12.0

log = structlog.get_logger()


def serve_many(
    count: int, sockets: Sequence[socket.socket], argv: Sequence[str], *, linger: float
) -> int:
    """Keeps `count` children running until SIGTERM or SIGINT. Returns 1 after a crash loop."""
    with tempfile.TemporaryDirectory(
        prefix="tandem-metrics-", ignore_cleanup_errors=True
    ) as directory:
        group = _ProcessGroup(sockets, argv, directory, linger + END_SECONDS)
        return asyncio.run(group.run(count))


class _ProcessGroup:
    def __init__(
        self, sockets: Sequence[socket.socket], argv: Sequence[str], directory: str, end: float
    ) -> None:
        self._end_seconds, self._sockets = end, sockets
        self._fds = [one.fileno() for one in sockets]
        fds = (f"--fd={fd}" for fd in self._fds)
        self._argv = [sys.executable, "-m", "tandem_api", *argv, *fds]
        self._environment = {**os.environ, SHARED_DIRECTORY: directory}
        self._ending = asyncio.Event()

    async def run(self, count: int) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        crashed = await asyncio.gather(*map(self._supervise, range(1, count + 1)))
        return 1 if any(crashed) else 0

    def _end(self) -> None:
        self._ending.set()
        # The children accept for `linger` more seconds. After that the kernel would accept for the
        # parent, and those connections would hang.
        for listener in self._sockets:
            listener.close()

    async def _supervise(self, number: int) -> bool:
        """Keeps one child running until the group ends; whether a crash loop ended it."""
        loop = asyncio.get_running_loop()
        crashes = 0
        while not self._ending.is_set():
            began = loop.time()
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                pass_fds=self._fds,
                env=self._environment,
            )
            await self._wait(process)
            if self._ending.is_set():
                break
            crashes = crashes + 1 if loop.time() - began < SOON_SECONDS else 1
            log.warning(
                "an API process ended",
                number=number,
                pid=process.pid,
                code=process.returncode,
                deaths=crashes,
            )
            if crashes == MAX_CRASHES:
                self._ending.set()
                return True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BACKOFF_SECONDS * 2 ** (crashes - 1)):
                    await self._ending.wait()
        return False

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        """Returns once the process has ended, which is terminated when the group ends."""
        exited = asyncio.create_task(process.wait())
        ending = asyncio.create_task(self._ending.wait())
        was_stopped = False
        while not (exited.done() or ending.done()):
            await asyncio.wait(
                (exited, ending), timeout=CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            stopped = not exited.done() and _is_stopped(process.pid)
            if stopped and was_stopped:
                log.warning("an API process is stopped and will be replaced", pid=process.pid)
                process.kill()
            was_stopped = stopped
        ending.cancel()
        for stop in (process.terminate, process.kill):
            if not exited.done():
                with contextlib.suppress(ProcessLookupError):
                    stop()
                await asyncio.wait((exited,), timeout=self._end_seconds)
        if process.stdin is not None:
            process.stdin.close()


def _is_stopped(pid: int) -> bool:
    """Whether a signal such as SIGSTOP has stopped the child, so that its requests hang."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
