"""The attempts that run on a worker: started, stopped and recorded."""

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial

import arq.worker
import structlog

from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Claimed, Finish, Held
from tandem_shared.queue.queue import Queue
from tandem_worker.executors.zombies import Zombies
from tandem_worker.runtime.arq_hooks import MAX_HOOK_SECONDS, attempt_with_hooks, has_hooks
from tandem_worker.runtime.held_leases import Leases
from tandem_worker.runtime.metrics import WorkerMetrics
from tandem_worker.runtime.outcomes import Outcomes
from tandem_worker.runtime.prefetch import Prefetch
from tandem_worker.runtime.run import Cause, Run
from tandem_worker.runtime.waiting import wait_first

MAX_CLAIM_JOBS = 200  # a larger claim saves no time per job, and blocks Redis for longer

log = structlog.get_logger("worker")


class Slots:
    """At most `max_jobs` runs at once. A slot that becomes free starts the next prefetched job.

    `shell` is arq's worker, with its limits, counters and hooks. `runs` (by job id) is filled here.
    """

    def __init__(
        self,
        shell: arq.worker.Worker,
        queue: Queue,
        runs: dict[str, Run],
        new_run: Callable[[Claimed], Run],
        *,
        metrics: WorkerMetrics,
        zombies: Zombies,
    ) -> None:
        self.runs, self.metrics, self.zombies = runs, metrics, zombies
        self.started = 0  # stamp of the last attempt that started; they start in order
        self.changed = asyncio.Event()  # there may be room for more jobs
        self.leases = Leases()
        self.outcomes = Outcomes(queue, self.leases, metrics, on_room=self.changed.set)
        self.prefetch = Prefetch(
            shell.max_jobs, queue.lease, shell.loop, self.leases, self.outcomes.put
        )
        self._shell, self._queue, self._new_run = shell, queue, new_run
        self._has_hooks = has_hooks(shell)
        self._idle = asyncio.Event()

    @property
    def free(self) -> int:
        """How many jobs could start at once."""
        return max(0, self._shell.max_jobs - len(self.runs))

    @property
    def running(self) -> int:
        """How many attempts are held."""
        return len(self.runs) + len(self.prefetch)

    @property
    def room(self) -> int:
        """How many jobs may be claimed now."""
        shell = self._shell
        if self.outcomes.full or self.zombies.full or not shell.allow_pick_jobs:
            return 0
        room = min(MAX_CLAIM_JOBS, self.free + self.prefetch.room)
        if shell.burst and shell.max_burst_jobs >= 0:
            room = min(room, shell.max_burst_jobs - self.taken)
        return max(0, room)

    @property
    def taken(self) -> int:
        """How many jobs were claimed so far, less those that were handed back."""
        shell = self._shell
        ended = shell.jobs_complete + shell.jobs_retried + shell.jobs_failed
        return ended + self.running

    def take(self, job: Claimed) -> None:
        """Start a claimed job, or keep it until a slot is free."""
        if self.leases.holds(job):
            return  # a repeated answer to an earlier claim
        if self.free:
            self._start(job)
        else:
            self.prefetch.add(job)

    def _start(self, job: Claimed, waited: float = 0.0) -> None:
        earlier = self.runs.get(job.id)
        if earlier is not None:
            earlier.stop("lost")  # its lease ended unnoticed, and this worker claimed the job again
        run = self.runs[job.id] = self._new_run(job)
        # Redis' clock dates the claim and when the job was due, ours the wait since.
        claimed = run.job.stamp / 1e6
        self.metrics.attempt_started(job.task, claimed - job.due_ms / 1e3 + waited)
        seconds = run.options.timeout + self._queue.grace + self._queue.lease
        if self._has_hooks:
            attempt = attempt_with_hooks(self._shell, run)
            seconds += MAX_HOOK_SECONDS
        else:
            attempt = run.attempt()
        self.leases.hold(job, seconds)
        loop = self._shell.loop
        loop.call_soon(setattr, self, "started", run.job.stamp)  # just before the task's first step
        run.handle = loop.create_task(attempt)
        run.handle.add_done_callback(partial(self._ended, run))

    def _ended(self, run: Run, handle: "asyncio.Task[Finish | None]") -> None:
        if self.runs.get(run.claimed.id) is not run:
            if not handle.cancelled():
                handle.exception()  # retrieved, or asyncio would log it
            self.zombies.stopped(run)
            return
        if handle.cancelled():  # before its first step, or while it reported why it failed
            run.output.abandon()
            finish = run.interrupted()
        elif (error := handle.exception()) is not None:
            log.error(
                "the worker failed outside the task's code", job_id=run.claimed.id, exc_info=error
            )
            finish = run.broken()
        else:
            finish = handle.result()
        self._record(run, finish)
        self._start_next()

    def _start_next(self) -> None:
        waiting = self.prefetch.pop()
        if waiting is not None:
            self._start(waiting.job, self._shell.loop.time() - waiting.since)

    def _record(self, run: Run, finish: Finish | None) -> None:
        """Free the slot and write the outcome; the lease is held until it is written."""
        job, shell = run.claimed, self._shell
        del self.runs[job.id]
        self.changed.set()
        if not self.runs:
            self._idle.set()
        seconds = time.monotonic() - run.started
        self.metrics.attempt_ended(job.task, finish, seconds)
        self.prefetch.observe(seconds)
        if finish is None:
            self.leases.release(job.id, job.token)
            return
        shell.jobs_complete += finish.to is State.SUCCEEDED
        shell.jobs_failed += finish.to is State.FAILED
        shell.jobs_retried += finish.to is State.RETRYING
        self.outcomes.put(finish)

    def stop(self, attempts: Iterable[Held], cause: Cause) -> None:
        """Stop these attempts, whether they run or are prefetched; ignore those that have ended."""
        for one in attempts:
            run = self.runs.get(one.id)
            if run is None or run.claimed.token != one.token:
                self.prefetch.drop(one, cause)
            # Every heartbeat names the job until its code has stopped: cancel once per cause.
            elif run.cause not in (cause, "lost"):
                run.stop(cause)

    def on_heartbeat(self, lost: Iterable[Held], cancelled: Iterable[Held]) -> None:
        """Stop the attempts that the answer to a heartbeat names."""
        self.stop(lost, "lost")
        self.stop(cancelled, "cancel")

    def give_up(self, run: Run) -> None:
        """Free the slot of a run whose code has ignored its cancellation: it is a zombie now."""
        if run.handle is None or run.handle.done():
            return
        id, task = run.claimed.id, run.claimed.task
        self.zombies.left(run, task=task, job_id=id, runs="on the event loop")
        self.zombies.count(run)
        finish = run.give_up()
        if self.runs.get(id) is run:
            self._record(run, finish)
            self._start_next()

    async def idle(self) -> None:
        """Return once nothing runs."""
        while self.runs:
            self._idle.clear()
            await self._idle.wait()

    async def hand_back(self, seconds: float) -> None:
        """Stop everything and hand it back, uncharged; wait at most `seconds` for the code."""
        self.prefetch.hand_back()
        for run in list(self.runs.values()):
            run.stop("shutdown")
        await wait_first(self.idle(), timeout=seconds)
        if self.runs:
            # Whatever that code still reports is rejected.
            log.warning("handing back jobs whose code ignores cancellation", jobs=list(self.runs))
            for run in list(self.runs.values()):
                self._record(run, run.give_up())
