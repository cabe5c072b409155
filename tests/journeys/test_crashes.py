"""Workers and Redis are killed, stopped and restarted: no job is lost or applied twice."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tandem_shared.dev.servers import Server, die_with_parent, redis_server
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Finish
from tests.conftest import eventually, started
from tests.journeys.tasks import crash_tasks as tasks
from tests.worker.workers import Client, open_client, outcomes

ROOT = Path(__file__).parent.parent.parent
LEASE = 1.0
MANY = {"max_attempts": 20, "base": 0.01, "jitter": False}


class Stage:
    """Redis, the processes of a test, and what its tasks have noted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server: Server = redis_server(directory)
        self.scene = {"notes": str(directory / "notes"), "go": str(directory / "go")}
        self.workers: list[subprocess.Popen[bytes]] = []
        self._stack = ExitStack()

    async def redis(self) -> subprocess.Popen[bytes]:
        process = self._stack.enter_context(started(self.server))
        await eventually(self.server.ready)
        return process

    def worker(
        self, *, module: str = "tandem_worker", arguments: tuple[str, ...] = (), **settings: str
    ) -> subprocess.Popen[bytes]:
        """A worker process, `python -m <module>`."""
        return self._stack.enter_context(self._worker([module, *arguments], settings))

    @contextmanager
    def _worker(
        self, command: list[str], settings: dict[str, str]
    ) -> Iterator[subprocess.Popen[bytes]]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")
        }
        environment |= {
            "TANDEM_REDIS_URL": self.server.url,
            "TANDEM_DATABASE_URL": f"sqlite://{self.directory}/tandem.db",
            "TANDEM_STORE_URL": f"file://{self.directory}/store",
            "TANDEM_TASKS": tasks.__name__,
            "TANDEM_LEASE": f"{LEASE}s",
            **{f"TANDEM_{name.upper()}": value for name, value in settings.items()},
        }
        with (self.directory / f"worker-{len(self.workers)}.log").open("wb") as log:
            process = subprocess.Popen(
                die_with_parent([sys.executable, "-m", *command]),
                env=environment,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        self.workers.append(process)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def log(self, process: subprocess.Popen[bytes]) -> str:
        return (self.directory / f"worker-{self.workers.index(process)}.log").read_text()

    def go(self) -> None:
        """Waiting code may end."""
        Path(self.scene["go"]).touch()

    def notes(self, word: str) -> list[tuple[int, int]]:
        """(attempt, pid) of each note of this word."""
        path = Path(self.scene["notes"])
        lines = path.read_text().splitlines() if path.exists() else []
        return [
            (int(line.split()[1]), int(line.split()[2]))
            for line in lines
            if line.split()[0] == word
        ]

    def pids(self, word: str) -> set[int]:
        return {pid for _, pid in self.notes(word)}

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def stage(short_path: Path) -> Iterator[Stage]:
    with closing(Stage(short_path)) as stage:
        yield stage


@pytest.fixture
async def redis_process(stage: Stage) -> subprocess.Popen[bytes]:
    return await stage.redis()


@pytest.fixture
async def client(stage: Stage, redis_process: subprocess.Popen[bytes]) -> AsyncIterator[Client]:
    async with open_client(stage.server.url, LEASE) as client:
        yield client


async def registered(client: Client, count: int) -> None:
    async def all_there() -> bool:
        return len(await client.queue.workers()) == count

    await eventually(all_there, 30)


async def ended(process: subprocess.Popen[bytes]) -> int:
    await eventually(lambda: process.poll() is not None, 30)
    return process.returncode


def several(client: Client, function: Callable[..., Any], stage: Stage, count: int) -> Any:
    return asyncio.gather(*(client.submit(function, stage.scene, retry=MANY) for _ in range(count)))


# ------------------------------------------------------------------------------- a worker is killed


async def test_jobs_of_a_killed_worker_start_again_and_its_outcomes_are_refused(
    stage: Stage, client: Client
) -> None:
    first = stage.worker()
    ids = await several(client, tasks.waits, stage, 3)
    await eventually(lambda: len(stage.notes("begun")) == 3, 30)
    second = stage.worker()
    await registered(client, 2)
    first.kill()
    await eventually(lambda: second.pid in stage.pids("begun"), 30)
    stage.go()
    for id in ids:
        assert await client.result(id) == second.pid
        record = await client.record(id)
        assert outcomes(record) == ["worker_lost", "succeeded"]
        old = record.attempts[0]
        late = Finish(id, f"{old.began}.{old.worker}", State.SUCCEEDED, "succeeded", b'"late"')
        assert await client.queue.finish([late]) == ["lost"]
        assert await client.result(id) == second.pid


async def test_a_worker_that_wakes_after_its_lease_is_refused(stage: Stage, client: Client) -> None:
    sleeper = stage.worker()
    (id,) = await several(client, tasks.deaf, stage, 1)
    await eventually(lambda: stage.pids("begun") == {sleeper.pid}, 30)
    other = stage.worker()
    await registered(client, 2)
    sleeper.send_signal(signal.SIGSTOP)
    await eventually(lambda: other.pid in stage.pids("begun"), 30)
    stage.go()
    assert await client.result(id) == other.pid
    sleeper.send_signal(signal.SIGCONT)
    await eventually(lambda: sleeper.pid in stage.pids("ended"))
    # The zombie has ended its code too. It says so, if at all, in vain, and works on.
    other.send_signal(signal.SIGTERM)
    assert await ended(other) == 0
    again = await client.submit(tasks.waits, stage.scene)
    assert await client.result(again) == sleeper.pid
    assert await client.result(id) == other.pid
    assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]


