"""Outcomes on their way to Redis: a lease is held until its outcome is written or given up."""

import asyncio
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Finish
from tandem_shared.queue.queue import Queue
from tandem_worker.runtime.held_leases import Leases
from tandem_worker.runtime.metrics import WorkerMetrics
from tandem_worker.runtime.outcomes import MAX_UNWRITTEN, Outcomes
from tests.conftest import eventually


class FakeQueue(Queue):
    """A queue whose `finish` waits, fails and answers as the test decides."""

    def __init__(self) -> None:
        super().__init__(Redis())
        self.faults: list[Exception] = []
        self.answer = "ok"
        self.written: list[Finish] = []
        self.open = asyncio.Event()

    async def finish(
        self, outcomes: Sequence[Finish], *, again: bool = False, accepted: bool = False
    ) -> list[str]:
        await self.open.wait()
        if self.faults:
            raise self.faults.pop(0)
        self.written += outcomes
        return [self.answer] * len(outcomes)


class Probe:
    """Outcomes, and what they did with leases and room."""

    def __init__(self) -> None:
        self.queue = FakeQueue()
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
async def probe() -> Probe:
    return Probe()


async def test_a_lease_is_held_until_the_outcome_is_written(probe: Probe) -> None:
    probe.put("a", "b")
    await asyncio.sleep(0)
    assert (set(probe.held), probe.outcomes.unwritten) == ({"a", "b"}, 2)
    probe.queue.open.set()
    await probe.outcomes.all_written()
    assert (probe.held, [one.id for one in probe.queue.written]) == ({}, ["a", "b"])


async def test_a_job_that_was_claimed_again_keeps_its_new_lease(probe: Probe) -> None:
    probe.put("a")
    probe.held["a"] = ("another", 0.0)
    probe.queue.answer = "lost"
    probe.queue.open.set()
    await probe.outcomes.all_written()
    assert probe.held == {"a": ("another", 0.0)}


async def test_outcomes_are_kept_while_redis_is_unavailable(probe: Probe) -> None:
    probe.queue.faults = [Unavailable("no"), Unavailable("no")]
    probe.queue.open.set()
    probe.put("a")
    await probe.outcomes.all_written()
    assert probe.leases.doubtful
    assert (probe.held, len(probe.queue.written)) == ({}, 1)


async def test_an_outcome_that_cannot_be_written_releases_its_lease(
    probe: Probe, caplog: pytest.LogCaptureFixture
) -> None:
    probe.queue.faults = [ValueError("a fault of ours")]
    probe.queue.open.set()
    probe.put("a")
    await eventually(lambda: not probe.outcomes.unwritten)
    assert probe.held == {}
    probe.put("b")  # later outcomes are written
    await probe.outcomes.all_written()
    assert [one.id for one in probe.queue.written] == ["b"]


async def test_room_is_announced_when_enough_is_written(probe: Probe) -> None:
    probe.put(*map(str, range(MAX_UNWRITTEN + 10)))
    assert probe.outcomes.full
    probe.queue.open.set()
    await probe.outcomes.all_written()
    assert (probe.outcomes.full, probe.room) == (False, 1)


async def test_a_lease_is_released_only_for_its_own_attempt(probe: Probe) -> None:
    probe.held["a"] = ("new", 0.0)
    probe.leases.release("a", "old")
    probe.leases.release("b", "old")
    assert probe.held == {"a": ("new", 0.0)}
    probe.leases.release("a", "new")
    assert probe.held == {}
