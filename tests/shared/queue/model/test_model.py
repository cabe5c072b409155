"""Random lives of a shard: whatever the order of events, and whatever is lost or repeated, its laws hold.

Every run lives the same few lives; with `MODEL_ROUNDS=1000` these and many more.
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

from tandem_shared.errors import Full, KeyReused
from tandem_shared.jobs.record import MAX_SHOWN_ATTEMPTS, Submission, state_history
from tandem_shared.jobs.states import FINAL, PRIORITIES, TRANSITIONS, State
from tandem_shared.queue.connections import connect
from tandem_shared.queue.messages import Claimed, Report
from tandem_shared.queue.scripts import execute
from tests.shared.queue.model.allowance import LIMITS, Allowance
from tests.shared.queue.model.examining import Examining
from tests.shared.queue.model.forgetting import Forgetting
from tests.shared.queue.model.keeping import Keeping
from tests.shared.queue.model.laws import broken
from tests.shared.queue.model.pausing import Pausing
from tests.shared.queue.model.shard import Shard, Snapshot, Worker, job

T = TypeVar("T")

ROUNDS = int(os.environ.get("MODEL_ROUNDS", "20"))
LEASE, GRACE, SILENCE = 6.0, 2.0, 3.0  # seconds; a silence of more than half a lease is a stall
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

# Each step is one of these. They are not rules of their own: of those, each life has only some.
STEPS = (
    "forget_scripts", *("submit",) * 5, *("claim",) * 7, *("finish",) * 4, *("finish_late",) * 3, *("wait",) * 4,
    *("beat",) * 2, *("crash",) * 3, *("cancel",) * 2, "report", "report_late", "claim_late", "stall", "step_back",
    "forget", "keep", "keep_late", "pause", "resume", *("lock",) * 4, "lock_late", *("unlock",) * 2, "examine",
)  # fmt: skip


class Life(Examining, Forgetting, Keeping, Pausing, RuleBasedStateMachine):
    """One shard, its clients and its workers; the clock is the test's."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis: Redis = connect(self.url, timeout=60)  # nobody waits: the machine may be busy
        self.shard = Shard(self.redis, letter="m", lease=LEASE, grace=GRACE)
        self.workers: list[Worker] = []
        self.claims: list[tuple[Worker, Claimed]] = []  # every token that was ever given out
        self.ended: set[tuple[str, str]] = set()  # those whose holder had the last word
        self.calls: list[tuple[Worker, int]] = []  # every claim's number
        self.allowance = Allowance(self.shard, "t")
        self.jobs: dict[str, Submission] = {}
        self.keys: dict[str, Submission] = {}
        self.cancelled: set[str] = set()  # asked for while they were not final
        self.told: set[str] = set()  # of them, those that ran
        self.states: dict[str, tuple[State, int]] = {}  # as the events tell: state, stamp
        self.past: dict[str, set[tuple[int, State]]] = {}
        self.final: dict[str, dict[str, str]] = {}
        self.now = Snapshot({}, {}, {}, {}, {}, [])  # as of the last look at the laws
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
        return self.run(self.shard.worker(tasks, queues, **given))

    @rule(step=st.sampled_from(STEPS), data=st.data())
    def live(self, step: str, data: st.DataObject) -> None:
        self.data = data
        getattr(self, step)()

    # ------------------------------------------------------------------------------ what clients do

    def submission(self) -> Submission:
        limit = self.pick((0, 0, 1, 1, 2))
        task, version = self.pick((("t", 1), ("t", 1), ("t", 2), ("u", 1)))
        return job(
            task,
            version=version,
            payload=self.pick((b"1", b"1", b"2")),
            queue=self.pick("aab"),
            priority=self.pick(PRIORITIES),
            delay=self.pick((None, None, None, 0.0, 1.0, 5.0)),
            expires_in=self.pick((None, None, None, 2.0, 20.0)),
            concurrency_key="k" if limit else None,
            concurrency_limit=limit or 1,
            max_attempts=self.pick((1, 2, 4, 9, 9)),
            idempotency_key=self.pick((None, None, None, "x", "y")),
            replay_of=self.pick([*self.final]) if self.final and self.chance() else None,
        )

    def submit(self) -> None:
        jobs = [self.submission() for _ in range(self.pick((1, 1, 2, 4)))]
        answers = self.run(self.shard.queue.submit_many(jobs))
        for one, answer in zip(jobs, answers, strict=True):
            first = self.keys.setdefault(one.idempotency_key, one) if one.idempotency_key else one
            if first.fingerprint() != one.fingerprint():
                assert isinstance(answer, KeyReused)
            else:
                assert not isinstance(answer, KeyReused | Full)
                assert (answer.id, answer.replayed) == (first.id, first is not one)
            if first is one:
                self.jobs[one.id] = one
        if self.chance():  # the answers were lost
            before = self.look()
            again = self.run(self.shard.queue.submit_many(jobs))
            assert [str(answer) for answer in again] == [str(answer) for answer in answers]
            assert self.look().jobs == before.jobs

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

    # ------------------------------------------------------------------------------ what workers do

    def holds(self, claimed: Claimed) -> bool:
        record = self.now.jobs[claimed.id]
        return record["state"] == "running" and record["token"] == claimed.token

    def claim(self) -> None:
        worker, slots = self.pick(self.workers), self.pick((1, 2, 3, 5, 50))
        room = self.pick((1, 1 << 20, 1 << 20))
        claim = self.run(worker.call(slots=slots, max_bytes=room))
        assert claim.registered
        assert len(claim.jobs) <= slots
        if self.chance():  # the answer was lost
            assert (
                self.run(worker.call(slots=slots, max_bytes=room, number=worker.calls)).jobs
                == claim.jobs
            )
        snapshot = self.look()
        for one in claim.jobs:
            record = snapshot.jobs[one.id]
            assert (record["state"], record["token"], record["attempt"]) == (
                "running",
                one.token,
                str(one.attempt),
            )
            assert record["queue"] in set(worker.queues) - self.paused
            assert worker.tasks[record["task"]] >= int(record["ver"])
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
        """A call that took long on its way, or a second copy of one."""
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
        """With any token there ever was."""
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
            assert answer == ("ok" if repeated else "lost")
            assert after == before
        else:
            assert answer == "ok"
            self.ended.add((claimed.id, claimed.token))
            late = "exp" in before and int(before["exp"]) <= self.shard.ms + 1000 * delay
            exhausted = to is State.RETRYING and (late or before["attempt"] == before["max"])
            assert after["state"] == (
                "cancelled" if "cancel" in before else "failed" if exhausted else to
            )
            refunded = to is State.QUEUED and "cancel" not in before
            assert int(after["attempt"]) == int(before["attempt"]) - refunded
        if self.chance():  # the answer was lost
            assert self.run(worker.end(claimed, to, body=b"{}", delay=delay)) == answer
            assert self.look().jobs[claimed.id] == after

    def report(self) -> None:
        if held := [one for _, one in self.claims if self.holds(one)]:
            self.say(self.pick(held))

    def report_late(self) -> None:
        if self.claims:
            self.say(self.pick(self.claims)[1])

    def say(self, claimed: Claimed) -> None:
        number = int(self.now.jobs[claimed.id].get("oq", 0)) + 1
        before = len(self.run(self.shard.queue.output(claimed.id)))
        reports = [
            Report(claimed.id, claimed.token, number, self.pick(("progress", "output")), b"1")
        ] * 2
        answer = "ok" if self.holds(claimed) else "lost"
        assert self.run(self.shard.queue.report(reports, limit=1 << 20)) == [answer] * 2
        assert len(self.run(self.shard.queue.output(claimed.id))) == before + self.holds(claimed)

    def crash(self) -> None:
        """What they held is forgotten; other incarnations take their places, perhaps with other code."""
        for worker in [self.pick(self.workers)] if self.chance() else [*self.workers]:
            self.workers.remove(worker)
            self.workers.append(self.arrive(self.pick(TASKS), self.pick(QUEUES), self.pick(LIMITS)))
        if self.chance():
            self.run(self.shard.wait(LEASE))

    # ----------------------------------------------------------------------------- what time brings

    def wait(self) -> None:
        self.run(self.shard.wait(self.pick((0.001, 1.0, 2.5, LEASE))))

    def stall(self) -> None:
        """Redis is away, or its clock jumps: who held a job until then, and still lives, still holds it."""
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

    # ------------------------------------------------------------------------------------- the laws

    @invariant()
    def laws(self) -> None:
        self.now = now = self.run(self.shard.snapshot(self.seen))
        assert not broken(now)
        self.check_fences(now)
        for entry, text in now.events:
            if entry != self.seen:
                for line in text.splitlines():
                    self.hear(*line.split())
        self.seen = now.events[-1][0] if now.events else "-"
        kept = {
            (id, token)
            for id, _, token in (one.partition(":") for one in now.values.get("slots:t", []))
        }
        assert kept == self.allowance.running(now), "a slot of the task leaked, or was given away"
        longest = (
            self.shard.ms + 1500 * LEASE
        )  # the clock may have stepped back by half a lease, unseen
        assert all(end <= longest for end in now.zsets.get("leases", {}).values())
        assert set(self.jobs) == set(now.jobs), "a job is gone, or there is one too many"
        for id, record in now.jobs.items():
            state, stamp = self.states[id]
            assert state == record["state"], f"{id} became {record['state']} and nobody was told"
            assert stamp == int(record["v"]) or state is State.RUNNING  # which progress moves on
            if state in FINAL:
                assert self.final.setdefault(id, record) == record, "a final record changed"
                assert state is State.CANCELLED or id not in self.cancelled

    def hear(self, id: str, word: str, stamp: str, _: str) -> None:
        """Every change is told once, in order, and is on the table."""
        state = State(word)
        before, last = self.states.get(id, (None, 0))
        if before is None:
            assert state in (State.QUEUED, State.SCHEDULED)
        elif before is state:  # a running job is to be cancelled
            assert state is State.RUNNING
            assert id in self.cancelled - self.told
            self.told.add(id)
        else:
            assert state in TRANSITIONS[before], f"{id}: {before} -> {state}"
            assert state is State.CANCELLED or id not in self.told
        assert int(stamp) > last
        self.states[id] = (state, int(stamp))
        self.past.setdefault(id, set()).add((int(stamp), state))

    # ------------------------------------------------------------------------------- no job is lost

    def teardown(self) -> None:
        try:
            if self.workers:
                self.run(self.remember())
                self.recover()
                self.laws()
                self.run(self.remember())
                assert set(self.final) == set(self.jobs)
                self.examine()
        finally:
            self.run(self.redis.aclose())
            self.runner.close()

    async def remember(self) -> None:
        """What the records tell of their past is what was told when it was present."""
        for id in self.jobs:
            record = await self.shard.get(id)
            if len(record.attempts) < MAX_SHOWN_ATTEMPTS:
                assert {(stamp, then.state) for stamp, then in state_history(record)} <= self.past[
                    id
                ]

    def recover(self) -> None:
        """With a healthy worker, and as time goes on, every job becomes final; what may start does so when asked."""
        self.resume_all()
        worker = self.arrive({"t": 2, "u": 1}, ["a", "b"], self.allowance.published)
        snapshot, thirst = self.look(), 0
        for _ in range(300):
            while claimed := self.run(worker.claim(slots=50)):
                self.allowance.start(claimed, self.look())
                thirst = 0 if any(one.task == "t" for one in claimed) else thirst
                for one in claimed:
                    assert self.run(worker.end(one)) == "ok"
            assert thirst < 2, f"nothing of {self.allowance.startable(snapshot)} starts"
            snapshot = self.look()
            if not snapshot.counts:
                return
            thirst = thirst + 1 if self.allowance.startable(snapshot) else 0
            # Twice this is longer than it takes to have a token of any rate, after a step back that
            # nobody saw.
            self.run(self.shard.turn(SILENCE - 0.1))
            self.run(self.shard.queue.tick())
        raise AssertionError(f"never final: {snapshot.counts}, {snapshot.zsets}")


@pytest.mark.timeout(max(120, 10 * ROUNDS))
def test_the_laws_hold_whatever_happens(redis_url: str) -> None:
    # In rounds of few lives, since those that come later in a round are much like the ones before.
    few = settings(
        max_examples=6,
        stateful_step_count=60,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    for number in range(ROUNDS):
        life = seed(number)(type("Life", (Life,), {"url": redis_url}))
        stateful.run_state_machine_as_test(life, settings=few)
