"""Prefetched jobs: how many there are, in which order they start, and that they never wait long."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Claimed, Finish, Held
from tandem_worker import task
from tandem_worker.runtime.held_leases import Leases
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


class Probe:
    """A prefetch for `slots`, with its clock, its leases and the outcomes it wrote."""

    def __init__(self, slots: int = 10, *, quick: bool = True) -> None:
        self.clock, self.leases = Clock(), Leases()
        self.written: list[Finish] = []
        self.prefetch = Prefetch(slots, LEASE, self.clock, self.leases, self.written.append)  # type: ignore[arg-type] # all it uses of a loop
        if quick:
            self.ran(0.001)

    def ran(self, seconds: float) -> None:
        for _ in range(500):
            self.prefetch.observe(seconds)


def test_nothing_is_prefetched_before_durations_are_known() -> None:
    assert Probe(100, quick=False).prefetch.room == 0


@given(st.integers(1, 2000), st.floats(0.0, 1000.0))
def test_only_jobs_that_will_start_soon_are_prefetched(slots: int, seconds: float) -> None:
    probe = Probe(slots)
    probe.ran(seconds)
    room = probe.prefetch.room
    assert room <= min(MAX_JOBS, MAX_JOBS_PER_SLOT * slots)
    # Each slot becomes free every `seconds`, so the last job waits room / slots times as long.
    assert room * seconds / slots <= 0.021


def test_many_long_attempts_end_the_prefetch_and_a_single_one_does_not() -> None:
    probe = Probe(100)
    probe.prefetch.observe(3600.0)
    assert probe.prefetch.room > 0
    probe.ran(1.0)
    assert probe.prefetch.room <= 2
    probe.ran(10.0)
    assert probe.prefetch.room == 0


def test_waiting_jobs_take_room_and_start_in_order() -> None:
    probe = Probe()
    room = probe.prefetch.room
    for number in range(3):
        probe.prefetch.add(claimed(number))
    assert probe.prefetch.room == room - 3
    assert sorted(probe.leases.held) == ["j0", "j1", "j2"]
    assert [one.job.id for one in iter(probe.prefetch.pop, None)] == ["j0", "j1", "j2"]
    assert probe.prefetch.room == room


def test_large_payloads_leave_no_room() -> None:
    probe = Probe()
    probe.prefetch.add(claimed(0, b"x" * MAX_BYTES))
    assert probe.prefetch.room == 0
    assert probe.prefetch.pop() is not None
    assert probe.prefetch.room > 0


def test_a_cancel_is_written_and_a_lost_job_is_dropped() -> None:
    probe = Probe()
    for number in range(3):
        probe.prefetch.add(claimed(number))
    j0, j1, j2 = (Held(claimed(number).id, claimed(number).token) for number in range(3))
    probe.prefetch.drop(j0, "cancel")
    probe.prefetch.drop(j1, "lost")
    probe.prefetch.drop(j2._replace(token="of another attempt"), "lost")
    probe.prefetch.drop(Held("elsewhere", j0.token), "cancel")
    assert [(one.id, one.to) for one in probe.written] == [("j0", State.CANCELLED)]
    assert sorted(probe.leases.held) == ["j0", "j2"]  # held until the outcome is written
    assert [one.job.id for one in iter(probe.prefetch.pop, None)] == ["j2"]


def test_a_job_that_was_claimed_again_waits_once_with_its_new_token() -> None:
    probe = Probe()
    probe.prefetch.add(claimed(1))
    again = claimed(1, worker="again")
    probe.prefetch.add(again)
    assert len(probe.prefetch) == 1
    assert probe.leases.held["j1"][0] == again.token
    waiting = probe.prefetch.pop()
    assert waiting is not None
    assert waiting.job is again


def test_jobs_that_wait_too_long_are_handed_back_and_prefetching_pauses() -> None:
    probe = Probe()
    probe.prefetch.add(claimed(0))
    probe.clock.turn(MAX_WAIT_SECONDS - 0.01)
    probe.prefetch.pop()
    probe.prefetch.add(claimed(1))  # has not waited long yet
    probe.clock.turn(MAX_WAIT_SECONDS + 0.01)
    assert probe.written == []
    probe.clock.turn(3 * MAX_WAIT_SECONDS)
    assert [(one.id, one.to, one.outcome) for one in probe.written] == [
        ("j1", State.QUEUED, "released")
    ]
    assert probe.prefetch.room == 0
    probe.ran(0.001)
    assert probe.prefetch.room > 0
    assert not probe.clock.waiting  # nothing waits, so no timer is set


def test_jobs_that_outwaited_their_lease_in_a_blocked_loop_are_handed_back() -> None:
    probe = Probe()
    probe.prefetch.add(claimed(0))
    probe.clock.now += MAX_WAIT_SECONDS + LEASE + 1  # no timer of the loop has rung
    probe.prefetch.add(claimed(1))
    waiting = probe.prefetch.pop()
    assert waiting is not None
    assert waiting.job.id == "j1"
    assert [(one.id, one.to, one.outcome) for one in probe.written] == [
        ("j0", State.QUEUED, "released")
    ]


@pytest.mark.parametrize("ends", ["by itself", "by a cancel"])
async def test_long_jobs_after_short_ones_are_handed_back(
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
            # Prefetched jobs are handed back: only those that run in a slot are held.
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


async def test_a_worker_that_ends_hands_back_prefetched_jobs(
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
