"""Writes how attempts ended: many per round trip, buffered while Redis is unavailable."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import structlog

from tandem_shared.backoff import Backoff
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import State
from tandem_shared.queue.batch import Batcher
from tandem_shared.queue.messages import Claimed, Finish
from tandem_shared.queue.queue import Queue
from tandem_worker.runtime.held_leases import Leases
from tandem_worker.runtime.metrics import WorkerMetrics

MAX_UNWRITTEN = 2000  # outcomes; above it, no more jobs are claimed

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

    resend: Callable[[str], Awaitable[int]]

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
                    self._complete(finish)
                    continue
                self._metrics.outcome_written(now - since)
                if answer != "ok":
                    log.warning(
                        "outcome discarded: the attempt had lost its job",
                        job_id=finish.id,
                        outcome=finish.outcome,
                        answer=answer,
                    )
        except Exception:
            log.exception("cannot write outcomes", jobs=[finish.id for finish in outcomes])
            raise
        finally:
            self._settle(settled)
        return answers

    def _complete(self, finish: Finish) -> None:
        """Write the reports that Redis has lost, then the outcome, while the lease is held.

        If they are not kept any more, a success would have a hole in its output: the job is handed
        back instead.
        """

        async def complete() -> None:
            written = 0
            with contextlib.suppress(Unavailable):  # the file store
                written = await self.resend(finish.token)
            if written >= finish.reports or finish.to is not State.SUCCEEDED:
                again = finish._replace(reports=0)
            else:
                log.warning("Redis has lost output: the job is repeated", job_id=finish.id)
                again = Finish(finish.id, finish.token, State.QUEUED, "released")
            self._batch.call((again, time.monotonic()))

        task = asyncio.create_task(complete())
        self._completing.add(task)
        task.add_done_callback(self._completing.discard)

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
        backoff = Backoff()
        while True:
            began = time.monotonic()
            try:
                answers = await self._queue.finish(outcomes)
            except Unavailable as error:
                self._leases.doubtful = True
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
