"""Jobs claimed ahead: how many by how long attempts take, in which order they start, and that none is kept waiting."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Claimed, Finish
from tandem_worker import task
from tandem_worker.runtime.leases import Leases
from tandem_worker.runtime.prefetch import (
    MAX_BYTES,
    MAX_JOBS,
    MAX_JOBS_PER_SLOT,
    MAX_WAIT_SECONDS,
    Prefetch,
)
from tests.conftest import eventually
from tests.worker.clocks import Clock
from tests.worker.workers import Client, outcomes, working

LEASE = 30.0


def claimed(number: int, payload: bytes = b"{}", worker: str = "w") -> Claimed:
    return Claimed(f"j{number}", f"{number}.{worker}", 1, 3, "t", "main", payload, b"{}", 0)


class Line:
    """One of `slots` with what it wrote and holds."""

    def __init__(self, slots: int = 10, *, quick: bool = True) -> None:
        self.clock, self.leases = Clock(), Leases()
        self.written: list[Finish] = []
        self.prefetch = Prefetch(slots, LEASE, self.clock, self.leases, self.written.append)  # type: ignore[arg-type] # all it uses of a loop
        if quick:
            self.ran(0.001)

    def ran(self, seconds: float) -> None:
        for _ in range(500):
            self.prefetch.observe(seconds)


def test_nothing_is_claimed_ahead_before_it_is_known_how_long_attempts_take() -> None:
    assert Line(100, quick=False).prefetch.room == 0


@given(st.integers(1, 2000), st.floats(0.0, 1000.0))
def test_as_many_as_will_start_within_a_moment(slots: int, seconds: float) -> None:
    line = Line(slots)
    line.ran(seconds)
    room = line.prefetch.room
    assert room <= min(MAX_JOBS, MAX_JOBS_PER_SLOT * slots)
    # So many slots, each of which is free after so long: the last of them waits for room / slots of
    # that.
    assert room * seconds / slots <= 0.021


def test_one_long_attempt_among_short_ones_does_not_end_it_and_many_do() -> None:
    line = Line(100)
    line.prefetch.observe(3600.0)
    assert line.prefetch.room > 0
    line.ran(1.0)
    assert line.prefetch.room <= 2
    line.ran(10.0)
    assert line.prefetch.room == 0


def test_who_waits_has_taken_a_place_and_starts_in_turn() -> None:
    line = Line()
    room = line.prefetch.room
    for number in range(3):
        line.prefetch.add(claimed(number))
    assert line.prefetch.room == room - 3
    assert sorted(line.leases.held) == ["j0", "j1", "j2"]
    assert [one.job.id for one in iter(line.prefetch.pop, None)] == ["j0", "j1", "j2"]
    assert line.prefetch.room == room


def test_large_payloads_are_not_gathered() -> None:
    line = Line()
    line.prefetch.add(claimed(0, b"x" * MAX_BYTES))
    assert line.prefetch.room == 0
    assert line.prefetch.pop() is not None
    assert line.prefetch.room > 0


def test_a_cancel_is_written_and_a_lost_lease_is_forgotten() -> None:
    line = Line()
    for number in range(3):
        line.prefetch.add(claimed(number))
    line.prefetch.drop("j0", "cancel")
    line.prefetch.drop("j1", "lost")
    line.prefetch.drop("elsewhere", "cancel")
    assert [(one.id, one.to) for one in line.written] == [("j0", State.CANCELLED)]
    assert sorted(line.leases.held) == ["j0", "j2"]  # until the outcome is written, it is held
    assert [one.job.id for one in iter(line.prefetch.pop, None)] == ["j2"]


def test_a_job_that_came_back_has_one_place_and_its_new_token() -> None:
    line = Line()
    line.prefetch.add(claimed(1))
    again = claimed(1, worker="again")
    line.prefetch.add(again)
    assert len(line.prefetch) == 1
    assert line.leases.held["j1"][0] == again.token
    waiting = line.prefetch.pop()
    assert waiting is not None
    assert waiting.job is again


def test_who_waits_too_long_is_handed_back_and_no_more_are_claimed_for_a_while() -> None:
    line = Line()
    line.prefetch.add(claimed(0))
    line.clock.turn(MAX_WAIT_SECONDS - 0.01)
    line.prefetch.pop()
    line.prefetch.add(claimed(1))  # nobody waits for long yet
    line.clock.turn(MAX_WAIT_SECONDS + 0.01)
    assert line.written == []
    line.clock.turn(3 * MAX_WAIT_SECONDS)
    assert [(one.id, one.to, one.outcome) for one in line.written] == [
        ("j1", State.QUEUED, "released")
    ]
    assert line.prefetch.room == 0
    line.ran(0.001)
    assert line.prefetch.room > 0
    assert not line.clock.waiting  # nobody waits, so nobody looks


# -------------------------------------------------------------------------------------- in a worker


@pytest.mark.parametrize("ends", ["by itself", "by a cancel"])
async def test_short_jobs_then_long_ones(
    client: Client, redis_url: str, tmp_path: Path, ends: str
) -> None:
    most = running = 0
    go = asyncio.Event()

    @task("short")
    async def short() -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    @task("long")
    async def long() -> None:
        await go.wait()

    quick = [await client.submit(short) for _ in range(300)]
    slow = [await client.submit(long) for _ in range(40)]
    async with working(redis_url, tmp_path, short, long, concurrency=10) as worker:
        for id in quick:
            await client.result(id)
        assert most <= 10

        async def settled() -> list[str]:
            # What was claimed ahead has gone back: as many run as there are slots, and no other one
            # is held.
            records = [await client.record(id) for id in slow]
            held = [one.id for one in records if one.state is State.RUNNING]
            return held if len(held) == len(worker.runs) == 10 else []

        held = await eventually(settled)
        if ends == "by a cancel":
            for id in held:
                await client.queue.cancel(id)
            assert {(await client.end(id)).state for id in held} == {State.CANCELLED}
        go.set()
        ended = [await client.end(id) for id in slow]
    assert {outcomes(one)[-1] for one in ended} <= {"succeeded", "cancelled"}
    assert {outcome for one in ended for outcome in outcomes(one)[:-1]} <= {"released"}
    assert {one.attempt for one in ended} == {1}  # uncharged


async def test_a_worker_that_ends_hands_back_what_it_claimed_ahead(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    started: list[Any] = []

    @task("short")
    async def short(payload: int) -> None:
        started.append(payload)
        await asyncio.sleep(0.001)

    ids = [await client.submit(short, number) for number in range(3000)]
    async with working(redis_url, tmp_path, short, concurrency=10):
        await eventually(lambda: len(started) > 500)
    records = [await client.record(id) for id in ids]
    assert {one.state for one in records} <= {State.SUCCEEDED, State.QUEUED}
    assert sum(one.state is State.SUCCEEDED for one in records) == len(set(started)) == len(started)
    assert {one.attempt for one in records if one.state is State.QUEUED} == {0}