async def test_a_poison_job_ends_and_takes_no_other_with_it(stage: Stage, client: Client) -> None:
    poison = await client.submit(tasks.exits, stage.scene, retry=MANY)
    others = await several(client, tasks.waits, stage, 4)
    stop = asyncio.Event()

    async def keep_alive() -> int:
        deaths = 0
        while not stop.is_set():
            process = stage.worker()
            while process.poll() is None and not stop.is_set():
                await asyncio.sleep(0.05)
            deaths += process.poll() is not None
        return deaths

    supervisor = asyncio.create_task(keep_alive())
    error = await client.error(poison)
    assert (error["type"], error["attempt"]) == ("worker_lost", 3)
    assert outcomes(await client.record(poison)) == ["worker_lost"] * 3
    stage.go()
    for id in others:
        await client.result(id)
    stop.set()
    assert await supervisor == 3


# --------------------------------------------------------------------------------- a worker is told


async def test_sigterm_hands_a_long_job_back_uncharged(stage: Stage, client: Client) -> None:
    process = stage.worker(drain="0")
    (id,) = await several(client, tasks.waits, stage, 1)
    await eventually(lambda: stage.notes("begun"), 30)
    process.send_signal(signal.SIGTERM)
    assert await ended(process) == 0
    record = await client.record(id)
    assert (record.state, record.attempt, outcomes(record)) == (State.QUEUED, 0, ["released"])
    assert await client.queue.workers() == []


async def test_sigterm_lets_short_jobs_end_and_a_second_one_hurries(
    stage: Stage, client: Client
) -> None:
    patient, hasty = stage.worker(drain="1h"), stage.worker(drain="1h", queues="other")
    short = await client.submit(tasks.waits, stage.scene)
    endless = {**stage.scene, "go": str(stage.directory / "never")}
    long = await client.submit(tasks.waits, endless, queue="other")
    await eventually(lambda: stage.pids("begun") == {patient.pid, hasty.pid}, 30)
    for process in (patient, hasty):
        process.send_signal(signal.SIGTERM)

    async def draining() -> bool:
        return [info.draining for info in await client.queue.workers()] == [True, True]

    await eventually(draining)
    stage.go()
    assert await ended(patient) == 0
    assert outcomes(await client.record(short)) == ["succeeded"]
    assert hasty.poll() is None
    hasty.send_signal(signal.SIGTERM)
    assert await ended(hasty) == 0
    assert outcomes(await client.record(long)) == ["released"]


# ------------------------------------------------------------------------------------ Redis is away


