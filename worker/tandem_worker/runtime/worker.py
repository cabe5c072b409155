"""The worker: arq gives the process shell, hooks, cron, burst and signals; loop, claim and run are ours.

claims:  sleep on the bells → claim a batch → a task a job ─▶ run.py ─▶ outcomes, written many a
         round trip
news:   cancels, lost leases, jobs that only this worker can run (news.py)
"""

import asyncio
import contextlib
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from importlib.metadata import version
from signal import Signals
from typing import Any

import arq.worker
import structlog
from arq.connections import ArqRedis

from tandem_shared import catalogue
from tandem_shared.backoff import Backoff
from tandem_shared.cancellation import cancel_and_wait
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import State
from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.queue.connections import pool
from tandem_shared.queue.messages import Claim, Claimed, Finish, WorkerInfo
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import Settings
from tandem_worker.executors.pools import Pools, open_pools
from tandem_worker.resources import Resources
from tandem_worker.runtime.arq_hooks import LONGEST as HOOK
from tandem_worker.runtime.arq_hooks import Hooks
from tandem_worker.runtime.arq_jobs import Adoption, cron_task, deserialize, serialize, stand_in
from tandem_worker.runtime.control import Calls, News
from tandem_worker.runtime.deadlines import Deadlines
from tandem_worker.runtime.ledger import Projection
from tandem_worker.runtime.metrics import Tally, serving
from tandem_worker.runtime.outcomes import Outcomes
from tandem_worker.runtime.output import Outbox
from tandem_worker.runtime.prefetch import Ahead
from tandem_worker.runtime.run import Run
from tandem_worker.runtime.waiting import first
from tandem_worker.task import Task

BLOCK = 4.0  # seconds of sleep at most, jittered: bells are only hints
FOREIGN = 2.0  # the same where clients of plain arq enqueue, who ring none
MOST = 200  # jobs a claim: with more each takes no less time, and Redis does nothing else meanwhile

log = structlog.get_logger("worker")


