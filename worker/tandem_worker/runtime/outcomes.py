"""Writes how attempts ended: many per round trip, buffered while Redis is unavailable."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import structlog

from tandem_shared.backoff import Backoff, until_available
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import FINAL, State
from tandem_shared.queue.batch import Batcher
from tandem_shared.queue.messages import Claimed, Finish
from tandem_shared.queue.queue import Queue
from tandem_worker.runtime.held_leases import Leases
from tandem_worker.runtime.metrics import WorkerMetrics

MAX_UNWRITTEN = 2000  # outcomes; above it, no more jobs are claimed
# Of final outcomes that are repeated if Redis comes back older: kept bytes, and outcomes per call.
RECENT_BYTES, FINISH_BYTES, REPEATED_OUTCOMES = 32 << 20, 256, 50
MAX_REPEAT_SECONDS = 10.0  # until jobs that Redis does not know are given up

log = structlog.get_logger("worker")


def cancelled(job: Claimed) -> Finish:
    """The outcome of an attempt that a client cancelled."""
    return Finish(job.id, job.token, State.CANCELLED, "cancelled")


def released(job: Claimed) -> Finish:
    """The outcome of a job that is handed back to the queue, uncharged."""
    return Finish(job.id, job.token, State.QUEUED, "released")


class Outcomes:
    """Writes outcomes. A job keeps its lease until its outcome is written.

    `on_room` is called when the unwritten ones fall below MAX_UNWRITTEN: claiming may continue.
    `resend`, set once there are reports, is `Outbox.resend`.
    """

    resend: Callable[[str, str], Awaitable[int]]

    def __init__(
        self,
        queue: Queue,
        leases: Leases,
        metrics: WorkerMetrics,
        *,
        on_room: Callable[[], None],
    ) -> None:
        self.unwritten = 0
        self._all_written = asyncio.Event()
        self._queue, self._leases, self._metrics = queue, leases, metrics
        self._on_room = on_room
        self._completing: set[asyncio.Task[None]] = set()
        self._recent = queue.repeats.keep(RECENT_BYTES)
        queue.repeats.on_restart(self._repeat)
        self._batch = Batcher(
            self._write, size=lambda item: len(item[0].body) + 256, max_waiting=1 << 20
        )

    @property
    def full(self) -> bool:
        """Whether too many are unwritten for more jobs to be claimed."""
        return self.unwritten >= MAX_UNWRITTEN

    def put(self, finish: Finish) -> None:
        """Write this outcome, however long that takes."""
        self.unwritten += 1
        self._batch.call((finish, time.monotonic()))

    async def all_written(self) -> None:
        """Return once every outcome is written."""
        while self.unwritten:
            self._all_written.clear()
            await self._all_written.wait()

    async def _write(self, load: list[tuple[Finish, float]]) -> list[str]:
        # Do the bookkeeping for the whole batch here: a callback per outcome would take longer than
        # everything else.
        outcomes = [finish for finish, _ in load]
        answers: list[str] = []
        settled = outcomes
        try:
            answers = await self._finish(outcomes)
            now = time.monotonic()
            for (finish, since), answer in zip(load, answers, strict=True):
                if answer == "behind":
                    settled = [one for one in settled if one is not finish]
                    self._start(self._complete(finish))
                    continue
                self._metrics.outcome_written(now - since)
                # A cancelled job may be settled by anybody once its grace is over.
                if answer in ("lost", "gone") and finish.to is not State.CANCELLED:
                    log.warning(
                        "outcome discarded: the attempt had lost its job",
                        job_id=finish.id,
                        outcome=finish.outcome,
                        answer=answer,
                    )
            self._keep(outcomes, answers)
        except Exception:
            log.exception("cannot write outcomes", jobs=[finish.id for finish in outcomes])
            raise
        finally:
            self._settle(settled)
        return answers

    def _keep(self, outcomes: Sequence[Finish], answers: Sequence[str]) -> None:
        """Keep what Redis has accepted, until it is safe."""
        size = sum([len(finish.body) for finish in outcomes]) + FINISH_BYTES * len(outcomes)
        self._recent.add([*zip(outcomes, answers, strict=True)], size)

    def _final(self) -> list[Finish]:
        """The outcomes of the last seconds that ended their jobs."""
        found: list[Finish] = []
        for finish, answer in self._recent:
            if answer == State.CANCELLED:
                found.append(Finish(finish.id, finish.token, State.CANCELLED, "cancelled"))
            # 'failed' is the answer to a retry that was not allowed.
            elif answer == State.FAILED or (answer == "ok" and finish.to in FINAL):
                found.append(finish)
        return found

    async def _repeat(self) -> None:
        """Write again how attempts ended in the last seconds: Redis may be older than that now."""
        left, backoff, until = (
            self._final(),
            Backoff(max_seconds=0.3),
            time.monotonic() + MAX_REPEAT_SECONDS,
        )
        while left:
            gone: list[Finish] = []
            for start in range(0, len(left), REPEATED_OUTCOMES):
                some = left[start : start + REPEATED_OUTCOMES]
                finish = partial(self._queue.finish, some, accepted=True)
                answers = await until_available(finish)
                for one, answer in zip(some, answers, strict=True):
                    if answer == "behind":
                        self.unwritten += 1
                        self._start(self._complete(one))
                    elif answer == "gone":
                        gone.append(one)
            if not gone or time.monotonic() > until:
                break
            left = gone  # an API may be about to submit them again
            await backoff.sleep()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._completing.add(task)
        task.add_done_callback(self._completing.discard)

    async def _complete(self, finish: Finish) -> None:
        """Write the reports that Redis has lost, then the outcome, while the lease is held.

        If they are not kept any more, a success would have a hole in its output: the job is handed
        back instead.
        """
        written = 0
        with contextlib.suppress(Unavailable):  # the file store
            written = await self.resend(finish.id, finish.token)
        if written >= finish.reports or finish.to is not State.SUCCEEDED:
            again = finish._replace(reports=0)
        else:
            log.warning("Redis has lost output: the job is repeated", job_id=finish.id)
            again = Finish(finish.id, finish.token, State.QUEUED, "released")
        self._batch.call((again, time.monotonic()))

    def _settle(self, outcomes: list[Finish]) -> None:
        """Release the leases, whether the outcomes are written or never will be."""
        for finish in outcomes:
            self._leases.release(finish.id, finish.token)
        was_full = self.full
        self.unwritten -= len(outcomes)
        if was_full and not self.full:
            self._on_room()
        if not self.unwritten:
            self._all_written.set()

    async def _finish(self, outcomes: list[Finish]) -> list[str]:
        """Repeat the call until Redis answers. The token decides whether a late outcome counts."""
        backoff, again = Backoff(), False
        while True:
            began = time.monotonic()
            try:
                answers = await self._queue.finish(outcomes, again=again)
            except Unavailable as error:
                self._leases.doubtful = again = True
                log.warning(
                    "Redis is unavailable",
                    during="finish",
                    outcomes=len(outcomes),
                    error=str(error),
                )
                await backoff.sleep()
            else:
                self._metrics.observe_batch("finish", time.monotonic() - began, len(outcomes))
                return answers