async def test_redis_is_killed_under_load_and_everybody_comes_back(
    stage: Stage, client: Client, redis_process: subprocess.Popen[bytes]
) -> None:
    workers = [stage.worker(), stage.worker()]
    await registered(client, 2)
    accepted: list[tuple[float, str]] = []
    stop = asyncio.Event()

    async def feed() -> None:
        while not stop.is_set():
            options = JobOptions(timeout=30, retry=MANY)
            jobs = [
                Submission(id=new_id(), task="crash.quick", payload=b"1", options=options)
                for _ in range(50)
            ]
            try:
                answers = await client.queue.submit_many(jobs)
            except Unavailable:
                await asyncio.sleep(0.05)
                continue
            accepted.extend(
                (time.monotonic(), job.id) for job, _ in zip(jobs, answers, strict=True)
            )
            await asyncio.sleep(0.05)

    feeding = asyncio.create_task(feed())
    began = time.monotonic()
    await eventually(
        lambda: accepted and accepted[-1][0] > began + 2.5
    )  # "everysec" promises what is older than 2 s
    killed = time.monotonic()
    redis_process.kill()
    await asyncio.to_thread(redis_process.wait, 10)
    before, dead = len(accepted), time.monotonic()
    await stage.redis()
    await eventually(lambda: len(accepted) > before + 100)
    stop.set()
    await feeding
    assert [process.poll() for process in workers] == [None, None]
    kept = [id for at, id in accepted if at < killed - 2 or at > dead]
    assert len(kept) > 200
    for id in kept:
        assert (await client.end(id)).state is State.SUCCEEDED


async def test_an_outcome_is_kept_until_redis_is_back(
    stage: Stage, client: Client, redis_process: subprocess.Popen[bytes]
) -> None:
    # "everysec" may forget the claim itself, and the job would rightly begin again.
    await client.redis.config_set("appendfsync", "always")
    worker = stage.worker(lease="600")  # nobody else would give the job a second attempt
    (id,) = await several(client, tasks.waits, stage, 1)
    await eventually(lambda: stage.notes("begun"), 30)
    redis_process.kill()
    await asyncio.to_thread(redis_process.wait, 10)
    stage.go()
    await eventually(lambda: stage.notes("ended"))
    await eventually(lambda: "during=finish" in stage.log(worker))
    await stage.redis()
    assert await client.result(id) == worker.pid
    assert len(stage.notes("begun")) == 1


async def test_a_redis_that_stalls_costs_nobody_a_lease(
    stage: Stage, client: Client, redis_process: subprocess.Popen[bytes]
) -> None:
    stage.worker()
    stage.worker()
    await registered(client, 2)
    ids = await several(client, tasks.waits, stage, 6)
    await eventually(lambda: len(stage.notes("begun")) == 6, 30)
    redis_process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(2.5 * LEASE)  # the fault itself: Redis stands still for longer than a lease
    redis_process.send_signal(signal.SIGCONT)
    later = await client.submit(tasks.quick, 1)
    assert await client.result(later) == 1
    stage.go()
    for id in ids:
        await client.result(id)
        assert outcomes(await client.record(id)) == ["succeeded"]


async def test_a_worker_that_starts_first_waits_for_redis(stage: Stage) -> None:
    process = stage.worker()
    await eventually(lambda: "Redis is unavailable" in stage.log(process), 30)
    await stage.redis()
    async with open_client(stage.server.url, LEASE) as client:
        await registered(client, 1)
        assert await client.result(await client.submit(tasks.quick, 5)) == 5
    process.send_signal(signal.SIGTERM)
    assert await ended(process) == 0


async def test_a_worker_that_never_found_redis_ends_when_it_is_told(stage: Stage) -> None:
    process = stage.worker()
    await eventually(lambda: "Redis is unavailable" in stage.log(process), 30)
    process.send_signal(signal.SIGTERM)
    assert await ended(process) == 0


# ------------------------------------------------------------------------ code that does not let go


async def test_a_blocked_loop_keeps_its_lease(stage: Stage, client: Client) -> None:
    stage.worker()
    (id,) = await several(client, tasks.blocks, stage, 1)
    await eventually(lambda: stage.notes("begun"), 30)
    stage.worker()  # would take it over
    await registered(client, 2)
    assert await client.result(id) == 1
    assert outcomes(await client.record(id)) == ["succeeded"]


async def test_threads_and_processes_are_cancelled(stage: Stage, client: Client) -> None:
    worker = stage.worker()
    ids = [await client.submit(one, stage.scene) for one in (tasks.thread, tasks.cpu)]
    await eventually(lambda: len(stage.pids("begun")) == 2, 30)
    (child,) = stage.pids("begun") - {worker.pid}
    for id in ids:
        await client.queue.cancel(id)
    for id in ids:
        assert (await client.end(id)).state is State.CANCELLED
    await eventually(lambda: stage.pids("cancelled") == {worker.pid, child})
    await eventually(lambda: not psutil.pid_exists(child))
    assert await client.result(await client.submit(tasks.quick, 5)) == 5
