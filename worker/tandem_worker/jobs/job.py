"""The job as its code sees it: who it is, and the ways to report progress, output and logs while it runs."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from tandem_shared.jobs.record import Record
from tandem_shared.times import Duration
from tandem_worker.jobs.files import JobFiles
from tandem_worker.jobs.locks import Keeper, Lock
from tandem_worker.jobs.reports import Log, Sink, item_body, progress_body
from tandem_worker.jobs.steps import InThread, Result, Steps, Store, run

if TYPE_CHECKING:
    from tandem_worker.connectors.http.client import HttpClient
    from tandem_worker.connectors.mongo.connection import MongoConnection
    from tandem_worker.connectors.sql.connections import SqlConnection
    from tandem_worker.resources import Resources

P = ParamSpec("P")
T = TypeVar("T")


class Find(Protocol):
    """Looks another job up; `tandem_shared.queue.queue.Queue.get` is one."""

    def __call__(self, id: str, *, tenant: str) -> Awaitable[Record | None]: ...


class Job:
    """One attempt of one job. A task gets it as its parameter `job`; reports go to the clients as they are made."""

    __slots__ = (
        "_files",
        "_find",
        "_in_thread",
        "_keeper",
        "_log",
        "_steps",
        "_store",
        "attempt",
        "cancelled",
        "deadline",
        "id",
        "max_attempts",
        "resources",
        "sink",
        "stamp",
        "task",
        "tenant",
        "traceparent",
    )

    def __init__(
        self,
        *,
        id: str,
        task: str,
        sink: Sink,
        resources: "Resources",
        store: Store,
        keeper: Keeper,
        in_thread: InThread,
        deadline: float,
        attempt: int = 1,
        max_attempts: int = 1,
        tenant: str = "default",
        stamp: int = 0,
        traceparent: str | None = None,
        find: Find | None = None,
    ) -> None:
        self.id = id
        self.task = task
        self.sink = sink
        self.resources = resources
        self.deadline = deadline  # seconds since the epoch at which this attempt times out
        self.attempt = attempt  # 1, 2, …
        self.max_attempts = max_attempts
        self.tenant = tenant
        self.stamp = stamp  # of the claim: names the place of this attempt's files
        self.traceparent = traceparent
        self.cancelled = False  # this attempt is over, whatever its code still does
        self._log: Log | None = None
        self._files: JobFiles | None = None
        self._find = find  # other jobs, whose files this one may read
        self._store = store  # where results of its steps are kept
        self._steps: Steps | None = None
        self._keeper = keeper  # of locks
        self._in_thread = in_thread  # runs the plain functions of steps

    @property
    def log(self) -> Log:
        """Lines for whoever reads the job's stream."""
        if self._log is None:
            self._log = Log(self.sink.log)
        return self._log

    @property
    def files(self) -> JobFiles:
        """Uploads and other jobs' files to read, and this job's own to write."""
        if self._files is None:
            find = None if self._find is None else partial(self._find, tenant=self.tenant)
            self._files = JobFiles(
                self.resources.files, self.id, self.stamp, tenant=self.tenant, find=find
            )
        return self._files

    @property
    def written(self) -> list[Any]:
        """Views of the files this attempt wrote, for its finish."""
        return [] if self._files is None else self._files.written

    @property
    def steps(self) -> Steps:
        """What its steps have returned, in this attempt and in earlier ones."""
        if self._steps is None:
            self._steps = Steps(self._store)
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
        """What `function(*args, **kwargs)` returns: called once a job, a later attempt gets the kept result instead.

        It is `async def`, or a plain function, which is called in a thread. The result is JSON of
        at most 256 KiB, and comes back as that JSON says, in the type that the function is
        annotated to return. What it raises is raised, and nothing kept. Raises TypeError for a
        result that is no JSON, Permanent `too_large` and, for a name that this attempt has used,
        `step_repeated`.
        """
        result = Result(name, function)
        return await run(
            self.steps, name, result, partial(function, *args, **kwargs), self._in_thread
        )

    def lock(self, name: str, *, wait: Duration | None = None) -> Lock:
        """`async with job.lock("name") as lock`: no other job of the tenant is inside of that name meanwhile.

        Waits for at most `wait`, or as long as the job may run, in order of arrival; then raises
        TaskError `lock_timeout`, which is retried. Not reentrant. When the lock is lost, so is the
        attempt: its code is cancelled.
        """
        return Lock(self._keeper, name, wait)

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
        """Inside of `async with job.models():` Tortoise models work that connections name (`models=<module>`)."""
        return self.resources.sql.models()

    async def progress(
        self, current: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Tell how far the job is. Cheap to call often: clients see the newest state, not each one."""
        await self.sink.progress(progress_body(current, total, message))

    async def emit(self, item: Any) -> None:
        """Stream one item to the clients; waits while they have many to fetch.

        Raises TypeError for what JSON cannot hold, and TaskError `too_large` for an item above 1
        MiB.
        """
        await self.sink.output(item_body(item))
