"""A worker's shutdown: running jobs end or are handed back, uncharged."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Claim
from tandem_worker import task
from tandem_worker.runtime.worker import Worker
from tests.conftest import eventually
from tests.worker.runtime.conftest import ONCE, Seen
from tests.worker.workers import Client, make_worker, outcomes, working


async def test_shutdown_hands_jobs_back_at_once_and_uncharged(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, waits, drain=0):
        id = await client.submit(waits)
        await eventually(lambda: seen.begun)
    record = await client.record(id)
    assert (record.state, record.attempt, outcomes(record)) == (State.QUEUED, 0, ["released"])
    assert seen.cancelled == [1]
    seen.go_on.set()
    async with working(redis_url, tmp_path, waits):
        assert await client.result(id) == "done"
    assert seen.begun == [1, 1]


async def test_a_drain_lets_running_jobs_end_and_claims_no_more(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, waits, drain=30) as worker:
        id = await client.submit(waits)
        await eventually(lambda: seen.begun)
        worker.handle_sig(SIGTERM)
        (info,) = await eventually(lambda: draining(client))
        assert info.running == (id,)
        later = await client.submit(waits)
        seen.go_on.set()
        assert await client.result(id) == "done"
    assert outcomes(await client.record(id)) == ["succeeded"]
    assert (await client.record(later)).state is State.QUEUED


async def draining(client: Client) -> list[Any]:
    return [info for info in await client.queue.workers() if info.draining]


async def test_a_second_signal_ends_the_drain(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, waits, drain=3600) as worker:
        id = await client.submit(waits)
        await eventually(lambda: seen.begun)
        worker.handle_sig(SIGTERM)
        await eventually(lambda: draining(client))
        assert not seen.cancelled
        worker.handle_sig(SIGTERM)
        await eventually(lambda: seen.cancelled)
    assert outcomes(await client.record(id)) == ["released"]


async def test_jobs_whose_code_ignores_cancellation_are_handed_back(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, stubborn: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, stubborn, drain=0):
        id = await client.submit(stubborn)
        await eventually(lambda: seen.begun)
    record = await client.record(id)
    assert (record.state, record.attempt, outcomes(record)) == (State.QUEUED, 0, ["released"])
    seen.go_on.set()
    async with working(redis_url, tmp_path, stubborn):
        assert await client.result(id) == "done all the same"


async def test_code_that_fails_during_shutdown_is_not_charged(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen
) -> None:
    @task("falls", retry=ONCE)
    async def falls() -> None:
        try:
            seen.begun.append(1)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("connection closed") from None

    async with working(redis_url, tmp_path, falls, drain=0):
        id = await client.submit(falls)
        await eventually(lambda: seen.begun)
    assert outcomes(await client.record(id)) == ["released"]


async def test_a_worker_whose_asyncio_task_is_cancelled_hands_jobs_back(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    worker = make_worker(redis_url, tmp_path, waits, drain=3600)
    running = asyncio.create_task(worker.async_run())
    try:
        id = await client.submit(waits)
        await eventually(lambda: seen.begun)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert outcomes(await client.record(id)) == ["released"]
        assert await client.queue.workers() == []
    finally:
        await worker.close()


async def test_jobs_of_a_claim_whose_answer_was_lost_are_handed_back(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    worker: Worker = make_worker(redis_url, tmp_path, waits)
    claim = worker.queue.claim

    async def deliver_none(*args: Any, **given: Any) -> Claim:
        answer = await claim(*args, **given)
        if given["slots"] and answer.jobs:
            worker.handle_sig(SIGTERM)
            raise Unavailable("the answer was lost")
        return answer

    worker.queue.claim = deliver_none  # type: ignore[method-assign] # the loss of an answer has no other seam
    running = asyncio.create_task(worker.async_run())
    try:
        id = await client.submit(waits)
        await running
        record = await client.record(id)
        assert (record.state, record.attempt, outcomes(record)) == (State.QUEUED, 0, ["released"])
        assert not seen.begun
    finally:
        await worker.close()
