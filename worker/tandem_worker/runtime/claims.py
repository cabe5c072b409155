"""The claim loop: takes jobs when there is room, and otherwise sleeps on its queues' bells."""

import asyncio
import contextlib
import random
import time

import arq.worker
import structlog

from tandem_shared.backoff import Backoff
from tandem_shared.cancellation import cancel_and_wait
from tandem_shared.errors import Unavailable
from tandem_shared.queue.bells import Bells
from tandem_shared.queue.messages import Claim
from tandem_shared.queue.queue import Queue
from tandem_worker.runtime.arq_jobs import ArqJobs
from tandem_worker.runtime.outcomes import released
from tandem_worker.runtime.registration import Registration
from tandem_worker.runtime.slots import Slots
from tandem_worker.runtime.waiting import wait_first

# Longest sleep between two claims, jittered: a bell is a hint that may be lost.
MAX_SLEEP_SECONDS = 4.0
# The same once plain arq clients have enqueued jobs, since they ring no bell.
MAX_ARQ_SLEEP_SECONDS = 2.0
BUSY_SLEEP_SECONDS = 0.05
MAX_BLOCKED_SECONDS = 1.0  # for an attempt to end, while what is due cannot start before that
MAX_BEAT_JOBS = 500  # leases renewed per call

log = structlog.get_logger("worker")


class Claims:
    """Claims jobs for `slots` until `stopping` is set, or arq's burst mode has run everything."""

    def __init__(
        self,
        shell: arq.worker.Worker,
        queue: Queue,
        queues: tuple[str, ...],
        registration: Registration,
        *,
        slots: Slots,
        arq_jobs: ArqJobs,
        stopping: asyncio.Event,
    ) -> None:
        self.lock = asyncio.Lock()  # held during a claim
        self._shell, self._queue, self._queues = shell, queue, queues
        self._registration, self._slots, self._arq_jobs = registration, slots, arq_jobs
        self._stopping = stopping
        self._number = 0  # of the last claim that was answered
        self._unanswered = False  # the last claim got no answer, but may have taken jobs

    async def run(self) -> None:
        """Claim whenever there is room and jobs may be due."""
        bells = self._queue.bells(*self._queues)
        backoff = Backoff()
        try:
            while not self._over():
                if not self._slots.room:
                    self._slots.changed.clear()
                    if not self._slots.room:
                        await self._slots.changed.wait()
                    continue
                try:
                    claim = await self.claim()
                    backoff.reset()
                    if claim is None or (claim.more and claim.jobs):
                        continue
                    if self._burst_is_over(claim):
                        return
                    if not self._over():
                        await self._sleep(bells, claim)
                except Unavailable as error:
                    self._slots.leases.doubtful = True
                    log.warning("Redis is unavailable", during="claim", error=str(error))
                    await wait_first(self._stopping.wait(), timeout=backoff.next())
        finally:
            await bells.close()

    def _over(self) -> bool:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError  # a library may have swallowed it, see cancel_and_wait
        shell = self._shell
        return self._stopping.is_set() or (
            shell.burst and 0 <= shell.max_burst_jobs <= self._slots.taken
        )

    def _burst_is_over(self, claim: Claim) -> bool:
        waiting = claim.more or claim.next_due is not None
        return self._shell.burst and not waiting and not self._slots.runs

    async def _sleep(self, bells: Bells, claim: Claim) -> None:
        if claim.blocked:
            # Its bells would ring at once, for other workers.
            await wait_first(
                self._slots.changed.wait(), self._stopping.wait(), timeout=MAX_BLOCKED_SECONDS
            )
            return
        longest = MAX_ARQ_SLEEP_SECONDS if self._arq_jobs.seen else MAX_SLEEP_SECONDS
        seconds = longest * random.uniform(0.75, 1)
        if claim.next_due is not None:
            seconds = min(seconds, claim.next_due)
        if claim.more or (self._shell.burst and self._slots.runs):
            # Due jobs may not be allowed to start yet, or the burst is about to end.
            seconds = BUSY_SLEEP_SECONDS
        ringing = asyncio.ensure_future(bells.wait(seconds))
        try:
            await wait_first(ringing, self._stopping.wait())
        finally:
            await cancel_and_wait(ringing)

    async def claim(self) -> Claim | None:
        """Claim a batch and start it. None: no room, or the worker had to register again."""
        if (seconds := self._queue.repeats.quiet) > 0:
            await wait_first(self._stopping.wait(), timeout=seconds)
            return None
        async with self.lock:
            room = self._slots.room
            if not room:
                return None
            self._slots.changed.clear()
            if self._slots.leases.doubtful:
                await self._renew()
            began = time.monotonic()
            claim = await self._ask(room)
            self._slots.metrics.observe_batch("claim", time.monotonic() - began, len(claim.jobs))
            if not claim.registered:
                await self._registration.register()
                return None
            self._number += 1
            for job in claim.jobs:
                self._slots.take(job)
        return claim._replace(more=True) if await self._arq_jobs.adopt() else claim

    async def _ask(self, slots: int) -> Claim:
        # The number grows only with an answer: a claim whose answer was lost is repeated, and Redis
        # returns the jobs that it took.
        self._unanswered = True
        claim = await self._queue.claim(
            self._registration.id,
            self._number + 1,
            slots=slots,
            tasks=self._registration.digest,
            queues=self._queues,
            free=self._slots.free,
            running=self._slots.running,
            started=self._slots.started,
        )
        self._unanswered = False
        if claim.settled:
            log.warning("leases of lost workers have ended", leases=claim.settled)
        return claim

    async def _renew(self) -> None:
        """Renew all leases from the event loop, without waiting for the next heartbeat."""
        self._slots.leases.doubtful = False
        held = [(id, token) for id, (token, _) in self._slots.leases.held.items()]
        for start in range(0, len(held), MAX_BEAT_JOBS):
            _, lost, cancelled = await self._queue.beat(
                self._registration.id,
                self._registration.digest,
                held[start : start + MAX_BEAT_JOBS],
                started=self._slots.started,
                zombies=len(self._slots.zombies),
            )
            self._slots.on_heartbeat(lost, cancelled)

    async def recover(self) -> None:
        """Repeat a claim that got no answer, and hand back the jobs that it took."""
        if self._unanswered:
            with contextlib.suppress(Unavailable):
                for job in (await self._ask(0)).jobs:
                    self._slots.outcomes.put(released(job))
