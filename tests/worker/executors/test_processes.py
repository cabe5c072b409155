"""The process pool: real children that work, report, die and are killed, without harm to others."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_worker import task
from tandem_worker.errors import Permanent, Retry, TaskError
from tandem_worker.executors.processes import KILL_SECONDS, ProcessPool, RemoteError
from tandem_worker.testing import Bench, Recorder, open_bench, run
from tests.conftest import eventually
from tests.worker.executors import cpu_tasks


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with open_bench() as resources:
        yield resources


def gone(pid: int) -> bool:
    """Whether the process has ended; a zombie counts as ended."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def start(
    function: Callable[..., Any], payload: Any, bench: Bench, seen: Recorder
) -> "asyncio.Task[Any]":
    return asyncio.create_task(run(function, payload, resources=bench, sink=seen))


async def test_results_and_reports_come_in_order(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = Recorder()
    assert await run(cpu_tasks.report, 3000, resources=bench, sink=seen) is None
    assert seen.items == list(range(3000))
    assert seen.progressed == [{"current": n, "total": 3000, "message": None} for n in range(3000)]
    numbered = [line["number"] for line in seen.lines if line["message"] == "at"]
    assert numbered == list(range(3000))
    out, err = capfd.readouterr()
    assert (out, "this is not a frame" in err or "nor is this" in err) == ("", True)


async def test_results_have_the_authors_types(bench: Bench) -> None:
    assert await run(cpu_tasks.deep, [1, 2], resources=bench) == cpu_tasks.Deep(
        inner={"numbers": [1, 2]}
    )


async def test_the_child_knows_its_job(bench: Bench) -> None:
    facts = await run(cpu_tasks.facts, resources=bench, job_id="one", attempt=2)
    assert facts[:6] == ["one", 2, 3, "cpu.facts", "default", None]
    assert 0 < facts[6] - time.monotonic() < 31
    assert facts[7] is False


async def test_processes_are_used_again_and_limited_in_number(bench: Bench) -> None:
    first = await run(cpu_tasks.pid, resources=bench)
    assert first != os.getpid()
    assert await run(cpu_tasks.pid, resources=bench) == first
    pids = await asyncio.gather(*(run(cpu_tasks.pid, resources=bench) for _ in range(20)))
    assert len(set(pids)) <= (os.cpu_count() or 1)


async def test_all_processes_end_with_the_pool(tmp_path: Path) -> None:
    seen = Recorder()
    async with open_bench() as resources:
        idle = await run(cpu_tasks.pid, resources=resources)
        running = start(cpu_tasks.spin, {"path": tmp_path / "left"}, resources, seen)
        await eventually(lambda: seen.items)
    with pytest.raises(TaskError, match="was killed"):
        await running
    await eventually(lambda: gone(idle))
    assert gone(seen.items[0])


async def test_errors_of_the_code_reach_the_caller(bench: Bench) -> None:
    for payload, type_, message, retryable, after in (
        ("retry", "retry", "not yet", True, 7),
        ("permanent", "card_declined", "the bank said no", False, None),
        ("other", "exception:ValueError", "other", True, None),
        ("exit", "exception:SystemExit", "3", True, None),
        ("interrupt", "exception:KeyboardInterrupt", "", True, None),
        ("cancelled", "exception:CancelledError", "", True, None),
    ):
        with pytest.raises(TaskError) as caught:
            await run(cpu_tasks.raises, payload, resources=bench)
        error = caught.value
        assert (error.type, error.message, error.retryable, error.after) == (
            type_,
            message,
            retryable,
            after,
        )
        assert "cpu_tasks.py" in "".join(error.__notes__)  # for the worker's log
    with pytest.raises(TaskError) as caught:
        await run(cpu_tasks.not_json, resources=bench)
    assert "the result of cpu.not_json is not JSON" in caught.value.message


TYPES = st.from_regex(r"[a-z][a-z0-9_]{0,20}|exception:[A-Z][a-z]{1,10}", fullmatch=True)


@given(st.builds(TaskError, TYPES, st.text(), st.just(value=True), st.none() | st.floats(0, 1e6)))
def test_a_retryable_error_survives_the_pipe(error: TaskError) -> None:
    back = RemoteError.from_exception(error).to_exception()
    assert vars(back) | {"__notes__": None} == vars(error) | {"__notes__": None}


@given(st.builds(Permanent, TYPES, st.text()))
def test_a_permanent_error_survives_the_pipe(error: Permanent) -> None:
    back = RemoteError.from_exception(error).to_exception()
    assert isinstance(back, Permanent)
    assert (back.type, back.message) == (error.type, error.message)


def test_a_retry_survives_the_pipe() -> None:
    back = RemoteError.from_exception(Retry(after="1m")).to_exception()
    assert (back.type, back.after, back.retryable) == ("retry", 60, True)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("exit", "exited with status 3"),
        ("SIGSEGV", "was killed by SIGSEGV"),
        ("SIGKILL", "was killed by SIGKILL"),
    ],
)
async def test_a_process_that_dies_fails_only_its_own_job(
    bench: Bench, tmp_path: Path, how: str, words: str
) -> None:
    other = Recorder()
    waiting = start(cpu_tasks.wait, {"path": tmp_path / "go"}, bench, other)
    await eventually(lambda: other.items)
    seen = Recorder()
    with pytest.raises(TaskError) as caught:
        await run(cpu_tasks.die, how, resources=bench, sink=seen)
    assert (caught.value.type, caught.value.retryable) == ("process_died", True)
    assert words in caught.value.message
    assert len(seen.items) == 1  # its earlier report is kept
    assert await run(cpu_tasks.double, 2, resources=bench) == 4
    (tmp_path / "go").touch()
    assert await waiting == other.items[0]


