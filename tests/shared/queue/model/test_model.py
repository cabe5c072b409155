"""Random operations on a shard: the invariants hold whatever their order, losses and repeats.

Every test run uses the same few seeds; MODEL_ROUNDS=1000 adds many more.
"""

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, seed, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from redis.asyncio import Redis

from tandem_shared.jobs.record import MAX_SHOWN_ATTEMPTS, Submission, state_history
from tandem_shared.jobs.states import FINAL, TRANSITIONS, State
from tandem_shared.queue.connections import connect
from tandem_shared.queue.messages import Claimed, Report
from tandem_shared.queue.scripts import execute
from tests.shared.queue.model.allowance import LIMITS, Allowance
from tests.shared.queue.model.examining import Examining
from tests.shared.queue.model.forgetting import Forgetting
from tests.shared.queue.model.keeping import Keeping
from tests.shared.queue.model.laws import broken
from tests.shared.queue.model.pausing import Pausing
from tests.shared.queue.model.shard import Shard, Snapshot, Worker, pairs
from tests.shared.queue.model.submitting import Submitting

T = TypeVar("T")

ROUNDS = int(os.environ.get("MODEL_ROUNDS", "20"))
LEASE, GRACE, SILENCE = 6.0, 2.0, 3.0  # seconds; more than half a lease of silence is a stall
TASKS: tuple[dict[str, int], ...] = ({"t": 1, "u": 1}, {"t": 2, "u": 1}, {"t": 1}, {"t": 2})
QUEUES = (["a", "b"], ["a", "b"], ["a"], ["b"])
KINDS = (
    State.SUCCEEDED,
    State.FAILED,
    State.RETRYING,
    State.RETRYING,
    State.QUEUED,
    State.CANCELLED,
)

# Each step is one of these. They are not rules: hypothesis uses only some rules per example.
STEPS = (
    "forget_scripts", *("submit",) * 5, *("claim",) * 7, *("finish",) * 4, *("finish_late",) * 3,
    *("wait",) * 4, *("beat",) * 2, *("crash",) * 3, *("cancel",) * 2, "report", "report_late",
    "claim_late", "stall", "step_back", "forget", "keep", "keep_late", "pause", "resume",
    *("lock",) * 4, "lock_late", *("unlock",) * 2, "examine",
)  # fmt: skip


