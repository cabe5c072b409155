"""Redis comes back up to two seconds older, at any time: what a live process was told still holds.

The API and the workers live on, and repeat what they know in any order, while jobs are claimed.
Each of 5,000 short lives is repeated by its number; MODEL_ROUNDS=1000 makes fifty times as many.
"""

import math
import os
import random
from collections.abc import Sequence
from typing import Any, TypeVar

import pytest
from redis.asyncio import Redis

from tandem_shared.jobs.states import FINAL, State
from tandem_shared.queue import recent
from tandem_shared.queue.connections import connect
from tandem_shared.queue.messages import Claimed, Finish, Report
from tests.shared.queue.model.laws import broken
from tests.shared.queue.model.rollback import Copy
from tests.shared.queue.model.shard import Shard, Snapshot, Worker, job

T = TypeVar("T")

ROUNDS = int(os.environ.get("MODEL_ROUNDS", "20"))
PARTS, LIVES = 10, 25 * ROUNDS  # tests that run beside each other, and lives of each
LEASE, LOST_SECONDS = 6.0, 2.0
STEPS = (
    *("submit",) * 3, *("claim",) * 4, *("finish",) * 4, *("report",) * 3, "cancel", *("wait",) * 3,
    "beat",
)  # fmt: skip
ENDS = (State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.RETRYING, State.QUEUED)


