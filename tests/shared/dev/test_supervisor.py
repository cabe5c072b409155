"""The supervisor of `tandem dev`, with small programs as its children."""

import asyncio
import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tandem_shared.dev import supervisor
from tandem_shared.dev.servers import redis_server
from tandem_shared.dev.supervisor import CrashLoop, DevProcess, Output, Program
from tests.conftest import eventually
from tests.shared.dev.test_servers import alive

SERVES = "import signal; print('up', flush=True); signal.pause()"
IGNORES_SIGTERM = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
while True:
    signal.pause()
"""
STARTS_A_GRANDCHILD = """
import signal, subprocess, sys
grandchild = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])
print(grandchild.pid, flush=True)
signal.pause()
"""


class Recorder:
    """Records what the output writes."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, data: bytes) -> None:
        self.text += data.decode()

    def lines(self, name: str) -> list[str]:
        """The lines of one source."""
        return [line.partition("| ")[2] for line in self.text.splitlines() if line.startswith(name)]

    def has(self, text: str, times: int) -> Callable[[], bool]:
        return lambda: self.text.count(text) == times


def program(
    code: str, recorder: Recorder, *, ready_after: str | None = "up", quiet: bool = False
) -> Program:
    """A Python program that is ready once it has printed a line."""

    async def ready(_pid: int) -> bool:
        return ready_after in recorder.lines("it")

    return Program("it", [sys.executable, "-c", code], dict(os.environ), ready, quiet=quiet)


@asynccontextmanager
async def supervised(
    program: Program, recorder: Recorder
) -> AsyncIterator[tuple[DevProcess, "asyncio.Task[None]"]]:
    output = Output(recorder.write, lambda: None)
    child = DevProcess(program, output)
    task = asyncio.create_task(child.supervise())
    try:
        yield child, task
    finally:
        await child.stop(5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        output.close()


async def test_a_child_that_was_ready_is_restarted_at_once_any_number_of_times() -> None:
    recorder = Recorder()
    times = supervisor.MAX_CRASHES + 1
    async with supervised(program(SERVES, recorder), recorder) as (child, task):
        for restart in range(1, times + 1):
            await eventually(recorder.has("it: ready after", restart))
            os.kill(child.pid, signal.SIGKILL)
            await eventually(recorder.has("it: killed by SIGKILL; restarting", restart))
        await eventually(child.ready.is_set)
        assert not task.done()


async def test_five_crashes_before_it_is_ready_are_a_crash_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "RESTART_SECONDS", 0.001)
    recorder = Recorder()
    code = "import sys; print('the port is taken'); sys.exit(3)"
    broken = program(code, recorder, ready_after=None, quiet=True)
    expected = r"^it exited with code 3, 5 times before it was ready\n  the port is taken$"
    async with supervised(broken, recorder) as (_, task):
        with pytest.raises(CrashLoop, match=expected):
            await task
    restarts = [line for line in recorder.lines("tandem") if line.endswith("; restarting")]
    assert len(restarts) == supervisor.MAX_CRASHES - 1


async def test_output_is_prefixed_line_by_line_and_its_end_is_kept() -> None:
    recorder = Recorder()
    text = r"'one\ntwo\n' + 'x' * 40000 + '\nlast'"
    code = f"import sys; sys.stdout.write({text}); sys.stdout.flush(); {SERVES}"
    prints = program(code, recorder, ready_after="lastup")
    async with supervised(prints, recorder) as (child, _):
        await child.ready.wait()
    lines = recorder.lines("it")
    assert lines[:2] == ["one", "two"]
    assert lines[-1] == "lastup"
    assert "".join(lines[2:-1]) == "x" * 40000


async def test_a_child_that_ignores_sigterm_is_killed() -> None:
    recorder = Recorder()
    async with supervised(program(IGNORES_SIGTERM, recorder), recorder) as (child, _):
        await child.ready.wait()
        await child.stop(0.1)
        assert not alive(child.pid)
    assert "it: killed: it still runs 0.1 s after SIGTERM" in recorder.lines("tandem")


async def test_a_grandchild_ends_with_a_killed_child() -> None:
    recorder = Recorder()
    starts = program(STARTS_A_GRANDCHILD, recorder, ready_after=None)
    async with supervised(starts, recorder) as (child, _):
        grandchild = int(await eventually(lambda: next(iter(recorder.lines("it")), "")))
        os.kill(child.pid, signal.SIGKILL)
        await eventually(lambda: not alive(grandchild))
        await eventually(lambda: "it: killed by SIGKILL" in recorder.text)


async def test_redis_comes_back_with_its_data(tmp_path: Path) -> None:
    server, recorder = redis_server(tmp_path), Recorder()
    redis = Program("redis", server.argv, dict(os.environ), lambda _: server.ready(), server.log)
    async with supervised(redis, recorder) as (child, _):
        await child.ready.wait()
        os.kill(child.pid, signal.SIGKILL)
        await eventually(recorder.has("redis: ready after", 2))
        assert await server.ready()
    assert not await server.ready()


def test_a_closed_pipe_ends_the_output() -> None:
    closed = threading.Event()

    def write(_data: bytes) -> None:
        raise BrokenPipeError

    output = Output(write, closed.set)
    output.print("it", "text")
    output.close()
    assert closed.is_set()


def test_a_stopped_reader_does_not_block_the_children() -> None:
    reading, recorder = threading.Event(), Recorder()

    def write(data: bytes) -> None:
        reading.wait(30)
        recorder.write(data)

    output = Output(write, lambda: None)
    printed = 2 * supervisor.MAX_WAITING_LINES
    for number in range(printed):
        output.print("it", f"{number}")
    reading.set()
    output.close(timeout=30)
    lines = recorder.lines("it")
    dropped = sum(int(count) for count in re.findall(r"\(… (\d+) lines dropped", recorder.text))
    assert lines[:3] == ["0", "1", "2"]
    assert len(lines) + dropped == printed
    assert len(lines) <= supervisor.MAX_WAITING_LINES + 1
