"""Redis comes back up to two seconds older, at any time: what a live process was told still holds.

The API and the workers live on, and repeat what they know in any order, while jobs are claimed.
"""

import asyncio
import os
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from redis.asyncio import Redis

from tandem_shared.jobs.states import FINAL, State
from tandem_shared.queue import recent
from tandem_shared.queue.connections import connect
from tandem_shared.queue.messages import Claimed, Finish, Report
from tests.shared.queue.model.laws import broken
from tests.shared.queue.model.rollback import Copy
from tests.shared.queue.model.shard import Shard, Snapshot, Worker, job

T = TypeVar("T")

ROUNDS = int(os.environ.get("MODEL_ROUNDS", "20")) // 2
LEASE, LOST_SECONDS = 6.0, 2.0
STEPS = (
    *("submit",) * 3, *("claim",) * 4, *("finish",) * 4, *("report",) * 3, "cancel", *("wait",) * 3,
    "beat", *("roll_back",) * 3,
)  # fmt: skip
ENDS = (State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.RETRYING, State.QUEUED)


class RollbackMachine(RuleBasedStateMachine):
    """A shard, an API and two workers that never die."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis: Redis = connect(self.url, timeout=60)
        self.shard = Shard(self.redis, letter="r", lease=LEASE, grace=2.0)
        self.workers: list[Worker] = []
        self.running: dict[tuple[str, str], tuple[Worker, Claimed]] = {}  # by id and token
        self.reports: dict[tuple[str, str], list[Report]] = {}  # the same; with stamps
        self.copies: list[tuple[int, Copy]] = []  # when they were taken
        self.accepted: set[str] = set()
        self.ended: list[Finish] = []  # accepted
        self.told: dict[str, State] = {}

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def look(self) -> Snapshot:
        return self.run(self.shard.snapshot())

    def pick(self, options: Sequence[T]) -> T:
        return options[self.data.draw(st.integers(0, len(options) - 1))]

    @initialize()
    def begin(self) -> None:
        async def begin() -> None:
            await self.redis.flushall()
            await self.shard.turn(0)
            await self.shard.silence()
            self.workers = [await self.shard.worker() for _ in range(2)]

        self.run(begin())

    @rule(step=st.sampled_from(STEPS), data=st.data())
    def take_step(self, step: str, data: st.DataObject) -> None:
        self.data = data
        self.copies.append((self.shard.us, self.run(self.shard.copy())))
        getattr(self, step)()

    def submit(self) -> None:
        key = self.pick((None, None, "k"))
        one = job(
            delay=self.pick((None, None, 1.0)), max_attempts=self.pick((1, 9)), concurrency_key=key
        )
        self.accepted |= set(self.run(self.shard.submit(one)))

    def claim(self) -> None:
        worker = self.pick(self.workers)
        for one in self.run(worker.claim(slots=self.pick((1, 3)))):
            self.running[one.id, one.token] = (worker, one)

    def report(self) -> None:
        if self.running:
            self.report_of(self.pick([*self.running.values()])[1])

    def report_of(self, claimed: Claimed) -> None:
        sent = self.reports.setdefault((claimed.id, claimed.token), [])
        number = len(sent) + 1
        one = Report(claimed.id, claimed.token, number, "output", b"%d" % number)
        (answer,) = self.run(self.shard.queue.report([one], limit=1 << 20))
        if answer.word == "behind":
            self.resend(claimed.id, claimed.token)
            (answer,) = self.run(self.shard.queue.report([one], limit=1 << 20))
        if answer.word == "ok":
            sent.append(one._replace(stamp=answer.stamp))
        else:
            assert answer.word == "lost"
            worker, _ = self.running.pop((claimed.id, claimed.token))
            if worker.held.get(claimed.id) == claimed.token:
                del worker.held[claimed.id]

    def resend(self, id: str, token: str) -> None:
        words = self.run(self.shard.report(*self.reports[id, token]))
        assert set(words) <= {"ok", "lost"}

    def finish(self) -> None:
        if self.running:
            worker, claimed = self.pick([*self.running.values()])
            del self.running[claimed.id, claimed.token]
            worker.held.pop(claimed.id, None)
            self.end(self.end_of(claimed, self.pick(ENDS)), again=False)

    def end_of(self, claimed: Claimed, to: State) -> Finish:
        outcome: Any = {State.QUEUED: "released", State.RETRYING: "failed"}.get(to, to.value)
        number = len(self.reports.get((claimed.id, claimed.token), ()))
        return Finish(claimed.id, claimed.token, to, outcome, b"{}", 1.0, reports=number)

    def end(self, finish: Finish, *, again: bool) -> None:
        answer = self.write(finish, again=again)
        if answer == "cancelled":
            finish = Finish(finish.id, finish.token, State.CANCELLED, "cancelled")
        if answer in ("cancelled", "failed") or (answer == "ok" and finish.to in FINAL):
            self.ended.append(finish)
            final = State(answer) if answer != "ok" else finish.to
            assert self.told.setdefault(finish.id, final) is final

    def write(self, finish: Finish, *, again: bool = False, accepted: bool = False) -> str:
        outcomes = [finish]
        (answer,) = self.run(self.shard.queue.finish(outcomes, again=again, accepted=accepted))
        if answer == "behind":
            self.resend(finish.id, finish.token)
            (answer,) = self.run(self.shard.queue.finish(outcomes))
        return answer

    def cancel(self) -> None:
        if self.accepted:
            id = self.pick(sorted(self.accepted))
            record = self.run(self.shard.queue.cancel(id))
            assert record is not None
            if record.state is State.CANCELLED:
                assert self.told.setdefault(id, State.CANCELLED) is State.CANCELLED

    def wait(self) -> None:
        self.run(self.shard.wait(self.pick((0.1, 0.5, 1.0))))

    def beat(self) -> None:
        for worker in self.workers:
            _, lost, _ = self.run(worker.beat())
            for id in lost:
                self.running.pop((id, worker.held.pop(id)), None)

    def roll_back(self) -> None:
        """Redis comes back; the processes repeat in any order, and claim meanwhile."""
        since = self.shard.us - int(LOST_SECONDS * 1e6)
        at, copy = self.pick([one for one in self.copies if one[0] >= since])
        self.run(self.shard.roll_back(copy))
        self.copies = [one for one in self.copies if one[0] <= at]
        self.run(self.shard.turn(0.5))
        if self.pick((False, True)):
            self.beat()
            self.claim()
        # An API may repeat a submission before or after the outcomes; workers wait for it.
        if self.pick((False, True)):
            self.write_again()
        self.run(self.repeat())
        self.write_again()

    def write_again(self) -> None:
        for finish in self.ended:
            self.write(finish, accepted=True)

    async def repeat(self) -> None:
        repeats = self.shard.queue.repeats
        repeats.start()
        assert repeats._task is not None
        await repeats._task

    @invariant()
    def laws(self) -> None:
        now = self.look()
        assert not broken(now)
        assert self.accepted <= now.jobs.keys(), "an accepted job was forgotten"
        for id, state in self.told.items():
            record = now.jobs[id]
            # A job that was claimed before its cancel was repeated is cancelled within the grace.
            repeated = state is State.CANCELLED and "cancel" in record
            assert record["state"] == state or repeated, f"{id} was {state}"

    def teardown(self) -> None:
        try:
            if self.workers:
                self.recover()
        finally:
            self.run(self.shard.queue.close())
            self.run(self.redis.aclose())
            self.runner.close()

    def recover(self) -> None:
        """Everything ends; a success has the output of its attempt, in order and once."""
        for worker, claimed in [*self.running.values()]:
            worker.held.pop(claimed.id, None)
            self.end(self.end_of(claimed, State.SUCCEEDED), again=True)
        for _ in range(40):
            self.beat()
            self.run(self.shard.wait(1))
            for worker in self.workers:
                for one in self.run(worker.claim()):
                    worker.held.pop(one.id, None)
                    self.end(self.end_of(one, State.SUCCEEDED), again=False)
            self.laws()
            if not self.look().counts:
                break
        now = self.look()
        assert not now.counts
        assert {id: now.jobs[id]["state"] for id in self.told} == self.told
        for id, record in now.jobs.items():
            if record["state"] == State.SUCCEEDED:
                sent = self.reports.get((id, record["token"]), [])
                chunks = self.run(self.shard.queue.output(id))
                last = [one.body for one in chunks if one.stamp > int(record["began"])]
                assert last == [report.body for report in sent]


@pytest.mark.timeout(max(120, 10 * ROUNDS))
def test_what_was_told_holds_over_rollbacks(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "SAFE_SECONDS", 3600.0)
    few = settings(
        max_examples=6,
        stateful_step_count=40,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    for number in range(ROUNDS):
        machine = seed(number)(type("RollbackMachine", (RollbackMachine,), {"url": redis_url}))
        stateful.run_state_machine_as_test(machine, settings=few)