class Worker(arq.worker.Worker):
    """One process of workers' side. Everything that arq's own Worker takes besides is passed on to it.

    `resources` opens what tasks use; it is entered before the first claim and left after the last
    job.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        tasks: Mapping[str, Task],
        resources: Callable[[], contextlib.AbstractAsyncContextManager[Resources]],
        **shell: Any,
    ) -> None:
        self.id = (
            f"{socket.gethostname().partition('.')[0][:32]}-{os.getpid()}-{secrets.token_hex(4)}"
        )
        self.settings = settings
        redis = ArqRedis(
            pool(settings.redis_url), job_serializer=serialize, job_deserializer=deserialize
        )
        super().__init__(
            functions=[arq.worker.func(stand_in, name=name) for name in tasks],
            redis_pool=redis,
            max_jobs=settings.concurrency,
            job_completion_wait=max(1, round(settings.drain)),
            job_serializer=serialize,
            job_deserializer=deserialize,
            health_check_interval=15,
            log_results=False,
            **shell,
        )
        self.queue = Queue(redis, lease=settings.lease, keep=settings.keep)
        # Cron functions are arq's own: known to the claim, but nobody else's business.
        self.known = {**tasks, **{job.name: cron_task(job, self.ctx) for job in self.cron_jobs}}
        self.entries = [task.entry for task in tasks.values()]
        self.hidden = [task.entry for name, task in self.known.items() if name not in tasks]
        self.digest = catalogue.digest([*self.entries, *self.hidden])
        self.runs: dict[str, Run] = {}
        self.tally = Tally(self.runs, self.max_jobs)
        self.ready = asyncio.Event()
        self._resources = resources
        self._opened: Resources | None = None
        self._pools: Pools  # opened with the resources
        self._outbox: Outbox  # made when the resources are open
        self._hooks = Hooks(self)
        self._deadlines = Deadlines(self.loop)
        self._claim_number = 0
        self._asked = False  # a claim whose answer has not come (yet)
        self._claiming = asyncio.Lock()
        self._changed = asyncio.Event()  # a slot is free, or the end has come
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()  # hand back now
        self._started_at = time.time()
        self._ahead: Ahead  # made when it is known for what the heart beats
        unstarted = lambda one, cause: self._ahead.stop(one, cause)  # noqa: E731, PLW0108 - see above
        calls = Calls(self._claim, self._register, unstarted)
        url = settings.redis_url
        self.news = News(
            self.queue, url, self.runs, self._claiming, calls, worker=self.id, tasks=self.digest
        )
        held, away, room = self.news.heart.held, self.news.distrust, self._changed.set
        self._outcomes = Outcomes(self.queue, held, away=away, room=room, tally=self.tally)
        self._ahead = Ahead(self.max_jobs, self.loop, held, self._outcomes.put)
        crons = {job.name for job in self.cron_jobs}
        self._adoption = Adoption(
            self.queue, {name: task.entry for name, task in self.known.items()}, crons
        )

    # ------------------------------------------------------------------------------------ the shell

    async def main(self) -> None:
        """From registration to retirement; arq's `run` and `async_run` call it. A worker runs once."""
        if self._opened is not None:
            raise RuntimeError("this worker has been run: make another one")
        self.ctx["redis"] = self.pool
        async with AsyncExitStack() as stack:
            stack.enter_context(
                serving(self.tally, self.settings.metrics_host, self.settings.metrics_port)
            )
            self._pools = await stack.enter_async_context(open_pools(self.settings))
            self._opened = await stack.enter_async_context(self._resources())
            limit, spent = self.settings.max_output, self.tally.spent
            self._outbox = Outbox(self.queue, self._opened.files, limit=limit, spent=spent)
            ledger = await stack.enter_async_context(open_ledger(self.settings))
            projection = Projection(
                self.queue.events,
                ledger,
                self.settings,
                consumer=self.id,
                busy=lambda: bool(self.runs),
                spent=spent,
            )
            if self.on_startup:
                await self.on_startup(self.ctx)
            if not await self._register():
                return
            self.news.heart.start()
            stack.push_async_callback(self._end)
            stack.push_async_callback(cancel_and_wait, self._part(self.news.listen(), "news"))
            stack.push_async_callback(cancel_and_wait, self._part(projection.run(), "ledger"))
            if self.cron_jobs:
                stack.push_async_callback(
                    cancel_and_wait, self._part(self._adoption.tick(self.heart_beat), "crons")
                )
            log.info(
                "worker is ready",
                worker=self.id,
                queues=",".join(self.settings.queues),
                tasks=len(self.known),
            )
            self.ready.set()
            await self._loop()
            await self._drain()

    def _part(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """A part of the worker as a task of its own. Should it fail, the worker drains, and ends with its error."""

        def over(task: "asyncio.Task[None]") -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a part of the worker failed", part=name, error=type(error).__name__)
                self._stopping.set()
                self._changed.set()

        task = asyncio.create_task(work, name=name)
        task.add_done_callback(over)
        return task

    async def _register(self) -> bool:
        info = WorkerInfo(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=self.settings.queues,
            concurrency=self.max_jobs,
            version=version("tandem-jobs"),
            started_at=self._started_at,
        )
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                await self.queue.register(info, self.entries, self.hidden)
            except Unavailable as error:
                log.warning("Redis is away", during="register", error=str(error))
                await first(self._stopping.wait(), timeout=backoff.next())
            else:
                return True
        return False

    def handle_sig(self, signum: Signals) -> None:
        """The first signal drains, a second one hands back at once."""
        if self._stopping.is_set():
            self._hurry.set()
        else:
            log.info(
                "draining",
                signal=Signals(signum).name,
                running=len(self.runs),
                seconds=self.settings.drain,
            )
        self._stopping.set()
        self._changed.set()
        if self.on_stop:
            self.on_stop(signum)

    handle_sig_wait_for_completion = handle_sig

    async def _drain(self) -> None:
        """Lets the running jobs finish, after a signal for `drain` seconds at most."""
        self.allow_pick_jobs = False
        self._ahead.hand_back()
        if self.runs:
            quiet = asyncio.ensure_future(self._idle())
            await first(quiet, self.news.say_draining(), timeout=1)
            await first(
                quiet, self._stopping.wait()
            )  # the last jobs of a burst take the time they need
            await first(quiet, self._hurry.wait(), timeout=self.settings.drain)
            quiet.cancel()

    async def _idle(self) -> None:
        while self.runs:
            await asyncio.wait([run.handle for run in self.runs.values() if run.handle is not None])
            await asyncio.sleep(0)

    async def _end(self) -> None:
        """Hands back what still runs, uncharged, and writes the last outcomes, within the lease; then it is gone."""
        self._stopping.set()
        self.allow_pick_jobs = False
        self._ahead.hand_back()
        for run in list(self.runs.values()):
            run.stop("shutdown")
        await first(self._idle(), timeout=self.queue.grace)
        if self.runs:
            # Code that does not obey: its job is handed back all the same, and what it still says
            # is refused.
            log.warning("handing back jobs whose code goes on", jobs=list(self.runs))
            for run in list(self.runs.values()):
                run.output.abandon()
                self._record(run, None if run.cause == "lost" else run.handed_back())
        await self._recover()
        await first(self._outcomes.all_written(), timeout=self.settings.lease)
        await self.news.end()
        with contextlib.suppress(Unavailable):
            await self.queue.retire(self.id)
        await self.queue.close()
        log.info(
            "worker has ended",
            complete=self.jobs_complete,
            failed=self.jobs_failed,
            retried=self.jobs_retried,
        )

    async def _recover(self) -> None:
        """A claim whose answer was lost may have taken jobs: they are asked for once more, and handed back."""
        if self._asked:
            with contextlib.suppress(Unavailable):
                claim = await self.queue.claim(
                    self.id,
                    self._claim_number + 1,
                    slots=0,
                    tasks=self.digest,
                    queues=self.settings.queues,
                )
                for job in claim.jobs:
                    self._outcomes.put(Finish(job.id, job.token, State.QUEUED, "released"))

    async def close(self) -> None:
        """Ends what arq opened. A worker that still runs is ended before, as by a signal."""
        if self.main_task is not None and not self.main_task.done():
            self.handle_sig(Signals.SIGUSR1)
            await asyncio.wait({self.main_task})
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                if self.on_shutdown:
                    await self.on_shutdown(self.ctx)
            finally:
                await pool.aclose(close_connection_pool=True)

    # ------------------------------------------------------------------------------------- the loop

    async def _loop(self) -> None:
        """Claims whenever there is room and may be something; sleeps on the bells otherwise."""
        bells = self.queue.bells(*self.settings.queues)
        backoff = Backoff()
        try:
            while not self._over():
                if not self._room():
                    self._changed.clear()
                    if not self._room():
                        await self._changed.wait()
                    continue
                try:
                    claim = await self._claim()
                    backoff.reset()
                    if claim is None or (claim.more and claim.jobs):
                        continue
                    if (
                        self.burst
                        and not self.runs
                        and claim.next_due is None
                        and not (claim.more or claim.arq_jobs)
                    ):
                        return
                    if not self._over():
                        await self._sleep(bells, claim)
                except Unavailable as error:
                    self.news.distrust()
                    log.warning("Redis is away", during="claim", error=str(error))
                    await first(self._stopping.wait(), timeout=backoff.next())
        finally:
            await bells.close()

    def _room(self) -> int:
        """Slots for which jobs may be claimed now."""
        if self._outcomes.full or not self.allow_pick_jobs:
            return 0
        free = min(MOST, self.max_jobs - len(self.runs) + self._ahead.room)
        if self.burst and self.max_burst_jobs >= 0:
            free = min(free, self.max_burst_jobs - self._jobs_started())
        return max(0, free)

    def _over(self) -> bool:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError  # which may have been swallowed, see `cancel_and_wait`
        return self._stopping.is_set() or (
            self.burst and 0 <= self.max_burst_jobs <= self._jobs_started()
        )

    def _jobs_started(self) -> int:
        return (
            self.jobs_complete
            + self.jobs_retried
            + self.jobs_failed
            + len(self.runs)
            + len(self._ahead)
        )

    async def _sleep(self, bells: Any, claim: Claim) -> None:
        block = (FOREIGN if self._adoption.needed else BLOCK) * random.uniform(0.75, 1)
        if claim.next_due is not None:
            block = min(block, claim.next_due)
        if claim.more or (self.burst and self.runs):
            block = 0.05  # what is due may not run here, or the burst is about to end
        ringing = asyncio.ensure_future(bells.wait(block))
        try:
            await first(ringing, self._stopping.wait())
        finally:
            await cancel_and_wait(ringing)

    async def _claim(self) -> Claim | None:
        """Takes a batch and starts it; None: the worker was unknown and is registered again."""
        async with self._claiming:
            slots = self._room()
            if not slots:
                return None
            if self.news.doubt:
                await self.news.beat()
            self._asked, began = True, time.monotonic()
            # The number grows only once an answer has come: a lost one is asked for again.
            claim = await self.queue.claim(
                self.id,
                self._claim_number + 1,
                slots=slots,
                tasks=self.digest,
                queues=self.settings.queues,
            )
            self._asked = False
            self.tally.spent("claim", time.monotonic() - began, len(claim.jobs))
            if not claim.registered:
                await self._register()
                return None
            self._claim_number += 1
            for claimed in claim.jobs:
                self._take(claimed)
        if claim.arq_jobs:
            claim = claim._replace(arq_jobs=await self._adoption.adopt() > 0)
        return claim

    def _take(self, claimed: Claimed) -> None:
        before = self.news.heart.held.get(claimed.id)
        if before is not None and before[0] == claimed.token:
            return  # an earlier answer brought it already
        if len(self.runs) < self.max_jobs:
            self._start(claimed)
        else:
            self._ahead.add(claimed, self.settings.lease)

    def _start(self, claimed: Claimed, waited: float = 0.0) -> None:
        before = self.runs.get(claimed.id)
        if before is not None:
            before.stop("lost")  # its lease ended unseen, and the job came back here
        assert self._opened is not None, "claims are made between opening and closing"  # noqa: S101 - narrows the type
        task, grace = self.known[claimed.task], self.queue.grace
        run = Run(
            claimed,
            task,
            self._outbox,
            self._opened,
            self._pools,
            queue=self.queue,
            grace=grace,
            deadlines=self._deadlines,
        )
        self.runs[claimed.id] = run
        # Both on the clock of Redis: when it was claimed, and when it could have been.
        self.tally.started(claimed.task, run.job.stamp / 1e6 - claimed.due_ms / 1e3 + waited)
        # Until when it is beaten for: code that cannot be stopped must not keep its job for ever.
        hooks = HOOK if self._hooks else 0.0
        until = time.monotonic() + hooks + run.options.timeout + grace + self.settings.lease
        self.news.heart.held[claimed.id] = (claimed.token, until)
        run.handle = self.loop.create_task(
            self._hooks.attempt(run) if self._hooks else run.attempt()
        )
        run.handle.add_done_callback(lambda handle: self._finished(run, handle))

    def _finished(self, run: Run, handle: "asyncio.Task[Finish | None]") -> None:
        if self.runs.get(run.claimed.id) is run:
            if handle.cancelled():  # before its first step, or while it was saying why it failed
                run.output.abandon()
                finish = run.interrupted()
            elif (error := handle.exception()) is not None:
                log.error("a run failed outside of its task", job_id=run.claimed.id, exc_info=error)
                finish = run.broken()
            else:
                finish = handle.result()
            self._record(run, finish)

    # --------------------------------------------------------------------------------- the outcomes

    def _record(self, run: Run, finish: Finish | None) -> None:
        """Frees the slot and has the outcome written; the lease is kept until it is."""
        del self.runs[run.claimed.id]
        self._changed.set()
        ran = time.time() - run.started
        self.tally.ended(run.claimed.task, finish, ran)
        self._ahead.ended(ran)
        if finish is None:
            self._outcomes.let_go(run.claimed.id, run.claimed.token)
        else:
            self.jobs_complete += finish.to is State.SUCCEEDED
            self.jobs_failed += finish.to is State.FAILED
            self.jobs_retried += finish.to is State.RETRYING
            self._outcomes.put(finish)
        if (waiting := self._ahead.next()) is not None:
            self._start(waiting.claimed, self.loop.time() - waiting.since)
