"""The job as its code sees it: its facts, and what it can do while it runs."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from tandem_shared.jobs.record import Record
from tandem_shared.jobs.view import JobFile
from tandem_shared.times import Duration
from tandem_worker.jobs.files import JobFiles
from tandem_worker.jobs.info import JobInfo
from tandem_worker.jobs.locks import Lock, LockStore
from tandem_worker.jobs.reports import JobLog, Sink, item_body, progress_body
from tandem_worker.jobs.steps import InThread, JobSteps, StepResult, StepStore, run_step

if TYPE_CHECKING:
    from tandem_worker.connectors.http.client import HttpClient
    from tandem_worker.connectors.mongo.connection import MongoConnection
    from tandem_worker.connectors.sql.connections import SqlConnection
    from tandem_worker.resources import Resources

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class Job(JobInfo):
    """One attempt of one job: the parameter `job` of a task."""

    sink: Sink
    resources: "Resources"
    step_store: StepStore
    lock_store: LockStore
    find: Callable[..., Awaitable[Record | None]]  # other jobs, see `Queue.get`
    in_thread: InThread  # runs the plain functions of steps
    cancelled: bool = False  # this attempt is over, whatever its code still does
    _log: JobLog | None = field(default=None, init=False)
    _files: JobFiles | None = field(default=None, init=False)
    _steps: JobSteps | None = field(default=None, init=False)

    @property
    def log(self) -> JobLog:
        """Writes lines to the job's stream."""
        if self._log is None:
            self._log = JobLog(self.sink.log)
        return self._log

    @property
    def files(self) -> JobFiles:
        """Reads uploads and the files of other jobs, and writes files of this job."""
        if self._files is None:
            find = partial(self.find, tenant=self.tenant)
            self._files = JobFiles(self.resources.files, self.id, self.stamp, self.tenant, find)
        return self._files

    @property
    def written(self) -> list[JobFile]:
        """The files that this attempt has written."""
        return [] if self._files is None else self._files.written

    @property
    def steps(self) -> JobSteps:
        """The results of the job's steps, from this attempt and earlier ones."""
        if self._steps is None:
            self._steps = JobSteps(self.step_store)
        return self._steps

    @overload
    async def step(
        self, name: str, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    @overload
    async def step(
        self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    async def step(
        self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        """`function(*args, **kwargs)`, run once per job: later attempts get the stored result.

        The function is `async def`, or a plain one, which runs in a thread. Its result is stored as
        JSON of at most 256 KiB, and always returned as read back from that JSON, in the type that
        the function is annotated to return. If the function raises, nothing is stored. Raises
        TypeError for a result that is not JSON, Permanent `too_large`, and Permanent
        `step_repeated` for a name that this attempt has already used.
        """
        result = StepResult(name, function)
        call = partial(function, *args, **kwargs)
        return await run_step(self.steps, name, result, call, self.in_thread)

    def lock(self, name: str, *, wait: Duration | None = None) -> Lock:
        """`async with job.lock("name") as lock`: one of the tenant's jobs can hold it at a time.

        Waits for `wait` at most, by default until the job's timeout, in order of arrival; then
        raises TaskError `lock_timeout`, which is retried. Not reentrant. A job that loses its lock
        loses its attempt: its code is cancelled.
        """
        return Lock(self.lock_store, name, wait)

    @property
    def http(self) -> "HttpClient":
        """The worker's guarded HTTP client."""
        return self.resources.http

    def sql(self, name: str) -> "SqlConnection":
        """The database connection that the settings call `name` (`TANDEM_SQL__<NAME>`)."""
        return self.resources.sql(name)

    def mongo(self, name: str) -> "MongoConnection":
        """The MongoDB server that the settings call `name` (`TANDEM_MONGO__<NAME>`)."""
        return self.resources.mongo(name)

    def models(self) -> AbstractAsyncContextManager[None]:
        """`async with job.models():` enables connections' Tortoise models (`models=<module>`)."""
        return self.resources.sql.models()

    async def progress(
        self, current: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Report how far the job is. Cheap to call often: clients see only the newest state."""
        await self.sink.progress(progress_body(current, total, message))

    async def emit(self, item: Any) -> None:
        """Stream one item to clients; waits while too much output is not yet written.

        Raises TypeError for what JSON cannot hold, and TaskError `too_large` for an item above 1
        MiB.
        """
        await self.sink.output(item_body(item))