class Life:
    """A shard, an API and two workers that never die."""

    def __init__(self, redis: Redis, number: int) -> None:
        self.shard = Shard(redis, letter="r", lease=LEASE, grace=2.0)
        self.chance = random.Random(number)
        self.workers: list[Worker] = []
        self.running: dict[tuple[str, str], tuple[Worker, Claimed]] = {}  # by id and token
        self.reports: dict[tuple[str, str], list[Report]] = {}  # the same; with stamps
        self.accepted: set[str] = set()
        self.ended: list[Finish] = []  # accepted
        self.told: dict[str, State] = {}

    def pick(self, options: Sequence[T]) -> T:
        return self.chance.choice(options)

    async def live(self) -> None:
        """Redis comes back older once or twice; then everything ends."""
        await self.shard.redis.flushdb()
        await self.shard.turn(0)
        for _ in range(3):  # the leases of an earlier time have ended
            await self.shard.queue.tick()
            await self.shard.turn(LEASE / 2 - 0.5)
        self.workers = [await self.shard.worker() for _ in range(2)]
        await self.submit()
        for _ in range(self.pick((1, 1, 2))):
            await self.take_steps(self.pick((0, 2, 4, 6)))
            at, copy = self.shard.us, await self.shard.copy()
            await self.take_steps(self.pick((1, 2, 3, 5)), until=at + int(LOST_SECONDS * 1e6))
            await self.roll_back(copy)
            await self.laws()
        await self.recover()

    async def take_steps(self, count: int, until: float = math.inf) -> None:
        """Random steps, before that time on the shard's clock."""
        for _ in range(count):
            step = self.pick(STEPS)
            if step == "wait" and self.shard.us >= until - 1e6:
                break
            await getattr(self, step)()

    async def submit(self) -> None:
        key = self.pick((None, None, "k"))
        one = job(
            delay=self.pick((None, None, 1.0)), max_attempts=self.pick((1, 9)), concurrency_key=key
        )
        self.accepted |= set(await self.shard.submit(one))

    async def claim(self) -> None:
        worker = self.pick(self.workers)
        for one in await worker.claim(slots=self.pick((1, 3))):
            self.running[one.id, one.token] = (worker, one)

    async def report(self) -> None:
        if self.running:
            await self.report_of(self.pick([*self.running.values()])[1])

    async def report_of(self, claimed: Claimed) -> None:
        sent = self.reports.setdefault((claimed.id, claimed.token), [])
        number = len(sent) + 1
        one = Report(claimed.id, claimed.token, number, "output", b"%d" % number)
        (answer,) = await self.shard.queue.report([one], limit=1 << 20)
        if answer.word == "behind":
            await self.resend(claimed.id, claimed.token)
            (answer,) = await self.shard.queue.report([one], limit=1 << 20)
        if answer.word == "ok":
            sent.append(one._replace(stamp=answer.stamp))
        else:
            assert answer.word == "lost"
            worker, _ = self.running.pop((claimed.id, claimed.token))
            if worker.held.get(claimed.id) == claimed.token:
                del worker.held[claimed.id]

    async def resend(self, id: str, token: str) -> None:
        words = await self.shard.report(*self.reports[id, token])
        assert set(words) <= {"ok", "lost"}

    async def finish(self) -> None:
        if self.running:
            worker, claimed = self.pick([*self.running.values()])
            del self.running[claimed.id, claimed.token]
            worker.held.pop(claimed.id, None)
            await self.end(self.end_of(claimed, self.pick(ENDS)), again=False)

    def end_of(self, claimed: Claimed, to: State) -> Finish:
        outcome: Any = {State.QUEUED: "released", State.RETRYING: "failed"}.get(to, to.value)
        number = len(self.reports.get((claimed.id, claimed.token), ()))
        return Finish(claimed.id, claimed.token, to, outcome, b"{}", 1.0, reports=number)

    async def end(self, finish: Finish, *, again: bool) -> None:
        answer = await self.write(finish, again=again)
        if answer == "cancelled":
            finish = Finish(finish.id, finish.token, State.CANCELLED, "cancelled")
        if answer in ("cancelled", "failed") or (answer == "ok" and finish.to in FINAL):
            self.ended.append(finish)
            final = State(answer) if answer != "ok" else finish.to
            assert self.told.setdefault(finish.id, final) is final

    async def write(self, finish: Finish, *, again: bool = False, accepted: bool = False) -> str:
        outcomes = [finish]
        (answer,) = await self.shard.queue.finish(outcomes, again=again, accepted=accepted)
        if answer == "behind":
            await self.resend(finish.id, finish.token)
            (answer,) = await self.shard.queue.finish(outcomes)
        return answer

    async def cancel(self) -> None:
        if self.accepted:
            id = self.pick(sorted(self.accepted))
            record = await self.shard.queue.cancel(id)
            assert record is not None
            if record.state is State.CANCELLED:
                assert self.told.setdefault(id, State.CANCELLED) is State.CANCELLED

    async def wait(self) -> None:
        await self.shard.wait(self.pick((0.1, 0.5, 1.0)))

    async def beat(self) -> None:
        for worker in self.workers:
            _, lost, _ = await worker.beat()
            for id in lost:
                self.running.pop((id, worker.held.pop(id)), None)

    async def roll_back(self, copy: Copy) -> None:
        """Redis comes back; the processes repeat in any order, and claim meanwhile."""
        await self.shard.roll_back(copy)
        await self.shard.turn(0.5)
        if self.pick((False, True)):
            await self.beat()
            await self.claim()
        # An API may repeat a submission before or after the outcomes; workers wait for it.
        if self.pick((False, True)):
            await self.write_again()
        await self.repeat()
        await self.write_again()

    async def write_again(self) -> None:
        for finish in self.ended:
            await self.write(finish, accepted=True)

    async def repeat(self) -> None:
        repeats = self.shard.queue.repeats
        repeats.start()
        assert repeats._task is not None
        await repeats._task

    async def laws(self) -> Snapshot:
        """Check what must hold at any time."""
        now = await self.shard.snapshot()
        assert not broken(now)
        assert self.accepted <= now.jobs.keys(), "an accepted job was forgotten"
        for id, state in self.told.items():
            record = now.jobs[id]
            # A job that was claimed before its cancel was repeated is cancelled within the grace.
            repeated = state is State.CANCELLED and "cancel" in record
            assert record["state"] == state or repeated, f"{id} was {state}"
        return now

    async def recover(self) -> None:
        """Everything ends; a success has the output of its attempt, in order and once."""
        for worker, claimed in [*self.running.values()]:
            worker.held.pop(claimed.id, None)
            await self.end(self.end_of(claimed, State.SUCCEEDED), again=True)
        for _ in range(40):
            await self.beat()
            await self.shard.wait(1)
            for worker in self.workers:
                for one in await worker.claim():
                    worker.held.pop(one.id, None)
                    await self.end(self.end_of(one, State.SUCCEEDED), again=False)
            now = await self.laws()
            if not now.counts:
                break
        assert not now.counts
        assert {id: now.jobs[id]["state"] for id in self.told} == self.told
        for id, record in now.jobs.items():
            if record["state"] == State.SUCCEEDED:
                sent = self.reports.get((id, record["token"]), [])
                chunks = await self.shard.queue.output(id)
                last = [one.body for one in chunks if one.stamp > int(record["began"])]
                assert last == [report.body for report in sent]


@pytest.mark.timeout(max(120, 10 * ROUNDS))
@pytest.mark.parametrize("part", range(PARTS))
async def test_what_was_told_holds_over_rollbacks(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(recent, "SAFE_SECONDS", 3600.0)
    redis = connect(redis_url, timeout=60)
    try:
        for number in range(part * LIVES, (part + 1) * LIVES):
            life = Life(redis, number)
            try:
                await life.live()
            except BaseException as error:
                error.add_note(f"in the life {number}")
                raise
            finally:
                await life.shard.queue.close()
    finally:
        await redis.aclose()
