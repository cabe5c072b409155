"""The worker process: arq's shell (hooks, cron, burst mode, signals) around our claims and runs.

claims.py    the loop that claims jobs
prefetch.py  claimed jobs that wait for a slot
slots.py     the jobs that run, each in a run.py
outcomes.py  how they ended, written many per round trip
control.py   cancels, lost leases, and jobs that only this worker can run
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from signal import SIG_IGN, SIGHUP, Signals, getsignal
from typing import Any

import arq.worker
import structlog
from arq.connections import ArqRedis

from tandem_shared.cancellation import cancel_and_wait
from tandem_shared.errors import Misconfigured, Unavailable
from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.queue.connections import pool
from tandem_shared.queue.messages import Claimed
from tandem_shared.queue.queue import Queue
from tandem_shared.redis_url import parse_cluster_url
from tandem_shared.settings import Settings
from tandem_shared.setup.checks import SetupChecks
from tandem_shared.setup.watch import SetupWatch
from tandem_worker.executors.pools import open_pools
from tandem_worker.executors.watchdog import Watchdog
from tandem_worker.executors.zombies import Zombies
from tandem_worker.resources import Resources
from tandem_worker.runtime.arq_jobs import ArqJobs, cron_task, deserialize, serialize, stand_in
from tandem_worker.runtime.blocked import BlockedJobs
from tandem_worker.runtime.claims import Claims
from tandem_worker.runtime.control import Control
from tandem_worker.runtime.deadlines import Deadlines
from tandem_worker.runtime.ledger import Projection
from tandem_worker.runtime.metrics import WorkerMetrics, serving
from tandem_worker.runtime.outbox import Outbox
from tandem_worker.runtime.registration import Registration
from tandem_worker.runtime.run import Run, Runtime
from tandem_worker.runtime.slots import Slots
from tandem_worker.runtime.waiting import wait_first
from tandem_worker.task import Task

STUCK_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h

log = structlog.get_logger("worker")


class Worker(arq.worker.Worker):
    """One worker process; it runs once. `shell` is passed on to arq's Worker.

    `resources` opens what tasks use: entered before the first claim, left after the last job.
    """

    exit_code = 0  # of the process, once the worker has ended

    def __init__(
        self,
        *,
        settings: Settings,
        tasks: Mapping[str, Task],
        resources: Callable[[], contextlib.AbstractAsyncContextManager[Resources]],
        **shell: Any,
    ) -> None:
        redis = ArqRedis(
            pool(settings.redis_url), job_serializer=serialize, job_deserializer=deserialize
        )
        super().__init__(
            functions=[arq.worker.func(stand_in, name=name) for name in tasks],
            redis_pool=redis,
            **_arq_options(settings),
            **shell,
        )
        if shell.get("handle_signals", True) and getsignal(SIGHUP) is not SIG_IGN:  # as of nohup
            self._add_signal_handler(Signals.SIGHUP, self.handle_sig)
        self.settings = settings
        self.queue = Queue(redis, lease=settings.lease, keep=settings.keep)
        self.ready = asyncio.Event()
        self._resources = resources
        self._runtime: Runtime | None = None  # while and after the worker runs
        self._stopping = asyncio.Event()
        self._stopping_now = asyncio.Event()  # without waiting for running jobs

        crons = {job.name: cron_task(job, self.ctx) for job in self.cron_jobs}
        self._tasks = {**tasks, **crons}
        self._registration = Registration(
            self.queue,
            settings,
            self._stopping,
            entries=[task.entry for task in tasks.values()],
            hidden=[task.entry for task in crons.values()],
        )
        self.id = self._registration.id
        self.runs: dict[str, Run] = {}  # by job id
        on_limit, on_room = self._too_many_zombies, self._on_room
        self.zombies = Zombies(settings.max_zombies, on_limit=on_limit, on_room=on_room)
        self.metrics = WorkerMetrics(self.runs, self.max_jobs, self.zombies)
        self.slots = Slots(
            self, self.queue, self.runs, self._new_run, metrics=self.metrics, zombies=self.zombies
        )
        on_cluster = parse_cluster_url(settings.redis_url) is not None
        if on_cluster and crons:
            raise Misconfigured("TANDEM_REDIS_URL: cron jobs of arq do not run on a Redis Cluster")
        self._arq_jobs = ArqJobs(self.queue, self._tasks, crons, on_cluster=on_cluster)
        self.claims = Claims(
            self,
            self.queue,
            settings.queues,
            self._registration,
            slots=self.slots,
            arq_jobs=self._arq_jobs,
            stopping=self._stopping,
        )
        self.control = Control(self.queue, settings, self._registration, self.slots, self.claims)

    async def main(self) -> None:
        """Run from registration to retirement; arq's `run` and `async_run` call it."""
        if self._runtime is not None:
            raise RuntimeError("this worker has already run: create a new one")
        self.ctx["redis"] = self.pool
        settings, metrics = self.settings, self.metrics
        async with AsyncExitStack() as stack:
            stack.enter_context(serving(metrics, settings.metrics_host, settings.metrics_port))
            pools = await stack.enter_async_context(
                open_pools(settings, self.zombies, self.queue.grace)
            )
            resources = await stack.enter_async_context(self._resources())
            outbox = Outbox(
                self.queue,
                resources.files,
                max_output_bytes=settings.max_output,
                observe=metrics.observe_batch,
            )
            self.slots.outcomes.resend = outbox.resend
            deadlines, slots = Deadlines(self.loop), self.slots
            self._runtime = Runtime(
                self.queue, resources, pools, outbox, deadlines, slots.leases, slots.give_up
            )
            ledger = await stack.enter_async_context(open_ledger(settings))
            projection = Projection(
                self.queue.events,
                self.queue.clock,
                ledger,
                settings,
                consumer=self.id,
                running=self.runs,
                metrics=metrics,
            )
            if self.on_startup:
                await self.on_startup(self.ctx)
            files = resources.files
            setup = SetupWatch(
                SetupChecks(settings, self.pool, self.queue, files, ledger, worker=self.id)
            )
            self._start_part(stack, setup.run(), "setup")
            await setup.first()
            if not await self._registration.register():
                return
            self.control.heartbeat.start()
            self._watch_loop(stack)
            stack.push_async_callback(self._end)
            self._start_part(stack, self.control.listen(), "control")
            self._start_part(stack, projection.run(), "ledger")
            if self.cron_jobs:
                self._start_part(stack, self._arq_jobs.tick(self.heart_beat), "crons")
            log.info(
                "worker is ready",
                worker=self.id,
                queues=",".join(settings.queues),
                tasks=len(self._tasks),
            )
            self.ready.set()
            metrics.ready = lambda: not self._stopping.is_set()
            await self.claims.run()
            await self._drain()

    def _watch_loop(self, stack: AsyncExitStack) -> None:
        heartbeat, grace = self.control.heartbeat, self.queue.grace
        self.watchdog = Watchdog(
            BlockedJobs(self.runs, self.slots.prefetch, self.zombies, heartbeat, grace),
            lease=self.settings.lease,
            end=end_stuck,
        )
        self.watchdog.start()
        self.metrics.loop_blocked = lambda: self.watchdog.blocked_seconds
        stack.callback(self.watchdog.stop)

    def _start_part(
        self, stack: AsyncExitStack, work: Coroutine[Any, Any, None], name: str
    ) -> None:
        """Run a part of the worker until the stack unwinds; its failure ends the worker."""

        def ended(task: "asyncio.Task[None]") -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a part of the worker failed", part=name, error=type(error).__name__)
                self._stop()

        task = asyncio.create_task(work, name=name)
        task.add_done_callback(ended)
        stack.push_async_callback(cancel_and_wait, task)

    def _new_run(self, job: Claimed) -> Run:
        assert self._runtime is not None, "jobs are claimed while the worker runs"  # noqa: S101 - narrows the type
        return Run(job, self._tasks[job.task], self._runtime)

    def _stop(self) -> None:
        self._stopping.set()
        self.slots.changed.set()

    def _on_room(self) -> None:
        self.slots.changed.set()

    def _too_many_zombies(self) -> None:
        if not self._stopping.is_set():
            log.error(
                "draining, to end with exit code 1: too much code ignored the end of its job",
                zombies=len(self.zombies),
                running=len(self.runs),
                seconds=self.settings.drain,
            )
            self.exit_code = 1
        self._stop()

    def run(self) -> None:
        """Run until the worker ends.

        KeyboardInterrupt and SystemExit in an asyncio task that a job's code has started end the
        event loop's run. Its next run continues with everything else.
        """
        main = self.main_task = self.loop.create_task(self.main())
        while not main.done():
            try:
                self.loop.run_until_complete(asyncio.wait({main}))
            except (KeyboardInterrupt, SystemExit):
                log.exception("an asyncio task of a job's code tried to end the worker")
        try:
            if not main.cancelled():
                main.result()
        finally:
            self.loop.run_until_complete(self.close())

    def handle_sig(self, signum: Signals) -> None:
        """Drain at the first signal; hand all jobs back at the second."""
        if self._stopping.is_set():
            self._stopping_now.set()
        else:
            log.info(
                "draining",
                signal=Signals(signum).name,
                running=len(self.runs),
                seconds=self.settings.drain,
            )
        self._stop()
        if self.on_stop:
            self.on_stop(signum)

    handle_sig_wait_for_completion = handle_sig

    async def _drain(self) -> None:
        """Let running jobs finish: all of a burst; after a signal for `drain` seconds."""
        self.allow_pick_jobs = False
        self.slots.prefetch.hand_back()
        if self.runs:
            idle = asyncio.ensure_future(self.slots.idle())
            await wait_first(idle, self.control.announce_drain(), timeout=1)
            await wait_first(idle, self._stopping.wait())  # unset while a burst ends
            await wait_first(idle, self._stopping_now.wait(), timeout=self.settings.drain)
            idle.cancel()

    async def _end(self) -> None:
        """Hand back what still runs, write the last outcomes within the lease, and retire."""
        self._stopping.set()
        self.allow_pick_jobs = False
        await self.slots.hand_back(self.queue.grace)
        await self.claims.recover()
        await wait_first(self.slots.outcomes.all_written(), timeout=self.settings.lease)
        await self.control.end()
        with contextlib.suppress(Unavailable):
            await self.queue.retire(self.id)
        await self.queue.close()
        log.info(
            "worker has ended",
            complete=self.jobs_complete,
            failed=self.jobs_failed,
            retried=self.jobs_retried,
        )

    async def close(self) -> None:
        """Close what arq opened, after ending a worker that still runs as a signal would."""
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


def end_stuck() -> None:
    """End the process without its loop, which is stuck; a supervisor starts it again."""
    logging.shutdown()
    os._exit(STUCK_EXIT_CODE)


def _arq_options(settings: Settings) -> dict[str, Any]:
    return {
        "max_jobs": settings.concurrency,
        "job_completion_wait": max(1, round(settings.drain)),
        "job_serializer": serialize,
        "job_deserializer": deserialize,
        "health_check_interval": 15,
        "log_results": False,
    }
