"""One attempt, from the claim to the outcome: decode → execute → encode → drain → classify, over one value.

An attempt ends in a Finish, or in None when its job is no longer this worker's.
"""

import asyncio
import contextlib
import time
from typing import Any, Literal

import msgspec
import structlog
from pydantic import ValidationError

from tandem_shared.jobs.record import JobOptions
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Claimed, Finish
from tandem_shared.queue.queue import Queue
from tandem_shared.retry import RetryPolicy, retry_delay
from tandem_worker.executors.execute import execute
from tandem_worker.executors.pools import Pools
from tandem_worker.failures import Fault, broken, fault, invalid_payload, timed_out
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.resources import Resources
from tandem_worker.runtime.attempt_store import Fenced
from tandem_worker.runtime.deadlines import Deadlines
from tandem_worker.runtime.output import JobOutput, Outbox
from tandem_worker.task import Task

LARGEST = 256 << 10  # bytes of a result that the record holds; a larger one becomes a file
LAST_WORDS = 1.0  # seconds for what a job said before it was interrupted to be written

# Why a run was cancelled from outside. Whoever cancels says so first.
Cause = Literal["cancel", "lost", "shutdown"]

log = structlog.get_logger("worker")
_options = msgspec.json.Decoder(JobOptions)


class Run:
    """One attempt of one job on this worker. `grace`: seconds until code that ignores its timeout is told again."""

    __slots__ = (
        "cause", "claimed", "deadlines", "grace", "handle", "job", "late", "options", "output", "pools", "started", "task",
    )  # fmt: skip

    def __init__(
        self,
        claimed: Claimed,
        task: Task,
        outbox: Outbox,
        resources: Resources,
        pools: Pools,
        *,
        queue: Queue,
        grace: float,
        deadlines: Deadlines,
    ) -> None:
        self.claimed = claimed
        self.task = task
        self.pools = pools
        self.grace, self.deadlines = grace, deadlines
        self.late = False  # its time was over before its code was
        self.options = _options.decode(claimed.options)
        self.started = time.time()
        self.cause: Cause | None = None
        self.handle: asyncio.Task[Finish | None] | None = None
        # The file store gets a moment longer than the code: the lease holds for as long.
        patience = self.options.timeout + grace
        self.output = JobOutput(outbox, claimed.id, claimed.token, self._lost, seconds=patience)
        fenced = Fenced(queue, self.output)
        self.job = Job(
            id=claimed.id,
            task=claimed.task,
            sink=self.output,
            resources=resources,
            deadline=self.started + self.options.timeout,
            attempt=claimed.attempt,
            max_attempts=claimed.max_attempts,
            tenant=claimed.tenant,
            stamp=int(claimed.token.partition(".")[0]),
            traceparent=self.options.traceparent,
            find=queue.get,
            store=fenced,
            keeper=fenced,
            in_thread=pools.threads.call,
        )

    def _lost(self) -> None:
        self.stop("lost")

    def stop(self, cause: Cause) -> None:
        """Cancels the run. The first cause counts, except that a lost lease beats all: nothing may be said then."""
        if self.cause is None or cause == "lost":
            self.cause = cause
        if self.handle is not None and not self.handle.done():
            self.handle.cancel()

    async def attempt(self) -> Finish | None:
        """The whole line of steps."""
        try:
            finish = await self._outcome()
        except asyncio.CancelledError:
            finish = self.interrupted()
            if finish is not None:
                # What it said before belongs to its output. This takes a round trip; without Redis
                # nobody waits.
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(LAST_WORDS):
                        await self.output.drain()
        self.output.lost = (
            None  # it is over; else run and output would hold each other until the collector comes
        )
        self.output.abandon()
        return finish

    async def _outcome(self) -> Finish | None:
        limit = self.options.timeout
        try:
            payload = self.task.decode(self.claimed.payload)
        except ValidationError as error:
            return await self._failed(invalid_payload(error))
        body, failure = b"", None
        try:
            body = await self._execute(payload)
        except asyncio.CancelledError:
            if self.cause is not None or not self.late:
                raise
        except Exception as error:  # noqa: BLE001 - whatever a task raises is this attempt's failure, and no more
            failure = error
        # Code may turn a cancellation into anything, or into nothing: why it was cancelled decides,
        # not what it did.
        if self.cause in ("cancel", "lost") or (self.cause is not None and failure is not None):
            return self.interrupted()
        if self.late:
            return await self._failed(timed_out(limit, stuck=self.output.stuck), "timeout")
        if failure is None:
            # Outside of the timeout: that Redis is away is not the code's fault.
            try:
                await self.output.drain()
            except Exception as error:  # noqa: BLE001 - output that is refused fails the attempt like the code's own errors
                failure = error
        if failure is not None:
            return await self._failed(fault(failure), error=failure)
        files = msgspec.json.encode(self.job.written) if self.job.written else b""
        return Finish(
            self.claimed.id, self.claimed.token, State.SUCCEEDED, "succeeded", body, 0.0, files
        )

    def overdue(self) -> None:
        """Cancels the code at its timeout; code that ignores it is told once more, while its lease still holds."""
        if not self.late:
            self.late = True
            self.deadlines.add(self, self.grace)
        if self.handle is not None:
            self.handle.cancel()

    async def _execute(self, payload: Any) -> bytes:
        self.deadlines.add(self, self.options.timeout)
        try:
            body = self.task.encode(await execute(self.task, self.job, payload, self.pools))
            return body if len(body) <= LARGEST else await self._keep(body)
        finally:
            self.deadlines.drop(self)
            if self.late and self.handle is not None:
                # that was the timeout; what follows is not to be cut short by it
                self.handle.uncancel()

    async def _keep(self, body: bytes) -> bytes:
        """A large result becomes a file of the job, and the result names it."""
        taken = {view["name"] for view in self.job.written}
        name = next(
            name
            for name in ("result.json", *map("result-{}.json".format, range(len(taken))))
            if name not in taken
        )
        ref: FileRef = await self.job.files.write(name, body, content_type="application/json")
        return msgspec.json.encode({"file": ref.model_dump(mode="json", exclude_none=True)})

    async def _failed(
        self,
        what: Fault,
        outcome: Literal["failed", "timeout"] = "failed",
        *,
        error: Exception | None = None,
    ) -> Finish:
        log.info(
            "attempt failed",
            job_id=self.claimed.id,
            task=self.claimed.task,
            attempt=self.claimed.attempt,
            type=what.type,
            error=what.message,
            exc_info=error if error is not None and what.type.startswith("exception:") else None,
        )
        try:
            await self.output.drain()
        except Exception as refused:  # noqa: BLE001 - what was said is refused too; the first failure says more
            log.debug("output refused", job_id=self.claimed.id, error=str(refused))
        policy = RetryPolicy.model_validate(
            {
                **self.task.retry.model_dump(),
                **self.options.retry,
                "max_attempts": self.claimed.max_attempts,
            }
        )
        return self._finish(what, policy, outcome)

    def _finish(
        self, what: Fault, policy: RetryPolicy, outcome: Literal["failed", "timeout"]
    ) -> Finish:
        wait = retry_delay(policy, self.claimed.attempt, retryable=what.retryable, after=what.after)
        to = State.FAILED if wait is None else State.RETRYING
        body = msgspec.json.encode(what.of(self.claimed.attempt))
        return Finish(self.claimed.id, self.claimed.token, to, outcome, body, wait or 0.0)

    def broken(self) -> Finish:
        """What follows from an error of this program's own: it is charged, or the job would come back for ever."""
        self.output.abandon()
        return self._finish(broken(), RetryPolicy(max_attempts=self.claimed.max_attempts), "failed")

    def interrupted(self) -> Finish | None:
        """What follows from a cancellation, by its cause."""
        self.job.cancelled = True
        if self.cause == "cancel":
            return Finish(self.claimed.id, self.claimed.token, State.CANCELLED, "cancelled")
        if self.cause == "lost":
            return None
        # Shutdown: handed back, uncharged. A cancellation that nobody gave a cause is the event
        # loop's own end.
        return self.handed_back()

    def handed_back(self) -> Finish:
        """For the next worker, uncharged."""
        return Finish(self.claimed.id, self.claimed.token, State.QUEUED, "released")
