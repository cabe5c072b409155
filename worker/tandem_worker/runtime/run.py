"""One attempt, from the claim to its outcome: decode → execute → encode → drain → classify.

An attempt ends in a Finish, or in None when this worker no longer holds its job.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import structlog
from pydantic import ValidationError

from tandem_shared.jobs.record import JobOptions
from tandem_shared.jobs.states import Outcome, State
from tandem_shared.queue.messages import Claimed, Finish
from tandem_shared.queue.queue import Queue
from tandem_shared.retry_policy import RetryPolicy, retry_delay
from tandem_worker.executors.execute import execute
from tandem_worker.executors.pools import Pools
from tandem_worker.failures import Fault, internal_error, invalid_payload, timed_out, to_fault
from tandem_worker.jobs.job import Job
from tandem_worker.resources import Resources
from tandem_worker.runtime.attempt_store import AttemptStore
from tandem_worker.runtime.deadlines import Deadlines
from tandem_worker.runtime.endings import log_failure
from tandem_worker.runtime.held_leases import Leases
from tandem_worker.runtime.outbox import Outbox
from tandem_worker.runtime.outcomes import cancelled, released
from tandem_worker.runtime.output import JobOutput
from tandem_worker.task import Task

MAX_RESULT_BYTES = 256 << 10  # in the record; a larger result becomes a file of the job
LAST_REPORTS_SECONDS = 1.0  # to write what a job reported before it was interrupted

# Why a run is cancelled from outside: set before its asyncio task is cancelled.
# 'torn': Redis has lost what the attempt wrote, so it is handed back.
Cause = Literal["cancel", "lost", "torn", "shutdown"]

log = structlog.get_logger("worker")
_options = msgspec.json.Decoder(JobOptions)


@dataclass(frozen=True)
class Runtime:
    """What all attempts on a worker share."""

    queue: Queue
    resources: Resources
    pools: Pools
    outbox: Outbox
    deadlines: Deadlines
    leases: Leases
    give_up: Callable[["Run"], None]  # the run's code has ignored its cancellation


class Run:
    """One attempt of one job on this worker."""

    __slots__ = (
        "_runtime", "abandoned", "cause", "claimed", "due", "handle", "job",
        "late", "options", "output", "started", "stopping", "task", "waiting",
    )  # fmt: skip

    def __init__(self, claimed: Claimed, task: Task, runtime: Runtime) -> None:
        self.claimed, self.task, self._runtime = claimed, task, runtime
        self.options = _options.decode(claimed.options)
        self.started = time.monotonic()
        self.due = self.started + self.options.timeout  # monotonic
        self.late = False  # the timeout came before the code ended
        self.waiting = task.kind == "process"  # for a process: its code has not begun
        self.stopping = False  # its code has been cancelled
        self.abandoned = False  # its code ignored that, and the attempt has ended without it
        self.cause: Cause | None = None
        self.handle: asyncio.Task[Finish | None] | None = None
        queue = runtime.queue
        self.output = JobOutput(
            runtime.outbox,
            claimed.id,
            claimed.token,
            self.stop,
            # As long as the lease is renewed: longer than the code may take.
            store_seconds=self.options.timeout + queue.grace,
        )
        store = AttemptStore(queue, self.output)
        self.job = Job(
            id=claimed.id,
            task=claimed.task,
            deadline=self.due,
            attempt=claimed.attempt,
            max_attempts=claimed.max_attempts,
            tenant=claimed.tenant,
            traceparent=self.options.traceparent,
            stamp=int(claimed.token.partition(".")[0]),
            sink=self.output,
            resources=runtime.resources,
            step_store=store,
            lock_store=store,
            find=queue.get,
            in_thread=runtime.pools.steps.call,
        )

    def stop(self, cause: Cause) -> None:
        """Cancel the run. The first cause counts, except that a lost lease overrides all others."""
        if self.cause is None or cause == "lost":
            self.cause = cause
        self._cancel()

    def _cancel(self) -> None:
        if self.handle is None or self.handle.done():
            return
        if not self.stopping:
            self.stopping = True
            self._runtime.deadlines.add(self, self._runtime.queue.grace)
        self.handle.cancel()

    async def attempt(self) -> Finish | None:
        """Run the attempt from decoding its payload to its outcome."""
        try:
            finish = await self._outcome()
        except asyncio.CancelledError:
            finish = self.interrupted()
            if finish is not None:
                # Reports from before the interruption belong to the output. Writing them takes one
                # round trip; do not wait for it while Redis is unavailable.
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(LAST_REPORTS_SECONDS):
                        await self.output.drain()
        # Break the cycle between run and output, so that both are freed without a collection.
        self.output.on_lost = None
        self.output.abandon()
        return finish

    async def _outcome(self) -> Finish | None:
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
        except Exception as error:  # noqa: BLE001 - whatever a task raises fails this attempt alone
            failure = error
        # Code may swallow a cancellation or turn it into any exception, so the cause decides,
        # whatever the code did.
        if (
            self.abandoned
            or self.cause in ("cancel", "lost", "torn")
            or (self.cause is not None and failure is not None)
        ):
            return self.interrupted()
        if self.late:
            fault = timed_out(self.options.timeout, stuck=self.output.stuck)
            return await self._failed(fault, "timeout")
        if failure is None:
            # Outside the timeout: the code is not charged for an unavailable Redis.
            try:
                await self.output.drain()
            except Exception as error:  # noqa: BLE001 - rejected output fails the attempt like the code's own errors
                failure = error
        if failure is not None:
            return await self._failed(to_fault(failure), error=failure)
        files = msgspec.json.encode(self.job.written) if self.job.written else b""
        return self._end(State.SUCCEEDED, "succeeded", body, files=files)

    def overdue(self) -> None:
        """Cancel the code at its timeout; give it up if it has ignored a cancel for the grace."""
        if self.stopping:
            if self.handle is not None:
                self.handle.cancel()
            self._runtime.give_up(self)
        elif self.waiting:
            self._set_due()
        else:
            self.late = True
            self._cancel()

    def _begun(self) -> None:
        """Count the timeout from now on: the code waited for a process before."""
        self.waiting = False
        if not self.stopping:
            self._set_due()

    def _set_due(self) -> None:
        runtime, seconds = self._runtime, self.options.timeout
        self.due = self.job.deadline = time.monotonic() + seconds
        runtime.deadlines.add(self, seconds)
        runtime.leases.hold(self.claimed, seconds + runtime.queue.grace + runtime.queue.lease)

    def give_up(self) -> Finish | None:
        """End the attempt without its code, which ignored its cancellation."""
        self.abandoned = self.job.cancelled = True
        self.output.on_lost = None
        self.output.abandon()
        return self.given_up()

    async def _execute(self, payload: Any) -> bytes:
        self._runtime.deadlines.add(self, self.options.timeout)
        try:
            result = await execute(self.task, self.job, payload, self._runtime.pools, self._begun)
            body = self.task.encode(result)
            return body if len(body) <= MAX_RESULT_BYTES else await self._store(body)
        finally:
            self._runtime.deadlines.drop(self)
            if self.late and self.handle is not None:
                # The cancellation was the timeout: it must not interrupt what follows.
                self.handle.uncancel()
            if time.monotonic() > self.due:
                self.late = True  # the code blocked the loop, whose timer had no turn

    async def _store(self, body: bytes) -> bytes:
        """Write a large result to a file of the job, and return a result that names the file."""
        taken = {file.name for file in self.job.written}
        names = ("result.json", *(f"result-{number}.json" for number in range(len(taken))))
        name = next(name for name in names if name not in taken)
        ref = await self.job.files.write(name, body, content_type="application/json")
        return msgspec.json.encode({"file": ref.model_dump(mode="json", exclude_none=True)})

    async def _failed(
        self,
        fault: Fault,
        outcome: Literal["failed", "timeout"] = "failed",
        *,
        error: Exception | None = None,
    ) -> Finish:
        finish = self._finish(fault, self._policy(), outcome)
        log_failure(self.claimed, fault, finish, error)
        try:
            await self.output.drain()
        except Exception as refused:  # noqa: BLE001 - the first failure says more than rejected output
            log.debug("output rejected", job_id=self.claimed.id, error=str(refused))
        return finish._replace(reports=self.output.written)

    def _policy(self) -> RetryPolicy:
        return RetryPolicy.model_validate(
            {
                **self.task.entry.defaults["retry"],
                **self.options.retry,
                "max_attempts": self.claimed.max_attempts,
            }
        )

    def given_up(self) -> Finish | None:
        """The outcome of code that does not end: by the cause of its cancellation, or a timeout."""
        if self.cause is not None:
            return self.interrupted()
        fault = timed_out(self.options.timeout, ignored=True)
        finish = self._finish(fault, self._policy(), "timeout")
        log_failure(self.claimed, fault, finish, None)
        return finish

    def _finish(
        self, fault: Fault, policy: RetryPolicy, outcome: Literal["failed", "timeout"]
    ) -> Finish:
        attempt = self.claimed.attempt
        wait = retry_delay(policy, attempt, retryable=fault.retryable, after=fault.after)
        to = State.FAILED if wait is None else State.RETRYING
        body = msgspec.json.encode(fault.to_failure(attempt))
        return self._end(to, outcome, body, delay=wait or 0.0)

    def _end(
        self, to: State, outcome: Outcome, body: bytes, *, delay: float = 0.0, files: bytes = b""
    ) -> Finish:
        id, token = self.claimed.id, self.claimed.token
        return Finish(id, token, to, outcome, body, delay, files, self.output.written)

    def broken(self) -> Finish:
        """The outcome after a worker error: charged, or the job would be retried forever."""
        self.output.abandon()
        policy = RetryPolicy(max_attempts=self.claimed.max_attempts)
        return self._finish(internal_error(), policy, "failed")

    def interrupted(self) -> Finish | None:
        """The outcome after a cancellation, by its cause."""
        self.job.cancelled = True
        if self.cause == "lost":
            return None
        if self.cause == "cancel":
            return cancelled(self.claimed)
        # Shutdown, or the end of the event loop, which gives no cause.
        return released(self.claimed)
