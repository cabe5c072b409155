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
from tandem_shared.dev.supervisor import Child, CrashLoop, Output, Program
from tests.conftest import eventually
from tests.shared.dev.test_servers import alive

SERVES = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
WITH_A_CHILD = (
    "import signal, subprocess, sys\n"
    "print(subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']).pid, flush=True); signal.pause()"
)


class Lines:
    """What the output says so far."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, data: bytes) -> None:
        self.text += data.decode()

    def of(self, name: str) -> list[str]:
        return [line.partition("| ")[2] for line in self.text.splitlines() if line.startswith(name)]


def program(
    code: str, *, ready_after: str | None = "up", lines: Lines, quiet: bool = False
) -> Program:
    async def ready(_pid: int) -> bool:
        return ready_after is not None and ready_after in lines.of("it")

    return Program("it", [sys.executable, "-c", code], dict(os.environ), ready, quiet=quiet)


@asynccontextmanager
async def supervised(
    program: Program, lines: Lines
) -> AsyncIterator[tuple[Child, "asyncio.Task[None]"]]:
    output = Output(lines.write, lambda: None)
    child = Child(program, output)
    task = asyncio.create_task(child.supervise())
    try:
        yield child, task
    finally:
        await child.stop(5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        output.close()


def said(lines: Lines, text: str, times: int) -> Callable[[], bool]:
    return lambda: lines.text.count(text) == times


async def test_one_that_was_ready_is_started_again_at_once_however_often() -> None:
    lines = Lines()
    async with supervised(program(SERVES, lines=lines), lines) as (child, task):
        for restart in range(1, supervisor.CRASH_LOOP + 2):
            await eventually(said(lines, "it: ready after", restart))
            os.kill(child.pid, signal.SIGKILL)
            await eventually(said(lines, "starting it again", restart))
        await eventually(child.ready.is_set)
        assert not task.done()
    assert (
        lines.of("tandem").count("it: was ended by SIGKILL; starting it again")
        == supervisor.CRASH_LOOP + 1
    )


async def test_five_deaths_before_readiness_are_a_crash_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF", 0.001)
    lines = Lines()
    broken = program(
        "import sys; print('the port is taken'); sys.exit(3)",
        ready_after=None,
        lines=lines,
        quiet=True,
    )
    async with supervised(broken, lines) as (_, task):
        with pytest.raises(
            CrashLoop, match=r"(?s)it ended with exit code 3 5 times .*\n  the port is taken$"
        ):
            await task
    assert (
        sum("starting it again in" in line for line in lines.of("tandem"))
        == supervisor.CRASH_LOOP - 1
    )


async def test_output_is_prefixed_line_by_line_and_its_end_is_not_lost() -> None:
    lines = Lines()
    code = (
        "import sys; sys.stdout.write('one\\ntwo\\n' + 'x' * 40000 + '\\nlast'); sys.stdout.flush(); "
        + SERVES
    )
    async with supervised(program(code, ready_after="lastup", lines=lines), lines) as (child, _):
        await child.ready.wait()
    written = lines.of("it")
    assert written[:2] == ["one", "two"]
    assert written[-1] == "lastup"
    assert "".join(written[2:-1]) == "x" * 40000


async def test_one_that_ignores_sigterm_is_killed_after_its_grace() -> None:
    lines = Lines()
    async with supervised(program(STUBBORN, lines=lines), lines) as (child, _):
        await child.ready.wait()
        await child.stop(0.1)
        assert not alive(child.pid)
    assert "it: still runs 0.1 s after SIGTERM: killed" in lines.of("tandem")


async def test_what_a_killed_child_leaves_behind_ends_with_it() -> None:
    lines = Lines()
    async with supervised(program(WITH_A_CHILD, ready_after=None, lines=lines), lines):
        grandchild = int(await eventually(lambda: next(iter(lines.of("it")), "")))
        os.kill(os.getpgid(grandchild), signal.SIGKILL)
        await eventually(lambda: not alive(grandchild))
        await eventually(lambda: any("was ended by SIGKILL" in line for line in lines.of("tandem")))


async def test_redis_comes_back_with_its_data(tmp_path: Path) -> None:
    server, lines = redis_server(tmp_path), Lines()
    answers = redis_server(tmp_path).ready
    redis = Program("redis", server.argv, dict(os.environ), lambda _pid: answers(), server.log)
    async with supervised(redis, lines) as (child, _):
        await child.ready.wait()
        os.kill(child.pid, signal.SIGKILL)
        await eventually(said(lines, "redis: ready after", 2))
        assert await answers()
    assert not await answers()


def test_a_reader_that_is_gone_ends_the_output() -> None:
    closed = threading.Event()

    def write(_data: bytes) -> None:
        raise BrokenPipeError

    output = Output(write, closed.set)
    output.say("it", "text")
    output.close()
    assert closed.is_set()


def test_a_reader_that_stands_still_stops_nobody() -> None:
    reading, lines = threading.Event(), Lines()

    def write(data: bytes) -> None:
        reading.wait(30)
        lines.write(data)

    output = Output(write, lambda: None)
    for number in range(supervisor.LINES_MAX * 2):  # returns although nobody reads
        output.say("it", f"{number}")
    reading.set()
    output.close(timeout=30)
    written = lines.of("it")
    dropped = sum(int(count) for count in re.findall(r"\(… (\d+) lines were dropped", lines.text))
    assert written[:3] == ["0", "1", "2"]
    assert len(written) + dropped == supervisor.LINES_MAX * 2
    assert len(written) <= supervisor.LINES_MAX + 1
