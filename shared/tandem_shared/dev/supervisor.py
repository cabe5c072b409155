"""The child processes of `tandem dev`: started, prefixed line by line, started again when they die, ended in order."""

import asyncio
import contextlib
import io
import os
import queue
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tandem_shared.dev.servers import tied

CRASH_LOOP = 5  # deaths in a row before readiness
BACKOFF = 0.25  # seconds after the first of them; doubles
READY_POLL = 0.05
SLOW_START = 15.0  # seconds after which a start that lasts is mentioned
SHOWN_LINES = 15  # of a child that could not start
LINE_MAX = 16_384  # bytes; what is longer is shown in pieces
LINES_MAX = 10_000  # that may wait for a slow reader of our output


class CrashLoop(Exception):
    """A child died five times before it was ready; says which, how, and its last lines."""


class Output:
    """Lines that a thread writes one by one: a stopped terminal or pipe must not stop the children.

    Above LINES_MAX waiting lines new ones are dropped, and counted. `write` raises OSError when
    nobody reads any more; then `on_closed` is called, in that thread.
    """

    def __init__(self, write: Callable[[bytes], None], on_closed: Callable[[], None]) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_MAX)
        self._dropped = 0
        self._thread = threading.Thread(
            target=self._write, args=(write, on_closed), name="output", daemon=True
        )
        self._thread.start()

    def say(self, name: str, text: str) -> None:
        """Print the text's lines, each after the name of who says it."""
        for line in text.splitlines() or [""]:
            try:
                self._lines.put_nowait(f"{name:<8} | {line}".rstrip())
            except queue.Full:
                self._dropped += 1

    def close(self, timeout: float = 5.0) -> None:
        """Print what waits, for twice `timeout` seconds at most."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=timeout)
        self._thread.join(timeout)

    def _write(self, write: Callable[[bytes], None], on_closed: Callable[[], None]) -> None:
        while (line := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            if dropped:
                line += f"\n(… {dropped} lines were dropped: nobody read them)"
            try:
                write(f"{line}\n".encode(errors="backslashreplace"))
            except OSError:
                on_closed()
                return


def write_stdout(data: bytes) -> None:
    """Write all of it, past sys.stdout: its lock, held by a thread that cannot write, would not let the process end."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(1, rest) :]
        except BlockingIOError:  # who shares the terminal made it so
            select.select([], [1], [])


@dataclass(frozen=True, slots=True)
class Program:
    """What a child runs, and how to see that it is ready for its process id."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready: Callable[[int], Awaitable[bool]]  # never raises
    log: Path | None = None  # where it writes what it does not print
    pid: Path | None = None  # removed before a start
    quiet: bool = False  # its output is shown only when it cannot start


class Child:
    """One program that is kept running until `stop`."""

    def __init__(self, program: Program, output: Output) -> None:
        self.program = program
        self.ready = asyncio.Event()  # since its last start
        self._output = output
        self._tail: deque[str] = deque(maxlen=SHOWN_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int:
        """Of its last start; 0 before the first."""
        return self._process.pid if self._process else 0

    async def supervise(self) -> None:
        """Run until stopped. Raises CrashLoop."""
        deaths = 0
        while not self._stopping:
            try:
                code = await self._run_once()
            except OSError as error:
                raise CrashLoop(f"{self.program.name} cannot be started: {error}") from None
            if self._stopping:
                return
            how = _how(code)
            if self.ready.is_set():
                self.ready.clear()
                deaths = 0
                self._say(f"{how}; starting it again")
                continue
            deaths += 1
            if deaths == CRASH_LOOP:
                raise CrashLoop(
                    f"{self.program.name} {how} {deaths} times before it was ready{self._last_lines()}"
                )
            pause = BACKOFF * 2 ** (deaths - 1)
            reason = self._last_lines() if self.program.quiet else ""
            self._say(f"{how} before it was ready{reason}\nstarting it again in {pause:g} s")
            await asyncio.sleep(pause)

    async def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL to whatever of its process group is left after `grace` seconds."""
        self._stopping = True
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(grace):
                    await process.wait()
            except TimeoutError:
                self._say(f"still runs {grace:g} s after SIGTERM: killed")
        _kill_group(process.pid)
        async with asyncio.timeout(5):
            await process.wait()

    def kill(self) -> None:
        """SIGKILL to its process group, now."""
        self._stopping = True
        if self._process is not None:
            _kill_group(self._process.pid)

    async def _run_once(self) -> int:
        program = self.program
        if program.pid is not None:
            program.pid.unlink(missing_ok=True)
        self._tail.clear()
        log_start = program.log.stat().st_size if program.log and program.log.exists() else 0
        # Pipes of our own: asyncio's would have wait() last until grandchildren have closed theirs.
        stdin, held = os.pipe()
        received, stdout = os.pipe()
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *tied(program.argv),
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                process_group=0,
                env=program.env,
            )
        finally:
            os.close(stdin)
            os.close(stdout)
        if self._stopping:  # it was told while the process was starting
            _kill_group(process.pid)
        reading = asyncio.create_task(self._read(os.fdopen(received, "rb", buffering=0)))
        watching = asyncio.create_task(self._watch(process.pid))
        try:
            code = await process.wait()
        finally:
            watching.cancel()
            # Processes of its own that a killed child leaves behind hold its output open.
            _kill_group(process.pid)
            os.close(held)
        await reading
        if program.log and program.log.exists() and not self._tail:
            with program.log.open("rb") as log:
                log.seek(max(log_start, log.seek(0, os.SEEK_END) - 4096))
                self._tail.extend(log.read().decode(errors="replace").splitlines())
        return code

    async def _watch(self, pid: int) -> None:
        begun, told = time.monotonic(), False
        while not await self.program.ready(pid):
            if not told and time.monotonic() - begun > SLOW_START:
                told = True
                self._say(f"is still not ready after {SLOW_START:g} s (pid {pid})")
            await asyncio.sleep(READY_POLL)
        self.ready.set()
        self._say(f"ready after {time.monotonic() - begun:.1f} s (pid {pid})")

    async def _read(self, received: io.FileIO) -> None:
        output = asyncio.StreamReader(limit=LINE_MAX)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), received
        )
        with contextlib.closing(transport):
            await self._split(output)

    async def _split(self, output: asyncio.StreamReader) -> None:
        rest = b""
        while data := await output.read(LINE_MAX):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) >= LINE_MAX:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._line(line)
        if rest:
            self._line(rest)

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self._tail.append(text)
        if not self.program.quiet:
            self._output.say(self.program.name, text)

    def _say(self, text: str) -> None:
        self._output.say(
            "tandem", "\n".join(f"{self.program.name}: {line}" for line in text.splitlines())
        )

    def _last_lines(self) -> str:
        return "".join(f"\n  {line}" for line in self._tail)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
    return f"was ended by {name}"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
