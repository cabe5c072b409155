"""One attempt, from the claim to the outcome: decode → execute → encode → classify, over one value.

An attempt ends in a Finish, or in None when its job is no longer this worker's.
"""

import asyncio
import time
from typing import Literal

import msgspec
import structlog
from pydantic import ValidationError

from shared.jobs import Failure, Options, State
from shared.queue import Claimed, Finish
from shared.retry import RetryPolicy, delay
from worker.failures import Fault, fault, invalid_payload, timed_out
from worker.files import FileRef
from worker.job import Find, Job
from worker.output import JobOutput, Outbox
from worker.resources import Resources
from worker.task import Task, execute

LARGEST = 256 << 10  # bytes of a result that the record holds; a larger one becomes a file

# Why a run was cancelled from outside. Whoever cancels says so first.
Cause = Literal["cancel", "lost", "shutdown"]

log = structlog.get_logger("worker")
_options = msgspec.json.Decoder(Options)


class Run:
    """One attempt of one job on this worker."""

    __slots__ = ("cause", "claimed", "handle", "job", "options", "output", "started", "task")

    def __init__(self, claimed: Claimed, task: Task, outbox: Outbox, resources: Resources, find: Find) -> None:
        self.claimed = claimed
        self.task = task
        self.options = _options.decode(claimed.options)
        self.started = time.time()
        self.cause: Cause | None = None
        self.handle: asyncio.Task[Finish | None] | None = None
        self.output = JobOutput(outbox, claimed.id, claimed.token, lambda: self.stop("lost"))
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
            find=find,
        )

    def stop(self, cause: Cause) -> None:
        """Cancels the run. The first cause counts, except that a lost lease beats all: nothing may be said then."""
        if self.cause is None or cause == "lost":
            self.cause = cause
        if self.handle is not None and not self.handle.done():
            self.handle.cancel()

    async def attempt(self) -> Finish | None:
        """The whole line of steps."""
        limit = self.options.timeout
        finish: Finish | None
        try:
            try:
                async with asyncio.timeout(limit) as clock:
                    finish = await self._execute()
            except TimeoutError:
                if not clock.expired():
                    raise  # the code's own
                finish = await self._failed(timed_out(limit), "timeout")
        except asyncio.CancelledError:
            finish = self.interrupted()
        except Exception as error:  # noqa: BLE001 - whatever a task raises is this attempt's failure, and no more
            finish = await self._failed(fault(error), "failed", error)
        if finish is None:
            self.output.abandon()
        return finish

    async def _execute(self) -> Finish:
        try:
            payload = self.task.decode(self.claimed.payload)
        except ValidationError as error:
            return await self._failed(invalid_payload(error), "failed")
        value = await execute(self.task, self.job, payload)
        body = self.task.encode(value)
        if len(body) > LARGEST:
            body = await self._keep(body)
        await self.output.drain()
        files = msgspec.json.encode(self.job.written) if self.job.written else b""
        return Finish(self.claimed.id, self.claimed.token, State.SUCCEEDED, "succeeded", body, 0.0, files)

    async def _keep(self, body: bytes) -> bytes:
        """A large result becomes a file of the job, and the result names it."""
        ref: FileRef = await self.job.files.write("result.json", body, content_type="application/json")
        return msgspec.json.encode({"file": ref.model_dump(mode="json", exclude_none=True)})

    async def _failed(
        self, what: Fault, outcome: Literal["failed", "timeout"], error: Exception | None = None
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
        failure = what.of(self.claimed.attempt)
        policy = RetryPolicy.model_validate(
            {**self.task.retry.model_dump(), **self.options.retry, "max_attempts": self.claimed.max_attempts}
        )
        wait = delay(policy, self.claimed.attempt, retryable=what.retryable, after=what.after)
        return self._finish(State.FAILED if wait is None else State.RETRYING, outcome, failure, wait or 0.0)

    def _finish(self, to: State, outcome: Literal["failed", "timeout"], failure: Failure, wait: float) -> Finish:
        return Finish(self.claimed.id, self.claimed.token, to, outcome, msgspec.json.encode(failure), wait)

    def interrupted(self) -> Finish | None:
        """What follows from a cancellation, by its cause."""
        self.job.cancelled = True
        if self.cause == "cancel":
            return Finish(self.claimed.id, self.claimed.token, State.CANCELLED, "cancelled")
        if self.cause == "lost":
            return None
        # Shutdown: handed back, uncharged. A cancellation that nobody gave a cause is the event loop's own end.
        return Finish(self.claimed.id, self.claimed.token, State.QUEUED, "released")
