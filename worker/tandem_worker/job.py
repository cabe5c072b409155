"""The job as its code sees it: who it is, and the ways to report progress, output and logs while it runs."""

import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from pydantic_core import to_json

from tandem_shared.jobs.record import Record
from tandem_shared.times import Duration
from tandem_worker.encoding import MAX_ITEM, encode
from tandem_worker.errors import TaskError

if TYPE_CHECKING:
    from tandem_worker.files import JobFiles
    from tandem_worker.http import HttpClient
    from tandem_worker.locks import Keeper, Lock
    from tandem_worker.mongo import MongoConnection
    from tandem_worker.resources import Resources
    from tandem_worker.sql import SqlConnection
    from tandem_worker.steps import Steps, Store

P = ParamSpec("P")
T = TypeVar("T")

MAX_MESSAGE = 1000  # characters of a progress message
MAX_LOG = 16 << 10  # bytes of one log entry


class Find(Protocol):
    """Looks another job up; `tandem_shared.queue.queue.Queue.get` is one."""

    def __call__(self, id: str, *, tenant: str) -> Awaitable[Record | None]: ...


class Sink(Protocol):
    """Carries a job's reports away. The worker's own is in output.py, the tests' one in testing.py."""

    async def progress(self, body: bytes) -> None:
        """JSON `{"current", "total", "message"}`. Only the newest counts, so a sink may leave out earlier ones."""

    async def output(self, item: bytes) -> None:
        """JSON of one output item; waits while the job's buffer is full."""

    def log(self, body: bytes) -> None:
        """JSON `{"level", "message", …fields}`. Never blocks; what finds no room is counted, not lost silently."""


class Log:
    """`job.log.info("fetched", page=3)`: a line of the job's stream with its fields. Never raises, never blocks."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.write = write  # takes JSON of a line, see log_body

    def debug(self, message: str, /, **fields: Any) -> None:
        self.write(log_body("debug", message, fields))

    def info(self, message: str, /, **fields: Any) -> None:
        self.write(log_body("info", message, fields))

    def warning(self, message: str, /, **fields: Any) -> None:
        self.write(log_body("warning", message, fields))

    def error(self, message: str, /, **fields: Any) -> None:
        self.write(log_body("error", message, fields))


class Job:
    """One attempt of one job. A task gets it as its parameter `job`; reports go to the clients as they are made."""

    __slots__ = (
        "_files",
        "_find",
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
        deadline: float,
        attempt: int = 1,
        max_attempts: int = 1,
        tenant: str = "default",
        stamp: int = 0,
        traceparent: str | None = None,
        find: Find | None = None,
        store: "Store | None" = None,
        keeper: "Keeper | None" = None,
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

    @property
    def log(self) -> Log:
        """Lines for whoever reads the job's stream."""
        if self._log is None:
            self._log = Log(self.sink.log)
        return self._log

    @property
    def files(self) -> "JobFiles":
        """Uploads and other jobs' files to read, and this job's own to write."""
        if self._files is None:
            from tandem_worker.files import JobFiles  # noqa: PLC0415 - most jobs touch no file

            find = None if self._find is None else partial(self._find, tenant=self.tenant)
            self._files = JobFiles(self.resources.files, self.id, self.stamp, tenant=self.tenant, find=find)
        return self._files

    @property
    def written(self) -> list[Any]:
        """Views of the files this attempt wrote, for its finish."""
        return [] if self._files is None else self._files.written

    @property
    def steps(self) -> "Steps":
        """What its steps have returned, in this attempt and in earlier ones."""
        if self._steps is None:
            from tandem_worker.steps import LocalSteps, Steps  # noqa: PLC0415 - most jobs have no steps

            self._steps = Steps(self._store or LocalSteps({}))
        return self._steps

    @overload
    async def step(self, name: str, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def step(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What `function(*args, **kwargs)` returns: called once a job, a later attempt gets the kept result instead.

        It is `async def`, or a plain function, which is called in a thread. The result is JSON of at most 256 KiB, and
        comes back as that JSON says, in the type that the function is annotated to return. What it raises is raised,
        and nothing kept. Raises TypeError for a result that is no JSON, Permanent `too_large` and, for a name that
        this attempt has used, `step_repeated`.
        """
        from tandem_worker.steps import Result, run  # noqa: PLC0415 - most jobs have no steps

        result = Result(name, function)
        return await run(self.steps, name, result, partial(function, *args, **kwargs), self.resources.threads)

    def lock(self, name: str, *, wait: Duration | None = None) -> "Lock":
        """`async with job.lock("name") as lock`: no other job of the tenant is inside of that name meanwhile.

        Waits for at most `wait`, or as long as the job may run, in order of arrival; then raises TaskError
        `lock_timeout`, which is retried. Not reentrant. When the lock is lost, so is the attempt: its code is
        cancelled.
        """
        from tandem_worker.locks import LocalLocks, Lock  # noqa: PLC0415 - most jobs take no lock

        if self._keeper is None:
            self._keeper = LocalLocks()
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

    async def progress(self, current: float, total: float | None = None, message: str | None = None) -> None:
        """Tell how far the job is. Cheap to call often: clients see the newest state, not each one."""
        await self.sink.progress(progress_body(current, total, message))

    async def emit(self, item: Any) -> None:
        """Stream one item to the clients; waits while they have many to fetch.

        Raises TypeError for what JSON cannot hold, and TaskError `too_large` for an item above 1 MiB.
        """
        await self.sink.output(item_body(item))


def progress_body(current: float, total: float | None, message: str | None) -> bytes:
    """The JSON of a progress report. Raises TypeError for what is no finite number."""
    for number in (current,) if total is None else (current, total):
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise TypeError(f"progress counts in finite numbers, {number!r} is none")
    text = None if message is None else _readable(str(message))[:MAX_MESSAGE]
    return to_json({"current": current, "total": total, "message": text})


def item_body(item: Any) -> bytes:
    """The JSON of one output item, see `Job.emit`."""
    body = encode(item)
    if len(body) > MAX_ITEM:
        raise TaskError("too_large", f"an output item has {len(body)} bytes, the limit is {MAX_ITEM}", retryable=False)
    return body


def log_body(level: str, message: str, fields: dict[str, Any]) -> bytes:
    """The JSON of one log entry, whatever is in it; cut to MAX_LOG bytes with `"truncated": true`.

    A field named `level` or `message` gets an underscore appended, since those two are the entry's own.
    """
    text = _readable(_text(message))
    entry = {"level": level, "message": text}
    entry.update({f"{key}_" if key in entry else _readable(key): value for key, value in fields.items()})
    try:
        body = to_json(entry, inf_nan_mode="strings", fallback=_text)
    except Exception:  # noqa: BLE001 - a log call must not end a job, and a foreign __str__ may raise anything
        entry = {key: _readable(_text(value)) for key, value in entry.items()}
        body = to_json(entry)
    if len(body) <= MAX_LOG:
        return body
    # A character takes at most 6 bytes as JSON (\u001f), so this fits in any case.
    return to_json({"level": level, "message": text[: MAX_LOG // 8], "truncated": True})


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - likewise
        return f"<unprintable {type(value).__name__}>"


def _readable(text: str) -> str:
    # Lone surrogates (from undecodable file names, say) are no UTF-8.
    return text.encode(errors="backslashreplace").decode()