async def test_a_process_that_died_while_idle_is_replaced(bench: Bench) -> None:
    pid = await run(cpu_tasks.pid, resources=bench)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: gone(pid))
    assert await run(cpu_tasks.pid, resources=bench) != pid


async def test_a_task_defined_in_the_script_itself_is_rejected(bench: Bench) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "task": task}
    exec("@task('main.work', cpu=True)\ndef work(): ...", namespace)  # noqa: S102 - as a script would define it
    with pytest.raises(TypeError, match="move it to a module"):
        await run(namespace["work"], resources=bench)


async def test_a_cancelled_process_runs_its_finally_blocks_and_is_replaced(
    bench: Bench, tmp_path: Path
) -> None:
    seen = Recorder()
    running = start(cpu_tasks.spin, {"path": tmp_path / "left"}, bench, seen)
    await eventually(lambda: seen.items)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (tmp_path / "left").read_text() == "finally"
    assert gone(seen.items[0])
    assert await run(cpu_tasks.pid, resources=bench) != seen.items[0]


@pytest.mark.parametrize("function", [cpu_tasks.deaf, cpu_tasks.stubborn, cpu_tasks.emit_for_ever])
async def test_a_process_that_ignores_cancellation_is_killed(
    bench: Bench, function: Callable[..., Any]
) -> None:
    seen = Recorder()
    before = {child.pid for child in psutil.Process().children()}
    running = start(function, {}, bench, seen)
    await eventually(lambda: seen.items)
    (child,) = (child for child in psutil.Process().children() if child.pid not in before)
    running.cancel()
    async with asyncio.timeout(KILL_SECONDS + 10):
        with pytest.raises(asyncio.CancelledError):
            await running
    assert gone(child.pid)
    assert await run(cpu_tasks.double, 2, resources=bench) == 4


async def test_cancelling_twice_still_gives_the_slots_back(tmp_path: Path) -> None:
    async with open_bench() as resources:
        for _ in range((os.cpu_count() or 1) + 1):
            items = (seen := Recorder()).items
            running = start(cpu_tasks.stubborn, {}, resources, seen)
            await eventually(partial(list, items))
            running.cancel()
            await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        assert await run(cpu_tasks.double, 2, resources=resources) == 4


async def test_a_child_ignores_signals_for_its_process_group(bench: Bench, tmp_path: Path) -> None:
    seen = Recorder()
    running = start(cpu_tasks.wait, {"path": tmp_path / "go"}, bench, seen)
    await eventually(lambda: seen.items)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(seen.items[0], number)
    (tmp_path / "go").touch()
    assert await running == seen.items[0]


PARENT = """
import asyncio
from tests.worker.executors import cpu_tasks
from tandem_worker.testing import Bench, Recorder, run

class Printer(Recorder):
    async def output(self, item):
        print(item.decode(), flush=True)

asyncio.run(run(cpu_tasks.{task}, {payload}, sink=Printer()))
"""


@pytest.mark.parametrize(("name", "payload"), [("spin", {"path": "/nowhere/left"}), ("deaf", None)])
async def test_a_process_ends_with_its_worker(name: str, payload: Any) -> None:
    code = PARENT.format(task=name, payload=payload)
    root = str(Path(__file__).parents[3])
    env = {**os.environ, "PYTHONPATH": root}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env=env, cwd=root
    )
    assert parent.stdout is not None
    async with asyncio.timeout(30):
        child = int(await parent.stdout.readline())
    assert not gone(child)
    parent.kill()
    await parent.wait()
    await eventually(lambda: gone(child))


async def test_a_pool_may_have_any_limit() -> None:
    async with open_bench() as resources:
        one = ProcessPool(1)
        bench = replace(resources, pools=replace(resources.pools, processes=one))
        pids = await asyncio.gather(*(run(cpu_tasks.pid, resources=bench) for _ in range(5)))
        assert len(set(pids)) == 1
        await one.close()
