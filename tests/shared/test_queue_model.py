"""Random lives of a shard: whatever the order of events, and whatever is lost or repeated, its laws hold.

Runs the same few examples each time. `MODEL_EXAMPLES=3000` makes as many new ones.
"""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from redis.asyncio import Redis

from shared.errors import KeyReused
from shared.jobs import FINAL, NEXT, PRIORITIES, State, Submission
from shared.queue import Claimed, Report, connect
from tests.shared.shard import Shard, Snapshot, Worker, broken, job

T = TypeVar("T")

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "0"))
LEASE, GRACE, SILENCE = 6.0, 2.0, 3.0  # seconds; a silence of more than half a lease is a stall
TASKS = ({"t": 1}, {"t": 2}, {"t": 1, "u": 1}, {"t": 2, "u": 2})
QUEUES = (["a"], ["b"], ["a", "b"])
KINDS = (State.SUCCEEDED, State.FAILED, State.RETRYING, State.QUEUED, State.CANCELLED)
number = st.integers(0, 1 << 16)


class Life(RuleBasedStateMachine):
    """One shard, its clients and its workers; the clock is the test's."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis: Redis = connect(self.url)
        self.shard = Shard(self.redis, letter="m", lease=LEASE, grace=GRACE)
        self.workers: list[Worker] = []
        self.claims: list[tuple[Worker, Claimed]] = []  # every token that was ever given out
        self.asked: list[tuple[Worker, int]] = []  # every claim's number
        self.jobs: list[Submission] = []
        self.states: dict[str, tuple[State, int]] = {}  # as the events tell: state, stamp
        self.final: dict[str, dict[str, str]] = {}
        self.cancelled: set[str] = set()  # asked for while they were not final
        self.told: set[str] = set()  # of them, those that ran
        self.keys: dict[str, Submission] = {}
        self.now = Snapshot({}, {}, {}, {}, {}, [])
        self.seen = "-"  # the last event

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def look(self) -> Snapshot:
        return self.run(self.shard.snapshot())

    @initialize()
    def begin(self) -> None:
        async def begin() -> None:
            await self.redis.flushall()
            await self.shard.turn(0)
            await self.shard.silence()
            self.workers = [await self.shard.worker(TASKS[2], QUEUES[2]), await self.shard.worker(TASKS[0], QUEUES[0])]

        self.run(begin())

    # -------------------------------------------------------------------------------------------------- what clients do

    @rule(
        task=st.sampled_from([("t", 1), ("t", 1), ("t", 2), ("u", 1)]),
        queue=st.sampled_from("aab"),
        priority=st.sampled_from(PRIORITIES),
        delay=st.sampled_from([None, None, 0.0, 1.0, 5.0]),
        expires=st.sampled_from([None, None, 2.0, 20.0]),
        limit=st.sampled_from([0, 0, 1, 1, 2]),
        most=st.sampled_from([1, 2, 4, 9]),
        key=st.sampled_from([None, None, None, "x", "y"]),
        content=st.booleans(),
        copies=st.sampled_from([1, 1, 1, 3]),
        again=st.booleans(),
        replays=number,
    )
    def submit(
        self, task: tuple[str, int], queue: str, priority: Any, delay: float | None, expires: float | None, limit: int,
        most: int, key: str | None, content: bool, copies: int, again: bool, replays: int,
    ) -> None:  # fmt: skip
        final = list(self.final)
        jobs = [
            job(
                task[0],
                version=task[1],
                payload=b"%d" % content,
                queue=queue,
                priority=priority,
                delay=delay,
                expires_in=expires,
                concurrency_key="k" if limit else None,
                concurrency_limit=limit or 1,
                max_attempts=most,
                idempotency_key=key,
                replay_of=final[replays % len(final)] if final and not replays % 3 else None,
            )
            for _ in range(copies)
        ]
        answers = self.run(self.shard.queue.submit_many(jobs))
        for one, answer in zip(jobs, answers, strict=True):
            first = self.keys.setdefault(key, one) if key else one
            if first.fingerprint() != one.fingerprint():
                assert isinstance(answer, KeyReused)
            else:
                assert not isinstance(answer, KeyReused)
                assert (answer.id, answer.replayed) == (first.id, first is not one)
            if first is one:
                self.jobs.append(one)
        if again:  # the answers were lost
            before = self.look()
            repeated = self.run(self.shard.queue.submit_many(jobs))
            assert [str(answer) for answer in repeated] == [str(answer) for answer in answers]
            assert self.look().jobs == before.jobs

    @precondition(lambda self: self.jobs)
    @rule(which=number, times=st.sampled_from([1, 1, 2]))
    def cancel(self, which: int, times: int) -> None:
        id = self.jobs[which % len(self.jobs)].id
        was = State(self.now.jobs[id]["state"])
        for _ in range(times):
            record = self.run(self.shard.queue.cancel(id))
            assert record is not None
            if was in FINAL:
                assert record.state is was
            else:
                self.cancelled.add(id)
                assert record.cancel is not None
                assert record.state is (State.RUNNING if was is State.RUNNING else State.CANCELLED)

    # -------------------------------------------------------------------------------------------------- what workers do

    def worker(self, which: int) -> Worker:
        return self.workers[which % len(self.workers)]

    @rule(which=number, slots=st.sampled_from([1, 2, 3, 5, 50]), room=st.sampled_from([1, 1 << 20]), lost=st.booleans())
    def claim(self, which: int, slots: int, room: int, lost: bool) -> None:
        worker = self.worker(which)
        claim = self.run(worker.call(slots=slots, room=room))
        assert claim.known
        assert len(claim.jobs) <= slots
        if lost:
            assert self.run(worker.call(slots=slots, room=room, number=worker.calls)).jobs == claim.jobs
        snapshot = self.look()
        for one in claim.jobs:
            record = snapshot.jobs[one.id]
            assert (record["state"], record["token"], record["attempt"]) == ("running", one.token, str(one.attempt))
            assert record["queue"] in worker.queues
            assert worker.tasks[record["task"]] >= int(record["ver"])
            assert one.token not in {known.token for _, known in self.claims if known.id == one.id}
            assert "exp" not in record or "attempts" in record or int(record["exp"]) > self.shard.ms
        suspects = [
            id for id, record in snapshot.jobs.items()
            if record["state"] == "running" and int(record.get("losses", 0)) >= 2
            and record["token"].partition(".")[2] == worker.id
        ]  # fmt: skip
        assert len(suspects) <= 1
        self.asked.append((worker, worker.calls))
        self.claims += [(worker, one) for one in claim.jobs]

    @precondition(lambda self: self.asked)
    @rule(which=number, slots=st.sampled_from([1, 5]))
    def claim_late(self, which: int, slots: int) -> None:
        worker, call = self.asked[which % len(self.asked)]
        held = {one.token for _, one in self.claims}
        claim = self.run(worker.call(slots=slots, number=call))
        assert {one.token for one in claim.jobs} <= held

    @rule(which=number)
    def beat(self, which: int) -> None:
        worker = self.worker(which)
        before = self.look()
        known, lost, cancelled = self.run(worker.beat())
        after = self.look()
        assert known
        assert after.jobs == before.jobs
        assert set(after.zsets.get("leases", {})) == set(before.zsets.get("leases", {}))
        for id, token in worker.held.items():
            record = before.jobs[id]
            holds = record["state"] == "running" and record["token"] == token
            assert (id in lost) is not holds
            assert (id in cancelled) is (holds and "cancel" in record)
            if holds and "cancel" not in record:
                assert after.zsets["leases"][id] == self.shard.ms + 1000 * LEASE
        for id in lost:
            del worker.held[id]

    @precondition(lambda self: self.claims)
    @rule(which=number, to=st.sampled_from(KINDS), delay=st.sampled_from([0.0, 1.0, 8.0]), again=st.booleans())
    def finish(self, which: int, to: State, delay: float, again: bool) -> None:
        """Also with tokens that are long past."""
        worker, claimed = self.claims[-1 - which % len(self.claims)]
        before = self.look().jobs[claimed.id]
        answer = self.run(worker.end(claimed, to, body=b"{}", delay=delay))
        after = self.look().jobs[claimed.id]
        if before["token"] != claimed.token:
            assert answer == "lost"
            assert after == before
        elif before["state"] != "running":
            assert answer == "ok"
            assert after == before
        else:
            assert answer == "ok"
            exhausted = to is State.RETRYING and before["attempt"] == before["max"]
            expected = State.CANCELLED if "cancel" in before else State.FAILED if exhausted else to
            assert after["state"] == expected
            charged = to is not State.QUEUED or "cancel" in before
            assert int(after["attempt"]) == int(before["attempt"]) - (not charged)
        if again:
            assert self.run(worker.end(claimed, to, body=b"{}", delay=delay)) == answer
            assert self.look().jobs[claimed.id] == after

    @precondition(lambda self: self.claims)
    @rule(which=number, count=st.sampled_from([1, 1, 2]), type=st.sampled_from(["progress", "output"]))
    def report(self, which: int, count: int, type: str) -> None:
        _, claimed = self.claims[-1 - which % len(self.claims)]
        before = self.look().jobs[claimed.id]
        holds = before["state"] == "running" and before["token"] == claimed.token
        said = len(self.run(self.shard.queue.output(claimed.id)))
        reports = [Report(claimed.id, claimed.token, int(before.get("oq", 0)) + 1, type, b"1")] * count
        assert self.run(self.shard.queue.report(reports, limit=1 << 20)) == ["ok" if holds else "lost"] * count
        assert len(self.run(self.shard.queue.output(claimed.id))) == said + holds

    @rule(which=number, tasks=st.sampled_from(TASKS), queues=st.sampled_from(QUEUES))
    def crash(self, which: int, tasks: dict[str, int], queues: list[str]) -> None:
        """Its jobs are forgotten; another incarnation takes its place, perhaps with other code."""
        self.workers[which % len(self.workers)] = self.run(self.shard.worker(tasks, queues))

    # ------------------------------------------------------------------------------------------------- what time brings

    @rule(seconds=st.sampled_from([0.001, 1.0, 2.5, 7.0]))
    def wait(self, seconds: float) -> None:
        self.run(self.shard.wait(seconds))

    @rule(seconds=st.sampled_from([SILENCE + 0.1, LEASE + 1, 100.0]), by=st.sampled_from(["tick", "beat", "claim"]))
    def stall(self, seconds: float, by: str) -> None:
        """Redis is away, or its clock jumps: who held a job until then, and still lives, still holds it."""
        held = {}
        for worker in self.workers:
            _, lost, cancelled = self.run(worker.beat())
            held |= {id: token for id, token in worker.held.items() if id not in lost + cancelled}
        held = {id: token for id, token in held.items() if self.now.jobs[id].get("token") == token}
        self.run(self.shard.turn(seconds))
        if by == "tick":
            self.run(self.shard.queue.tick())
        elif by == "claim":
            self.claim(0, 1, 1 << 20, lost=False)
        for worker in self.workers:
            self.run(worker.beat())
        self.run(self.shard.queue.tick())
        after = self.look()
        assert {id: (after.jobs[id]["state"], after.jobs[id]["token"]) for id in held} == {
            id: ("running", token) for id, token in held.items()
        }

    @rule(seconds=st.sampled_from([0.001, 2.0, 30.0]))
    def step_back(self, seconds: float) -> None:
        self.run(self.shard.turn(-seconds))

    @rule()
    def forget_scripts(self) -> None:
        self.run(self.redis.script_flush())

    # -------------------------------------------------------------------------------------------------------- the laws

    @invariant()
    def laws(self) -> None:
        self.now = now = self.run(self.shard.snapshot(self.seen))
        assert not broken(now)
        for entry, text in now.events:
            if entry != self.seen:
                self.follow(text)
        self.seen = now.events[-1][0] if now.events else "-"
        for id, record in now.jobs.items():
            state, stamp = self.states[id]
            assert state == record["state"], f"{id} became {record['state']} and nobody was told"
            assert stamp == int(record["v"]) or state is State.RUNNING  # which progress moves on
            if state in FINAL:
                assert self.final.setdefault(id, record) == record
                assert state is State.CANCELLED or id not in self.cancelled
        assert {one.id for one in self.jobs} == set(now.jobs), "a job is gone"

    def follow(self, text: str) -> None:
        for line in text.splitlines():
            id, word, stamp, _ = line.split()
            state = State(word)
            before, last = self.states.get(id, (None, 0))
            if before is None:
                assert state in (State.QUEUED, State.SCHEDULED)
            elif before is state:  # a running job is to be cancelled, which is told once
                assert state is State.RUNNING
                assert id in self.cancelled - self.told
                self.told.add(id)
            else:
                assert state in NEXT[before], f"{id}: {before} -> {state}"
                assert state is State.CANCELLED or id not in self.told
            assert int(stamp) > last
            self.states[id] = (state, int(stamp))

    # --------------------------------------------------------------------------------------------------- no job is lost

    def teardown(self) -> None:
        try:
            if self.workers:
                self.run(self.recover())
                self.laws()
                assert set(self.final) == {one.id for one in self.jobs}
        finally:
            self.run(self.redis.aclose())
            self.runner.close()

    async def recover(self) -> None:
        """With a healthy worker, and as time goes on, every job becomes final."""
        worker = await self.shard.worker(TASKS[3], QUEUES[2])
        for _ in range(200):
            while claimed := await worker.claim(slots=50):
                for one in claimed:
                    assert await worker.end(one) == "ok"
            if not (await self.shard.snapshot()).counts:
                return
            await self.shard.turn(SILENCE - 0.1)
            await self.shard.queue.tick()
        snapshot = await self.shard.snapshot()
        raise AssertionError(f"never final: {snapshot.counts}, {snapshot.zsets}")


@pytest.mark.timeout(max(120, EXAMPLES))
def test_the_laws_hold_whatever_happens(redis_url: str) -> None:
    class Here(Life):
        url = redis_url

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=EXAMPLES or 60,
            stateful_step_count=40,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
