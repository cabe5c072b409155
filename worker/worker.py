"""The worker: arq gives the process shell, hooks, cron, burst and signals; loop, claim and run are ours.

claims:  sleep on the bells → claim a batch → a task a job ─▶ run.py ─▶ outcomes, written many a round trip
heart:   a thread that keeps the leases (shared/queue/heart.py)
own bell: cancels, and jobs that only this worker can run
"""

import asyncio
import contextlib
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from importlib.metadata import version
from signal import Signals
from typing import Any

import arq.worker
import structlog
from arq.connections import ArqRedis

from shared import catalogue
from shared.errors import Unavailable
from shared.jobs import State
from shared.queue import Claim, Claimed, Finish, Heart, Queue, WorkerInfo, pool
from shared.settings import Settings
from worker.adoption import Adoption, cron_task, deserialize, serialize
from worker.outcomes import Outcomes
from worker.output import Outbox
from worker.resources import Resources
from worker.run import Cause, Run
from worker.task import Task

BLOCK = 2.0  # seconds of sleep at most, jittered: bells are only hints

log = structlog.get_logger("worker")


class Worker(arq.worker.Worker):
    """One process of workers' side. Everything that arq's own Worker takes besides is passed on to it.

    `resources` opens what tasks use; it is entered before the first claim and left after the last job.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        tasks: Mapping[str, Task],
        resources: Callable[[], contextlib.AbstractAsyncContextManager[Resources]],
        **shell: Any,
    ) -> None:
        self.id = f"{socket.gethostname().partition('.')[0][:32]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.settings = settings
        redis = ArqRedis(pool(settings.redis_url), job_serializer=serialize, job_deserializer=deserialize)
        super().__init__(
            functions=[arq.worker.func(_adopted, name=name) for name in tasks],
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
        self.ready = asyncio.Event()
        self._resources = resources
        self._opened: Resources | None = None
        self._outbox = Outbox(self.queue)
        self._claim_number = 0
        self._claiming = asyncio.Lock()
        self._changed = asyncio.Event()  # a slot is free, or the end has come
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()  # hand back now
        self._doubt = False  # after any fault of the connection: beat before claiming
        self._started_at = time.time()
        self._heart = Heart(
            settings.redis_url,
            self.queue.prefix,
            worker=self.id,
            catalogue=self.digest,
            lease=settings.lease,
            on_beat=self._from_thread(self._beaten),
            on_unknown=self._from_thread(self._forgotten),
        )
        self._outcomes = Outcomes(self.queue, self._heart.held, away=self._away, room=self._changed.set)
        self._adoption = Adoption(self.queue, {name: task.entry for name, task in self.known.items()})

    def _away(self) -> None:
        self._doubt = True

    def _from_thread(self, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it what the news were about
                self.loop.call_soon_threadsafe(function, *args)

        return call

    # ---------------------------------------------------------------------------------------------------- the shell

    async def main(self) -> None:
        """From registration to retirement; arq's `run` and `async_run` call it."""
        self.ctx["redis"] = self.pool
        async with AsyncExitStack() as stack:
            self._opened = await stack.enter_async_context(self._resources())
            if self.on_startup:
                await self.on_startup(self.ctx)
            if not await self._register():
                return
            self._heart.start()
            stack.push_async_callback(self._end)
            listener = asyncio.create_task(self._listen(), name="own bell")
            stack.push_async_callback(_ended, listener)
            if self.cron_jobs:
                crons = asyncio.create_task(self._crons(), name="crons")
                stack.push_async_callback(_ended, crons)
            log.info("worker is ready", worker=self.id, queues=",".join(self.settings.queues), tasks=len(self.known))
            self.ready.set()
            await self._loop()
            await self._drain()

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
        pause = 0.1
        while not self._stopping.is_set():
            try:
                await self.queue.register(info, self.entries, self.hidden)
            except Unavailable as error:
                log.warning("Redis is away", during="register", error=str(error))
                await _first(self._stopping.wait(), timeout=pause * random.uniform(0.5, 1))
                pause = min(2 * pause, 2.0)
            else:
                return True
        return False

    def handle_sig(self, signum: Signals) -> None:
        """The first signal drains, a second one hands back at once."""
        if self._stopping.is_set():
            self._hurry.set()
        else:
            log.info("draining", signal=Signals(signum).name, running=len(self.runs), seconds=self.settings.drain)
        self._stopping.set()
        self._changed.set()
        if self.on_stop:
            self.on_stop(signum)

    handle_sig_wait_for_completion = handle_sig

    async def _drain(self) -> None:
        """Lets the running jobs finish for a while, then hands the rest back, uncharged."""
        self.allow_pick_jobs = False
        self._heart.draining = True
        if self.runs:
            with contextlib.suppress(Unavailable):
                await self.queue.beat(self.id, self.digest, [], draining=True)
            quiet = asyncio.ensure_future(self._idle())
            await _first(quiet, self._hurry.wait(), timeout=self.settings.drain if self._stopping.is_set() else None)
            quiet.cancel()
        for run in list(self.runs.values()):
            run.stop("shutdown")
        await _first(self._idle(), timeout=self.queue.grace)
        if self.runs:
            # Code that does not obey: its job is handed back all the same, and what it still says is refused.
            log.warning("handing back jobs whose code goes on", jobs=list(self.runs))
            for run in list(self.runs.values()):
                self._record(run, Finish(run.claimed.id, run.claimed.token, State.QUEUED, "released"))

    async def _idle(self) -> None:
        while self.runs:
            await asyncio.wait([run.handle for run in self.runs.values() if run.handle is not None])
            await asyncio.sleep(0)

    async def _end(self) -> None:
        """The last outcomes are written, within the lease; then the worker is gone."""
        self._stopping.set()
        for run in list(self.runs.values()):  # the loop was cancelled rather than drained
            run.stop("shutdown")
        await _first(self._idle(), timeout=self.queue.grace)
        await _first(self._all_written(), timeout=self.settings.lease)
        self._heart.stop()
        with contextlib.suppress(Unavailable):
            await self.queue.retire(self.id)
        await self.queue.close()
        log.info("worker has ended", complete=self.jobs_complete, failed=self.jobs_failed, retried=self.jobs_retried)

    async def _all_written(self) -> None:
        while self._outcomes.unwritten:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Ends what arq opened; `main` has ended all else."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                if self.on_shutdown:
                    await self.on_shutdown(self.ctx)
            finally:
                await pool.aclose(close_connection_pool=True)

    # ------------------------------------------------------------------------------------------------------ the loop

    async def _loop(self) -> None:
        """Claims whenever there is room and may be something; sleeps on the bells otherwise."""
        bells = self.queue.bells(*self.settings.queues)
        pause = 0.05
        try:
            while not self._stopping.is_set() and not self._burst_over():
                if not self._room():
                    self._changed.clear()
                    if not self._room():
                        await self._changed.wait()
                    continue
                try:
                    claim = await self._claim()
                    pause = 0.05
                    if claim is None or (claim.more and claim.jobs):
                        continue
                    if self.burst and not claim.more and not claim.foreign and claim.next_due is None and not self.runs:
                        return
                    await self._sleep(bells, claim)
                except Unavailable as error:
                    self._doubt = True
                    log.warning("Redis is away", during="claim", error=str(error))
                    await _first(self._stopping.wait(), timeout=pause * random.uniform(0.5, 1))
                    pause = min(2 * pause, 2.0)
        finally:
            await bells.close()

    def _room(self) -> int:
        """Slots for which jobs may be claimed now."""
        if self._outcomes.full:
            return 0
        free = self.max_jobs - len(self.runs)
        if self.burst and self.max_burst_jobs >= 0:
            free = min(free, self.max_burst_jobs - self._jobs_started())
        return max(0, free)

    def _burst_over(self) -> bool:
        return self.burst and 0 <= self.max_burst_jobs <= self._jobs_started()

    def _jobs_started(self) -> int:
        return self.jobs_complete + self.jobs_retried + self.jobs_failed + len(self.runs)

    async def _sleep(self, bells: Any, claim: Claim) -> None:
        block = BLOCK * random.uniform(0.75, 1)
        if claim.next_due is not None:
            block = min(block, claim.next_due)
        if claim.more or (self.burst and self.runs):
            block = 0.05  # what is due may not run here, or the burst is about to end
        ringing = asyncio.ensure_future(bells.wait(block))
        try:
            await _first(ringing, self._stopping.wait())
        finally:
            if not ringing.done():
                ringing.cancel()
                await asyncio.wait({ringing})
        if not ringing.cancelled():
            ringing.result()

    async def _claim(self) -> Claim | None:
        """Takes a batch and starts it; None: the worker was unknown and is registered again."""
        async with self._claiming:
            slots = self._room()
            if not slots or not self.allow_pick_jobs:
                return None
            if self._doubt:
                await self._beat()
            # The number grows only once an answer has come: a lost one is asked for again.
            claim = await self.queue.claim(
                self.id, self._claim_number + 1, slots=slots, tasks=self.digest, queues=self.settings.queues
            )
            if not claim.known:
                await self._register()
                return None
            self._claim_number += 1
            for claimed in claim.jobs:
                self._start(claimed)
        if claim.foreign:
            await self._adoption.adopt()
        return claim

    def _start(self, claimed: Claimed) -> None:
        before = self.runs.get(claimed.id)
        if before is not None and before.claimed.token == claimed.token:
            return  # an earlier answer brought it already
        if before is not None:
            before.stop("lost")  # its lease ended unseen, and the job came back here
        assert self._opened is not None, "claims are made between opening and closing"  # noqa: S101 - narrows the type
        run = Run(claimed, self.known[claimed.task], self._outbox, self._opened, self.queue.get)
        self.runs[claimed.id] = run
        # Until when it is beaten for: code that cannot be stopped must not keep its job for ever.
        until = time.monotonic() + run.options.timeout + self.queue.grace + self.settings.lease
        self._heart.held[claimed.id] = (claimed.token, until)
        run.handle = self.loop.create_task(self._attempt(run) if self._hooked else run.attempt())
        run.handle.add_done_callback(lambda handle: self._finished(run, handle))

    @property
    def _hooked(self) -> bool:
        return bool(self.on_job_start or self.on_job_end or self.after_job_end)

    async def _attempt(self, run: Run) -> Finish | None:
        """With arq's hooks around it; one that fails is told, and ends neither the job nor the worker."""
        ctx = {
            **self.ctx,
            "job_id": run.claimed.id,
            "job_try": run.claimed.attempt,
            "enqueue_time": None,
            "score": run.job.stamp // 1000,
        }
        await self._hook(self.on_job_start, ctx)
        finish = await run.attempt()
        await self._hook(self.on_job_end, ctx)
        await self._hook(self.after_job_end, ctx)
        return finish

    async def _hook(self, hook: Any, ctx: dict[str, Any]) -> None:
        if hook is not None:
            try:
                await hook(ctx)
            except Exception:
                log.exception("a hook failed", job_id=ctx["job_id"])

    def _finished(self, run: Run, handle: "asyncio.Task[Finish | None]") -> None:
        if self.runs.get(run.claimed.id) is run:
            if handle.cancelled():  # before its first step, or while it was saying why it failed
                run.output.abandon()
                finish = run.interrupted()
            elif (error := handle.exception()) is not None:
                log.error("a run failed outside of its task", job_id=run.claimed.id, exc_info=error)
                finish = Finish(run.claimed.id, run.claimed.token, State.QUEUED, "released")
            else:
                finish = handle.result()
            self._record(run, finish)

    # -------------------------------------------------------------------------------------------------- the outcomes

    def _record(self, run: Run, finish: Finish | None) -> None:
        """Frees the slot and has the outcome written; the lease is kept until it is."""
        del self.runs[run.claimed.id]
        self._changed.set()
        if finish is None:
            self._heart.held.pop(run.claimed.id, None)
            return
        if finish.to is State.SUCCEEDED:
            self.jobs_complete += 1
        elif finish.to is State.FAILED:
            self.jobs_failed += 1
        elif finish.to is State.RETRYING:
            self.jobs_retried += 1
        self._outcomes.put(finish)

    # ------------------------------------------------------------------------------------------------------ the news

    async def _listen(self) -> None:
        """What is rung for this worker alone: a cancel, or a job that was set aside for want of a worker like it."""
        bells = self.queue.bells(self.id)
        pause = 0.1
        try:
            while True:
                try:
                    word = await bells.wait(5.0)
                    pause = 0.1
                    if word is None:
                        continue
                    kind, _, id = word.partition(" ")
                    if kind == "cancel":
                        self._stop([id], "cancel")
                    elif self._room():
                        await self._claim()
                except Unavailable:
                    self._doubt = True
                    await asyncio.sleep(pause * random.uniform(0.5, 1))
                    pause = min(2 * pause, 2.0)
        finally:
            await bells.close()

    def _stop(self, ids: list[str], cause: Cause) -> None:
        for id in ids:
            run = self.runs.get(id)
            if run is not None and run.cause != cause:
                run.stop(cause)

    def _beaten(self, lost: list[str], cancelled: list[str]) -> None:
        self._stop(lost, "lost")
        self._stop(cancelled, "cancel")

    async def _beat(self) -> None:
        """Renews the leases from here, before anything new is claimed."""
        held = [(id, token) for id, (token, _) in self._heart.held.items()]
        for start in range(0, len(held), 500):
            _, lost, cancelled = await self.queue.beat(self.id, self.digest, held[start : start + 500])
            self._beaten(lost, cancelled)
        self._doubt = False

    def _forgotten(self) -> None:
        """Redis does not know this worker: it lost its data, or the worker was silent for too long."""
        if not self._stopping.is_set():
            asyncio.ensure_future(self._register()).add_done_callback(_told)

    async def _crons(self) -> None:
        """arq's cron: it enqueues what is due in arq's own queue, from which it is adopted."""
        while True:
            try:
                await self.heart_beat()
            except Exception:
                log.exception("cron failed")
            await asyncio.sleep(0.5)


async def _adopted(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
    """What arq's registry holds for each task: names only, since running them is ours."""


async def _first(*awaitables: Any, timeout: float | None = None) -> None:
    """Returns when the first is done or after `timeout` seconds; the others are cancelled unless they are futures."""
    own = [asyncio.ensure_future(one) for one in awaitables]
    try:
        await asyncio.wait(own, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for given, future in zip(awaitables, own, strict=True):
            if given is not future:
                future.cancel()


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=5)


def _told(task: "asyncio.Future[Any]") -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("registering failed", exc_info=task.exception())
