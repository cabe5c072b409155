"""The job as plain `def` code sees it, in a thread or a process of its own: the same names, without `await`."""

import io
from collections.abc import Callable, Generator, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Self, TypeVar

from tandem_shared.times import Duration
from tandem_worker.jobs.channel import Channel
from tandem_worker.jobs.reports import Log, item_body, progress_body

if TYPE_CHECKING:
    from tandem_worker.jobs.files import FileRef

P = ParamSpec("P")
T = TypeVar("T")

PIECE = 256 << 10  # bytes of a file handed over at once


class SyncFiles:
    """The files of a job, as `job.files` of an async task has them."""

    __slots__ = ("_channel", "_left")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._left: list[int] = []  # handles that are read no more; told with the next `open`

    def stat(self, ref: Any) -> "FileRef":
        """The reference with all that is known of the file: name, size in bytes, sha256, content type."""
        return _reference(self._channel.call("stat", _plain(ref))[0])

    def read(self, ref: Any) -> bytes:
        """A whole file that fits in memory, see `JobFiles.read`."""
        return self._channel.call("read", _plain(ref))[1]

    def open(self, ref: Any, start: int = 0) -> Generator[bytes, None, None]:
        """A file of any size, chunk by chunk, from `start` on."""
        left, self._left = self._left, []
        handle, _ = self._channel.call("open", [_plain(ref), start, left])
        try:
            while chunk := self._channel.call("next", handle)[1]:
                yield chunk
        finally:
            # No call: this may run whenever the interpreter collects garbage, inside of another
            # call or another job.
            self._left.append(handle)

    def seek(self, ref: Any) -> io.BufferedReader:
        """A file for what wants to `seek` in it: each part is fetched from the store when it is read."""
        found = self.stat(ref)
        return io.BufferedReader(_Source(self._channel, _plain(found), found.size or 0), PIECE)

    def write(
        self, name: str, data: bytes | Iterable[bytes], content_type: str | None = None
    ) -> "FileRef":
        """Write a file of the job from bytes, or from chunks as they come; returns its reference."""
        made = self.create(name, content_type)
        for chunk in (data,) if isinstance(data, bytes | bytearray | memoryview) else data:
            made.write(chunk)
        return made.commit()

    def create(self, name: str, content_type: str | None = None) -> "Writer":
        """A file of the job to be written piece by piece, and there after its `commit()`."""
        return Writer(self._channel, self._channel.call("create", [name, content_type])[0])


class Writer:
    """A file that is being written; without a `commit` it is dropped when the job ends."""

    __slots__ = ("_channel", "_filled", "_handle", "size")

    def __init__(self, channel: Channel, handle: int) -> None:
        self._channel = channel
        self._handle = handle
        self._filled = bytearray()
        self.size = 0  # bytes written

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take all of the data; what is small is handed over together with what follows."""
        self.size += len(data)
        self._filled += data
        if len(self._filled) >= PIECE:
            whole = memoryview(self._filled)
            for start in range(0, len(whole), PIECE):
                self._channel.call("append", self._handle, bytes(whole[start : start + PIECE]))
            self._filled = bytearray()
        return len(data)

    def flush(self) -> None:
        """Nothing: libraries call it, and only `commit` makes a file appear."""

    def commit(self) -> "FileRef":
        """The file is whole; returns its reference."""
        if self._filled:
            self._channel.call("append", self._handle, bytes(self._filled))
        return _reference(self._channel.call("commit", self._handle)[0])


class _Source(io.RawIOBase):
    """A stored file of `size` bytes, read in parts."""

    def __init__(self, channel: Channel, ref: Any, size: int) -> None:
        self._channel = channel
        self._ref = ref
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a file has no place before its start")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + min(len(buffer), PIECE), self._size)
        if end <= self._at:
            return 0
        piece = self._channel.call("range", [self._ref, self._at, end])[1]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


class SyncJob:
    """One attempt of one job for plain `def` code; see `Job`. `http`, `sql` and `mongo` need an `async def` task.

    Once the job is over (`cancelled`), every report raises asyncio.CancelledError, so that a loop
    which reports now and then ends by itself. A thread cannot be stopped otherwise: long loops
    should report or look at `cancelled`.
    """

    __slots__ = (
        "_channel",
        "attempt",
        "deadline",
        "files",
        "id",
        "log",
        "max_attempts",
        "task",
        "tenant",
        "traceparent",
    )

    def __init__(
        self,
        channel: Channel,
        *,
        id: str,
        task: str,
        deadline: float,
        attempt: int,
        max_attempts: int,
        tenant: str,
        traceparent: str | None,
    ) -> None:
        self._channel = channel
        self.id = id
        self.task = task
        self.deadline = deadline
        self.attempt = attempt
        self.max_attempts = max_attempts
        self.tenant = tenant
        self.traceparent = traceparent
        self.log = Log(lambda body: channel.send("log", body))
        self.files = SyncFiles(channel)

    @property
    def cancelled(self) -> bool:
        """The attempt is over: whatever this code still does counts no more."""
        return self._channel.is_over()

    def progress(
        self, current: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Tell how far the job is, see `Job.progress`."""
        self._channel.send("progress", progress_body(current, total, message))

    def emit(self, item: Any) -> None:
        """Stream one item to the clients, see `Job.emit`."""
        self._channel.send("output", item_body(item))

    def step(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something once a job, here and now, see `Job.step`. The function is a plain one."""
        from tandem_worker.jobs.steps import Result, is_async, run_here  # noqa: PLC0415 - most jobs have no steps

        if is_async(function):
            raise TypeError("a step that is async def needs an async def task")
        result: T = run_here(
            self._channel, name, Result(name, function), partial(function, *args, **kwargs)
        )
        return result

    def lock(self, name: str, *, wait: Duration | None = None) -> "SyncLock":
        """`with job.lock("name") as lock`, see `Job.lock`. When it is lost, `cancelled` says so and reports raise."""
        return SyncLock(self._channel, name, wait)

    @property
    def http(self) -> NoReturn:
        raise TypeError(
            "job.http needs an async def task: plain def code runs outside of the event loop"
        )

    def sql(self, name: str) -> NoReturn:  # noqa: ARG002 - the call is `Job.sql`'s
        raise TypeError(
            "job.sql needs an async def task: plain def code runs outside of the event loop"
        )

    def mongo(self, name: str) -> NoReturn:  # noqa: ARG002 - likewise
        raise TypeError(
            "job.mongo needs an async def task: plain def code runs outside of the event loop"
        )


class SyncLock:
    """A lock of the job, held within `with`; see `tandem_worker.jobs.locks.Lock`."""

    __slots__ = ("_channel", "_wait", "fence", "name")

    def __init__(self, channel: Channel, name: str, wait: Duration | None) -> None:
        from tandem_worker.jobs.locks import check  # noqa: PLC0415 - most jobs take no lock

        self._channel = channel
        self.name, self._wait = check(name, wait)
        self.fence = 0  # until it is held

    def __enter__(self) -> Self:
        if self.fence:
            raise RuntimeError(
                f"the lock {self.name!r} was entered before: call job.lock for each `with`"
            )
        self.fence = self._channel.call("lock", [self.name, self._wait])[0]
        return self

    def __exit__(
        self,
        type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.call("unlock", [self.fence, error is None])


def _plain(ref: Any) -> Any:
    return ref.model_dump(mode="json") if hasattr(ref, "model_dump") else ref


def _reference(fields: dict[str, Any]) -> "FileRef":
    from tandem_worker.jobs.files import FileRef  # noqa: PLC0415 - most jobs touch no file

    return FileRef.model_validate(fields)
