"""Outcomes on their way to Redis: a lease is kept until its outcome is written, or never will be."""

import asyncio
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Finish
from tandem_shared.queue.queue import Queue
from tandem_worker.runtime.leases import Leases
from tandem_worker.runtime.metrics import WorkerMetrics
from tandem_worker.runtime.outcomes import MAX_UNWRITTEN, Outcomes
from tests.conftest import eventually


class Answering(Queue):
    """A queue whose `finish` does what the test says."""

    def __init__(self) -> None:
        super().__init__(Redis())
        self.faults: list[Exception] = []
        self.word = "ok"
        self.written: list[Finish] = []
        self.open = asyncio.Event()

    async def finish(self, outcomes: Sequence[Finish]) -> list[str]:
        await self.open.wait()
        if self.faults:
            raise self.faults.pop(0)
        self.written += outcomes
        return [self.word] * len(outcomes)


class Told:
    """Outcomes, and what they told the worker."""

    def __init__(self) -> None:
        self.queue = Answering()
        self.leases, self.room = Leases(), 0
        self.held = self.leases.held
        self.outcomes = Outcomes(self.queue, self.leases, WorkerMetrics([], 1), on_room=self._room)

    def _room(self) -> None:
        self.room += 1

    def put(self, *ids: str) -> None:
        for id in ids:
            self.held[id] = (f"{id}'s", 0.0)
            self.outcomes.put(Finish(id, f"{id}'s", State.SUCCEEDED, "succeeded"))


@pytest.fixture
async def told() -> Told:
    return Told()


async def test_a_lease_is_kept_until_the_outcome_is_written(told: Told) -> None:
    told.put("a", "b")
    await asyncio.sleep(0)
    assert (set(told.held), told.outcomes.unwritten) == ({"a", "b"}, 2)
    told.queue.open.set()
    await told.outcomes.all_written()
    assert (told.held, [one.id for one in told.queue.written]) == ({}, ["a", "b"])


async def test_a_job_that_came_back_keeps_its_new_lease(told: Told) -> None:
    told.put("a")
    told.held["a"] = ("another", 0.0)
    told.queue.word = "lost"
    told.queue.open.set()
    await told.outcomes.all_written()
    assert told.held == {"a": ("another", 0.0)}


async def test_while_redis_is_away_they_are_kept(told: Told) -> None:
    told.queue.faults = [Unavailable("no"), Unavailable("no")]
    told.queue.open.set()
    told.put("a")
    await told.outcomes.all_written()
    assert told.leases.doubtful
    assert (told.held, len(told.queue.written)) == ({}, 1)


async def test_what_cannot_be_written_at_all_is_left_to_its_lease(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    told.queue.faults = [ValueError("a fault of ours")]
    told.queue.open.set()
    told.put("a")
    await eventually(lambda: not told.outcomes.unwritten)
    assert told.held == {}
    told.put("b")  # and what comes after it is written
    await told.outcomes.all_written()
    assert [one.id for one in told.queue.written] == ["b"]


async def test_it_tells_when_there_is_room_again(told: Told) -> None:
    told.put(*map(str, range(MAX_UNWRITTEN + 10)))
    assert told.outcomes.full
    told.queue.open.set()
    await told.outcomes.all_written()
    assert (told.outcomes.full, told.room) == (False, 1)


async def test_only_the_attempt_that_is_over_is_let_go(told: Told) -> None:
    told.held["a"] = ("new", 0.0)
    told.leases.release("a", "old")
    told.leases.release("b", "old")
    assert told.held == {"a": ("new", 0.0)}
    told.leases.release("a", "new")
    assert told.held == {}
