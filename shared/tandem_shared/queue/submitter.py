"""Submitting jobs: many per round trip, and again if Redis comes back without them."""

from collections.abc import Callable, Sequence
from functools import partial

import structlog
from msgspec.structs import replace

from tandem_shared.backoff import until_available
from tandem_shared.errors import TandemError
from tandem_shared.jobs.record import Submission
from tandem_shared.queue.batch import Batcher
from tandem_shared.queue.messages import Refusal, Submitted, parse_submitted, submit_args
from tandem_shared.queue.recent import Repeats
from tandem_shared.queue.scripts import MAX_CALL_BYTES, MAX_CALL_JOBS, Scripts

# Of what is repeated if Redis comes back older: kept bytes of each kind, and jobs per call.
RECENT_BYTES, ID_BYTES, REPEATED_JOBS = 32 << 20, 200, 100
# Then they do not start before the worker that may have ended them has said so again.
REPEATED_DELAY_SECONDS = 1.0

log = structlog.get_logger()


def _call_bytes(job: Submission) -> int:
    return len(job.payload) + 512


class Submitter:
    """What clients do to the jobs of one shard, kept until it is safe.

    `backlog` is the number of unfinished jobs at which a queue accepts no more, 0 for no limit.
    """

    def __init__(
        self,
        scripts: Scripts,
        repeats: Repeats,
        *,
        backlog: int,
        on_batch: Callable[[int, float], None] | None,
    ) -> None:
        self._scripts, self._backlog = scripts, backlog
        self._batch = Batcher(self._submit, size=_call_bytes, on_batch=on_batch)
        repeats.on_restart(self._repeat)
        self._submitted = repeats.keep(RECENT_BYTES)  # (Submission, its answer)
        self._cancelled = repeats.keep(RECENT_BYTES)  # (id, tenant)
        self._forgotten = repeats.keep(RECENT_BYTES)  # ids

    def cancelled(self, id: str, tenant: str) -> None:
        """Keeps that this process cancelled the job."""
        self._cancelled.add(((id, tenant),), ID_BYTES)

    def forgotten(self, id: str) -> None:
        """Keeps that this process deleted the job."""
        self._forgotten.add((id,), ID_BYTES)

    async def submit(self, job: Submission) -> Submitted:
        """Enqueues one job; concurrent calls share a round trip. Raises KeyReused and Full."""
        answer = await self._batch.call(job)
        if isinstance(answer, TandemError):
            raise answer
        return answer

    async def submit_many(self, jobs: Sequence[Submission]) -> list[Submitted | Refusal]:
        """Enqueues any number of jobs, in order; a refused one has the reason in its place."""
        answers: list[Submitted | Refusal] = []
        batch: list[Submission] = []
        size = 0
        for job in jobs:
            size += _call_bytes(job)
            if batch and (len(batch) == MAX_CALL_JOBS or size > MAX_CALL_BYTES):
                answers += await self._submit(batch)
                batch, size = [], _call_bytes(job)
            batch.append(job)
        if batch:
            answers += await self._submit(batch)
        return answers

    async def _submit(self, jobs: Sequence[Submission]) -> list[Submitted | Refusal]:
        return await self._enter(jobs, self._backlog)

    async def _enter(self, jobs: Sequence[Submission], backlog: int) -> list[Submitted | Refusal]:
        reply = await self._scripts.run("submit", backlog, *submit_args(jobs))
        answers = parse_submitted(reply, jobs)
        pairs = [*zip(jobs, answers, strict=True)]
        self._submitted.add(pairs, sum([_call_bytes(job) for job in jobs]))
        return answers

    async def _repeat(self) -> None:
        """Submits and cancels again what Redis accepted in the last seconds: it may be older now.

        A job under an idempotency key gets the id again that its client got.
        """
        gone = set(self._forgotten)
        jobs = [
            replace(job, id=answer.id, delay=max(job.delay or 0.0, REPEATED_DELAY_SECONDS))
            for job, answer in self._submitted
            if isinstance(answer, Submitted) and answer.id not in gone
        ]
        for start in range(0, len(jobs), REPEATED_JOBS):
            some = jobs[start : start + REPEATED_JOBS]
            answers = await until_available(partial(self._enter, some, 0))
            pairs = zip(some, answers, strict=True)
            lost = [
                job.id
                for job, answer in pairs
                if not isinstance(answer, Submitted) or answer.id != job.id
            ]
            if lost:
                log.warning("Redis has lost jobs, and refuses them now", jobs=lost)
        for id, tenant in dict.fromkeys(self._cancelled):
            if id not in gone:
                await until_available(partial(self._scripts.run, "cancel", id, tenant))
