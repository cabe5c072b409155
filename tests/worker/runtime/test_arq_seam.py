"""The seam to arq 0.28.0: the worker finds what it uses, and never calls what it replaces."""

import asyncio
import inspect
import os
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import arq.worker
import pytest
from arq.connections import ArqRedis
from arq.cron import CronJob
from redis.asyncio import Redis

from tandem_shared.jobs.states import State
from tandem_shared.retry_policy import RetryPolicy
from tandem_worker import task
from tandem_worker.runtime.arq_jobs import serialize
from tandem_worker.runtime.worker import Worker
from tests.conftest import eventually
from tests.worker.workers import Client, make_worker, outcomes, working


@task("number")
async def number(payload: int) -> int:
    return payload


def test_arq_has_the_version_that_was_read() -> None:
    assert version("arq") == "0.28.0"


# The methods that Worker overrides. Read arq's own before adding one.
OVERRIDDEN = {
    "__init__", "close", "handle_sig", "handle_sig_wait_for_completion", "main", "run",
}  # fmt: skip
# The methods of arq that we call, or that those call.
USED = {
    "run": "(self) -> None",
    "async_run": "(self) -> None",
    "run_check": (
        "(self, retry_jobs: Optional[bool] = None, max_burst_jobs: Optional[int] = None) -> int"
    ),
    "main": "(self) -> None",
    "handle_sig": "(self, signum: signal.Signals) -> None",
    "handle_sig_wait_for_completion": "(self, signum: signal.Signals) -> None",
    "close": "(self) -> None",
    "heart_beat": "(self) -> None",
    "run_cron": "(self, n: datetime.datetime, delay: float, num_windows: int = 2) -> None",
    "record_health": "(self) -> None",
    "_add_signal_handler": (
        "(self, signum: signal.Signals, handler: Callable[[signal.Signals], NoneType]) -> None"
    ),
}
# Methods that would claim, run or record a job in arq's way.
REPLACED = (
    "start_jobs", "run_job", "finish_job", "finish_failed_job", "_poll_iteration",
    "_cancel_aborted_jobs", "_release_sem_dec_counter_on_complete", "_sleep_until_tasks_complete",
    "_wait_for_tasks_to_complete",
)  # fmt: skip


@pytest.mark.parametrize("name", USED)
def test_methods_in_use_have_their_signatures(name: str) -> None:
    found = str(inspect.signature(getattr(arq.worker.Worker, name)))
    assert found.replace("Union[NoneType, ", "Optional[").replace("typing.", "") == USED[name]


def test_only_the_listed_methods_are_overridden() -> None:
    ours = {name for name in vars(Worker) if hasattr(arq.worker.Worker, name)}
    assert {name for name in ours if name in OVERRIDDEN or not name.startswith("__")} == OVERRIDDEN


def test_arqs_worker_accepts_our_arguments() -> None:
    taken = set(inspect.signature(arq.worker.Worker).parameters)
    given = {
        "functions",
        "redis_pool",
        "max_jobs",
        "job_completion_wait",
        "job_serializer",
        "job_deserializer",
    }
    given |= {
        "health_check_interval",
        "log_results",
        "handle_signals",
        "burst",
        "max_burst_jobs",
        "cron_jobs",
        "ctx",
    }
    given |= {"on_startup", "on_shutdown", "on_job_start", "on_job_end", "after_job_end"}
    assert given <= taken
    assert {"name", "coroutine", "timeout_s", "max_tries", "job_id"} <= set(
        CronJob.__dataclass_fields__
    )
    assert list(inspect.signature(ArqRedis).parameters)[:3] == [
        "pool_or_conn",
        "job_serializer",
        "job_deserializer",
    ]


