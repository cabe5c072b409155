"""The child processes of `tandem dev`: restarted, stopped, and their output prefixed."""

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

from tandem_shared.backoff import Backoff
from tandem_shared.dev.servers import die_with_parent

MISCONFIGURED_CODE = 2  # exit code of a process whose settings are invalid: it would not recover
MAX_CRASHES = 5  # in a row before the child is ready
RESTART_SECONDS = 0.25  # before the first restart of a child that was not ready; doubles
MAX_RESTART_SECONDS = 4.0
POLL_SECONDS = 0.05  # between two checks whether a child is ready
SLOW_START_SECONDS = 15.0  # after which a start is reported as slow
KILL_SECONDS = 5.0  # until a killed process ends
TAIL_LINES = 15  # of the output of a child that cannot start
TAIL_BYTES = 4096  # of its log file
MAX_LINE_BYTES = 16_384  # longer lines are split
MAX_WAITING_LINES = 10_000  # that a slow terminal has not taken yet


class CrashLoop(Exception):
    """A child cannot become ready; `code` is the exit code that this means for `tandem dev`."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Output:
    """Lines that a thread writes, so that a stopped terminal does not stop the children.

    Lines beyond MAX_WAITING_LINES are dropped and counted. After an OSError of `write` the thread
    calls `on_closed` and ends.
    """

    def __init__(self, write: Callable[[bytes], None], on_closed: Callable[[], None]) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_WAITING_LINES)
        self._dropped = 0
        self._thread = threading.Thread(
            target=self._write, args=(write, on_closed), name="output", daemon=True
        )
        self._thread.start()

    def print(self, name: str, text: str) -> None:
        """Print the lines of a text, each after the name of its source."""
        for line in text.splitlines() or [""]:
            try:
                self._lines.put_nowait(f"{name:<8} | {line}".rstrip())
            except queue.Full:
                self._dropped += 1

    def close(self, timeout: float = 5.0) -> None:
        """Print the waiting lines, within twice `timeout` seconds."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=timeout)
        self._thread.join(timeout)

    def _write(self, write: Callable[[bytes], None], on_closed: Callable[[], None]) -> None:
        while (line := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            if dropped:
                line += f"\n(… {dropped} lines dropped: the reader was too slow)"
            try:
                write(f"{line}\n".encode(errors="backslashreplace"))
            except OSError:
                on_closed()
                return


def write_stdout(data: bytes) -> None:
    """Write everything, past sys.stdout: a thread that blocks in its lock would block the exit."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(1, rest) :]
        except BlockingIOError:  # set by a program that shares the terminal
            select.select([], [1], [])


@dataclass(frozen=True, slots=True)
class Program:
    """What a child runs, and how to see that the child with a process id is ready."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready: Callable[[int], Awaitable[bool]]  # never raises
    log: Path | None = None
    pid_file: Path | None = None  # removed before a start
    quiet: bool = False  # print its output only when it cannot start


class DevProcess:
    """A program that is restarted until `stop`."""

    def __init__(self, program: Program, output: Output) -> None:
        self.program = program
        self.ready = asyncio.Event()
        self._output = output
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int:
        """The process id of the last start; 0 before the first."""
        return self._process.pid if self._process else 0

    async def supervise(self) -> None:
        """Run until stopped. Raises CrashLoop."""
        crashes = 0
        backoff = Backoff(first_seconds=RESTART_SECONDS, max_seconds=MAX_RESTART_SECONDS)
        while not self._stopping:
            try:
                code = await self._run_once()
            except OSError as error:
                raise CrashLoop(f"{self.program.name} cannot be started: {error}") from None
            if self._stopping:
                return
            end = _describe(code)
            if self.ready.is_set():
                self.ready.clear()
                crashes = 0
                backoff.reset()
                self._print(f"{end}; restarting")
                continue
            crashes += 1
            tail = "".join(f"\n  {line}" for line in self._tail)
            if code == MISCONFIGURED_CODE and not self.program.quiet:
                # It has printed what is wrong, and would print the same again.
                raise CrashLoop(f"{self.program.name} cannot start with these settings", code)
            if crashes == MAX_CRASHES:
                name = self.program.name
                raise CrashLoop(f"{name} {end}, {crashes} times before it was ready{tail}")
            reason = tail if self.program.quiet else ""
            self._print(f"{end} before it was ready; restarting{reason}")
            await backoff.sleep()

    async def stop(self, grace: float) -> None:
        """Send SIGTERM, and SIGKILL to what is left of its process group after `grace` seconds."""
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
                self._print(f"killed: it still runs {grace:g} s after SIGTERM")
        _kill_group(process.pid)
        async with asyncio.timeout(KILL_SECONDS):
            await process.wait()

    def kill(self) -> None:
        """Send SIGKILL to its process group."""
        self._stopping = True
        if self._process is not None:
            _kill_group(self._process.pid)

    async def _run_once(self) -> int:
        program = self.program
        if program.pid_file is not None:
            program.pid_file.unlink(missing_ok=True)
        self._tail.clear()
        log_start = program.log.stat().st_size if program.log and program.log.exists() else 0
        # With asyncio's pipes, wait() would also wait for grandchildren that hold them open.
        stdin, held = os.pipe()
        received, stdout = os.pipe()
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *die_with_parent(program.argv),
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                process_group=0,
                env=program.env,
            )
        finally:
            os.close(stdin)
            os.close(stdout)
        if self._stopping:  # since before the process had started
            _kill_group(process.pid)
        reading = asyncio.create_task(self._read(os.fdopen(received, "rb", buffering=0)))
        watching = asyncio.create_task(self._watch(process.pid))
        try:
            code = await process.wait()
        finally:
            watching.cancel()
            # Grandchildren that outlive a killed child hold its output open.
            _kill_group(process.pid)
            os.close(held)
        await reading
        if program.log and program.log.exists() and not self._tail:
            with program.log.open("rb") as log:
                log.seek(max(log_start, log.seek(0, os.SEEK_END) - TAIL_BYTES))
                self._tail.extend(log.read().decode(errors="replace").splitlines())
        return code

    async def _watch(self, pid: int) -> None:
        started, is_slow = time.monotonic(), False
        while not await self.program.ready(pid):
            if not is_slow and time.monotonic() - started > SLOW_START_SECONDS:
                is_slow = True
                self._print(f"not ready after {SLOW_START_SECONDS:g} s (pid {pid})")
            await asyncio.sleep(POLL_SECONDS)
        self.ready.set()
        self._print(f"ready after {time.monotonic() - started:.1f} s (pid {pid})")

    async def _read(self, received: io.FileIO) -> None:
        output = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), received
        )
        rest = b""
        with contextlib.closing(transport):
            while data := await output.read(MAX_LINE_BYTES):
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) >= MAX_LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._line(line)
        if rest:
            self._line(rest)

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self._tail.append(text)
        if not self.program.quiet:
            self._output.print(self.program.name, text)

    def _print(self, text: str) -> None:
        lines = (f"{self.program.name}: {line}" for line in text.splitlines())
        self._output.print("tandem", "\n".join(lines))


def _describe(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    name = next((number.name for number in signal.Signals if number == -code), f"signal {-code}")
    return f"killed by {name}"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