class ShardMachine(Examining, Forgetting, Keeping, Pausing, Submitting, RuleBasedStateMachine):
    """One shard, its clients and its workers, on a clock that the machine turns."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis: Redis = connect(self.url, timeout=60)  # the machine may be busy
        self.shard = Shard(self.redis, letter="m", lease=LEASE, grace=GRACE)
        self.workers: list[Worker] = []
        self.claims: list[tuple[Worker, Claimed]] = []  # every token ever given out
        self.ended: set[tuple[str, str]] = set()  # attempts ended by their holder
        self.calls: list[tuple[Worker, int]] = []  # the number of every claim
        self.allowance = Allowance(self.shard, "t")
        self.jobs: dict[str, Submission] = {}
        self.keys: dict[str, Submission] = {}
        self.cancelled: set[str] = set()  # cancelled while they were not final
        self.notified: set[str] = set()  # those of them that were running
        self.states: dict[str, tuple[State, int]] = {}  # state and stamp by the events
        self.past: dict[str, set[tuple[int, State]]] = {}
        self.final: dict[str, dict[str, str]] = {}
        self.now = Snapshot({}, {}, {}, {}, {}, [])  # of the last invariant check
        self.seen = "-"  # the last event

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def look(self) -> Snapshot:
        return self.run(self.shard.snapshot())

    def pick(self, options: Sequence[T]) -> T:
        return options[self.data.draw(st.integers(0, len(options) - 1))]

    def chance(self) -> bool:
        return self.pick((False, True))

    @initialize()
    def begin(self) -> None:
        async def begin() -> None:
            await self.redis.flushall()
            await self.shard.turn(0)
            await self.shard.silence()

        self.run(begin())
        self.workers = [self.arrive(TASKS[n], QUEUES[n], {}) for n in range(3)]

    def arrive(self, tasks: dict[str, int], queues: list[str], given: Mapping[str, Any]) -> Worker:
        """A worker registers, with these limits of `t`."""
        self.allowance.publish(tasks["t"], given)
        worker = self.run(self.shard.worker(tasks, queues, **given))
        self.allowance.look(self.look())
        return worker

    @rule(step=st.sampled_from(STEPS), data=st.data())
    def take_step(self, step: str, data: st.DataObject) -> None:
        self.data = data
        getattr(self, step)()

    def cancel(self) -> None:
        if not self.jobs:
            return
        alive = [id for id in self.jobs if id not in self.final]
        id = self.pick(alive if alive and self.chance() else [*self.jobs])
        was = State(self.now.jobs[id]["state"])
        for _ in range(self.pick((1, 2))):
            record = self.run(self.shard.queue.cancel(id))
            assert record is not None
            if was in FINAL:
                assert record.state is was
            else:
                self.cancelled.add(id)
                assert record.cancel is not None
                assert record.state is (State.RUNNING if was is State.RUNNING else State.CANCELLED)
        self.now = self.look()
        for worker in self.workers:
            if id in worker.held:
                self.beat_of(worker)

    def holds(self, claimed: Claimed) -> bool:
        record = self.now.jobs[claimed.id]
        return record["state"] == "running" and record["token"] == claimed.token

    def claim(self) -> None:
        worker, slots = self.pick(self.workers), self.pick((1, 2, 3, 5, 50))
        room = self.pick((1, 1 << 20, 1 << 20))
        claim = self.run(worker.call(slots=slots, max_bytes=room))
        assert claim.registered
        assert len(claim.jobs) <= slots
        if self.chance():  # the reply was lost
            assert (
                self.run(worker.call(slots=slots, max_bytes=room, number=worker.calls)).jobs
                == claim.jobs
            )
        snapshot = self.look()
        published = pairs(snapshot.values["versions"])
        for one in claim.jobs:
            record = snapshot.jobs[one.id]
            assert (record["state"], record["token"], record["attempt"]) == (
                "running",
                one.token,
                str(one.attempt),
            )
            assert record["queue"] in set(worker.queues) - self.paused
            wanted = min(int(record["ver"]), int(published.get(record["task"], record["ver"])))
            assert worker.tasks[record["task"]] >= wanted
            assert one.token not in {known.token for _, known in self.claims if known.id == one.id}
            assert "exp" not in record or int(record["exp"]) > self.shard.ms
        assert sum(self.is_suspect(snapshot, id, token) for id, token in worker.held.items()) <= 1
        self.allowance.start(claim.jobs, snapshot)
        self.calls.append((worker, worker.calls))
        self.claims += [(worker, one) for one in claim.jobs]

    def is_suspect(self, snapshot: Snapshot, id: str, token: str) -> bool:
        record = snapshot.jobs[id]
        return (record["state"], record["token"]) == ("running", token) and int(
            record.get("losses", 0)
        ) >= 2

    def claim_late(self) -> None:
        """A call that was delayed, or a second copy of one."""
        if not self.calls:
            return
        worker, call = self.pick(self.calls)
        known = {one.token for _, one in self.claims}
        claim = self.run(worker.call(slots=5, number=call))
        assert {one.token for one in claim.jobs} <= known

    def beat(self) -> None:
        self.beat_of(self.pick(self.workers))

    def beat_of(self, worker: Worker) -> None:
        known, lost, cancelled = self.run(worker.beat())
        after = self.look()
        assert known
        assert after.jobs == self.now.jobs
        assert set(after.zsets.get("leases", {})) == set(self.now.zsets.get("leases", {}))
        for id, token in worker.held.items():
            record = after.jobs[id]
            holds = record["state"] == "running" and record["token"] == token
            assert (id in lost) is not holds
            assert (id in cancelled) is (holds and "cancel" in record)
            if holds and "cancel" not in record:
                assert after.zsets["leases"][id] == self.shard.ms + 1000 * LEASE
        for id in lost:
            del worker.held[id]

    def finish(self) -> None:
        if held := [one for one in self.claims if self.holds(one[1])]:
            self.end(*self.pick(held))

    def finish_late(self) -> None:
        """Ends an attempt with any token that was ever given out."""
        if self.claims:
            self.end(*self.pick(self.claims))

    def end(self, worker: Worker, claimed: Claimed) -> None:
        to, delay = self.pick(KINDS), self.pick((0.0, 1.0, 8.0))
        before = self.now.jobs[claimed.id]
        answer = self.run(worker.end(claimed, to, body=b"{}", delay=delay))
        after = self.look().jobs[claimed.id]
        if not self.holds(claimed):
            repeated = (claimed.id, claimed.token) in self.ended and before[
                "token"
            ] == claimed.token
            ended = before["state"] if State(before["state"]) in {*FINAL} - {to} else "ok"
            assert answer == (ended if repeated else "lost")
            assert after == before
        else:
            assert answer == ("ok" if after["state"] == to else after["state"])
            self.ended.add((claimed.id, claimed.token))
            late = "exp" in before and int(before["exp"]) <= self.shard.ms + 1000 * delay
            exhausted = to is State.RETRYING and (late or before["attempt"] == before["max"])
            assert after["state"] == (
                "cancelled" if "cancel" in before else "failed" if exhausted else to
            )
            refunded = to is State.QUEUED and "cancel" not in before
            assert int(after["attempt"]) == int(before["attempt"]) - refunded
        if self.chance():  # the reply was lost
            assert self.run(worker.end(claimed, to, body=b"{}", delay=delay)) == answer
            assert self.look().jobs[claimed.id] == after

    def report(self) -> None:
        if held := [one for _, one in self.claims if self.holds(one)]:
            self.report_of(self.pick(held))

    def report_late(self) -> None:
        if self.claims:
            self.report_of(self.pick(self.claims)[1])

    def report_of(self, claimed: Claimed) -> None:
        number = int(self.now.jobs[claimed.id].get("oq", 0)) + 1
        before = len(self.run(self.shard.queue.output(claimed.id)))
        reports = [
            Report(claimed.id, claimed.token, number, self.pick(("progress", "output")), b"1")
        ] * 2
        answer = "ok" if self.holds(claimed) else "lost"
        assert self.run(self.shard.report(*reports, limit=1 << 20)) == [answer] * 2
        assert len(self.run(self.shard.queue.output(claimed.id))) == before + self.holds(claimed)

    def crash(self) -> None:
        """Workers vanish; new incarnations replace them, perhaps with other tasks and limits."""
        for worker in [self.pick(self.workers)] if self.chance() else [*self.workers]:
            self.workers.remove(worker)
            self.workers.append(self.arrive(self.pick(TASKS), self.pick(QUEUES), self.pick(LIMITS)))
        if self.chance():
            self.run(self.shard.wait(LEASE))

    def wait(self) -> None:
        self.run(self.shard.wait(self.pick((0.001, 1.0, 2.5, LEASE))))

    def stall(self) -> None:
        """Redis is away, or its clock jumps: live workers keep the jobs that they held."""
        held: dict[str, str] = {}
        for worker in self.workers:
            _, lost, cancelled = self.run(worker.beat())
            held |= {id: token for id, token in worker.held.items() if id not in lost + cancelled}
        self.run(self.shard.turn(self.pick((SILENCE + 0.1, LEASE + 1, 100.0))))
        self.run(self.shard.queue.tick())
        for worker in self.workers:
            self.run(worker.beat())
        self.run(self.shard.queue.tick())
        after = self.look().jobs
        assert {id: (after[id]["state"], after[id]["token"]) for id in held} == {
            id: ("running", token) for id, token in held.items()
        }

    def step_back(self) -> None:
        self.run(self.shard.turn(-self.pick((0.001, 2.0, 30.0))))
        self.run(self.shard.queue.tick())

    def forget_scripts(self) -> None:
        self.run(execute(self.redis, "SCRIPT", "FLUSH"))

    @invariant()
    def laws(self) -> None:
        self.now = now = self.run(self.shard.snapshot(self.seen))
        assert not broken(now)
        self.allowance.look(now)
        self.check_fences(now)
        for entry, text in now.events:
            if entry != self.seen:
                for line in text.splitlines():
                    self.check_event(*line.split())
        self.seen = now.events[-1][0] if now.events else "-"
        kept = {
            (id, token)
            for id, _, token in (one.partition(":") for one in now.values.get("slots:task:t", []))
        }
        assert kept == self.allowance.running(now), "a slot of the task leaked or was freed twice"
        # A clock step back of less than half a lease goes unnoticed.
        latest = self.shard.ms + 1500 * LEASE
        assert all(end <= latest for end in now.zsets.get("leases", {}).values())
        assert set(self.jobs) == set(now.jobs), "a job was lost or appeared"
        for id, record in now.jobs.items():
            state, stamp = self.states[id]
            assert state == record["state"], f"{id} became {record['state']} without an event"
            assert stamp == int(record["v"]) or state is State.RUNNING  # progress moves its stamp
            if state in FINAL:
                assert self.final.setdefault(id, record) == record, "a final record changed"
                assert state is State.CANCELLED or id not in self.cancelled

    def check_event(self, id: str, word: str, stamp: str, _: str) -> None:
        """Every change is one event, in order, and a legal transition."""
        state = State(word)
        before, last = self.states.get(id, (None, 0))
        if before is None:
            assert state in (State.QUEUED, State.SCHEDULED)
        elif before is state:  # a cancel request to a running job
            assert state is State.RUNNING
            assert id in self.cancelled - self.notified
            self.notified.add(id)
        else:
            assert state in TRANSITIONS[before], f"{id}: {before} -> {state}"
            assert state is State.CANCELLED or id not in self.notified
        assert int(stamp) > last
        self.states[id] = (state, int(stamp))
        self.past.setdefault(id, set()).add((int(stamp), state))

    def teardown(self) -> None:
        try:
            if self.workers:
                self.run(self.check_histories())
                self.recover()
                self.laws()
                self.run(self.check_histories())
                assert set(self.final) == set(self.jobs)
                self.examine()
        finally:
            self.run(self.redis.aclose())
            self.runner.close()

    async def check_histories(self) -> None:
        """The histories in the records match the events."""
        for id in self.jobs:
            record = await self.shard.get(id)
            if len(record.attempts) < MAX_SHOWN_ATTEMPTS:
                assert {(stamp, then.state) for stamp, then in state_history(record)} <= self.past[
                    id
                ]

    def recover(self) -> None:
        """A healthy worker and time make every job final; startable jobs start at once."""
        self.resume_all()
        worker = self.arrive({"t": 2, "u": 1}, ["a", "b"], self.allowance.published)
        snapshot, starved = self.look(), 0
        for _ in range(300):
            while claimed := self.run(worker.claim(slots=50)):
                self.allowance.start(claimed, self.look())
                starved = 0 if any(one.task == "t" for one in claimed) else starved
                for one in claimed:
                    assert self.run(worker.end(one)) == "ok"
            assert starved < 2, f"none of {self.allowance.startable(snapshot)} starts"
            snapshot = self.look()
            if not snapshot.counts:
                return
            starved = starved + 1 if self.allowance.startable(snapshot) else 0
            # Two of these steps suffice for any rate to allow a start, even after a clock step back
            # that went unnoticed.
            self.run(self.shard.turn(SILENCE - 0.1))
            self.run(self.shard.queue.tick())
        raise AssertionError(f"never final: {snapshot.counts}, {snapshot.zsets}")


@pytest.mark.timeout(max(120, 10 * ROUNDS))
def test_the_invariants_hold_whatever_happens(redis_url: str) -> None:
    # In rounds of few examples, since later examples of a round resemble earlier ones.
    few = settings(
        max_examples=6,
        stateful_step_count=60,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    for number in range(ROUNDS):
        machine = seed(number)(type("ShardMachine", (ShardMachine,), {"url": redis_url}))
        stateful.run_state_machine_as_test(machine, settings=few)