async def test_arqs_attributes_exist(client: Client, redis_url: str, tmp_path: Path) -> None:
    worker = make_worker(redis_url, tmp_path, number, concurrency=7, drain=12)
    facts = {
        "max_jobs": 7, "_job_completion_wait": 12, "queue_name": "arq:queue",
        "burst": False, "max_burst_jobs": -1, "allow_pick_jobs": True, "main_task": None,
        "jobs_complete": 0, "jobs_failed": 0, "jobs_retried": 0,
        "on_startup": None, "on_shutdown": None, "on_stop": None,
        "on_job_start": None, "on_job_end": None, "after_job_end": None,
        "cron_jobs": [], "_handle_signals": False, "ctx": {}, "tasks": {},
    }  # fmt: skip
    assert {name: getattr(worker, name) for name in facts} == facts
    assert worker.loop is asyncio.get_running_loop()
    assert worker.pool is worker._pool
    assert set(worker.functions) == {"number"}
    assert worker.job_serializer is serialize
    await worker.close()


async def test_arqs_own_loop_is_never_called(
    client: Client, redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    for name in REPLACED:
        assert callable(getattr(arq.worker.Worker, name))
        monkeypatch.setattr(arq.worker.Worker, name, lambda *_, name=name: called.append(name))

    @task("flaky", retry=RetryPolicy(max_attempts=2, base=0.01, jitter=False))
    async def flaky() -> None:
        raise ValueError

    @task("endless")
    async def endless() -> None:
        await asyncio.Event().wait()

    async with working(redis_url, tmp_path, number, flaky, endless) as worker:
        plain = ArqRedis(redis.connection_pool, job_serializer=serialize)
        await plain.enqueue_job("number", 1)
        long = await client.submit(endless)
        assert await client.result(await client.submit(number, 5)) == 5
        await client.error(await client.submit(flaky))
        await client.queue.cancel(long)
        await client.end(long)
        await eventually(lambda: worker.jobs_complete + worker.jobs_failed >= 3)
    assert called == []
    keys = [key.decode() for key in await redis.keys("*")]
    assert [key for key in keys if not key.startswith("tandem:{a}:")] == []


async def test_a_worker_runs_once(client: Client, redis_url: str, tmp_path: Path) -> None:
    worker = make_worker(redis_url, tmp_path, number, burst=True)
    await worker.async_run()
    with pytest.raises(RuntimeError, match="has already run"):
        await worker.async_run()
    await worker.close()


async def test_async_run_keeps_the_connections_and_close_ends_them(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    worker = make_worker(redis_url, tmp_path, number, burst=True)
    await worker.async_run()
    assert await worker.pool.ping()
    await worker.close()
    assert worker._pool is None
    await worker.close()


async def test_close_ends_a_running_worker(client: Client, redis_url: str, tmp_path: Path) -> None:
    begun = asyncio.Event()
    stops: list[Any] = []

    @task("endless")
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    worker = make_worker(redis_url, tmp_path, endless)
    worker.on_stop = stops.append
    running = asyncio.create_task(worker.async_run())
    id = await client.submit(endless)
    await eventually(begun.is_set)
    await worker.close()
    await running
    assert stops == [signal.SIGUSR1]
    assert outcomes(await client.record(id)) == ["released"]


async def test_a_worker_that_is_stopped_before_it_runs_takes_nothing(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    worker = make_worker(redis_url, tmp_path, number)
    id = await client.submit(number, 1)
    worker.handle_sig(signal.SIGTERM)
    await worker.async_run()
    await worker.close()
    assert (await client.record(id)).state is State.QUEUED


def test_run_obeys_signals_and_closes(redis_url: str, tmp_path: Path) -> None:
    # As the main program does: in a new event loop with arq's signal handlers, awaited by nothing.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    stops: list[Any] = []
    calls: list[str] = []

    async def started(ctx: dict[Any, Any]) -> None:
        calls.append("started")
        loop.call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)

    async def ended(ctx: dict[Any, Any]) -> None:
        calls.append("ended")

    try:
        worker = make_worker(
            redis_url, tmp_path, number, handle_signals=True, on_startup=started, on_shutdown=ended
        )
        worker.on_stop = stops.append
        worker.run()
        assert stops == [signal.SIGTERM]
        assert calls == ["started", "ended"]
        assert worker._pool is None
    finally:
        asyncio.set_event_loop(None)
        loop.close()
