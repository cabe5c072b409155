"""The job as `def` code sees it, in a thread or a child process: the same names without `await`."""

import io
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, ParamSpec, Self, TypeVar

from tandem_shared.times import Duration
from tandem_worker.errors import Misuse
from tandem_worker.jobs.channel import Channel
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.info import JobInfo
from tandem_worker.jobs.locks import checked, used_before
from tandem_worker.jobs.reports import JobLog, item_body, progress_body
from tandem_worker.jobs.steps import StepResult, is_async, run_sync_step

P = ParamSpec("P")
T = TypeVar("T")

PIECE_BYTES = 256 << 10  # of a file, sent at once


class SyncFiles:
    """The files of a job, like `job.files` of an async task."""

    __slots__ = ("_channel", "_closed")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._closed: list[int] = []  # handles no longer read; sent with the next `open`

    def stat(self, ref: Any) -> FileRef:
        """The reference with everything known about the file: name, size, sha256, content type."""
        return FileRef.model_validate(self._channel.call("stat", ref))

    def read(self, ref: Any) -> bytes:
        """A whole file that fits in memory, see `JobFiles.read`."""
        return bytes(self._channel.call("read", ref))

    def open(self, ref: Any, start: int = 0) -> Generator[bytes, None, None]:
        """A file of any size, chunk by chunk, from `start` on."""
        closed, self._closed = self._closed, []
        handle = self._channel.call("open", [ref, start, closed])
        try:
            while chunk := self._channel.call("next", handle):
                yield chunk
        finally:
            # No call here: the garbage collector may run this during another call or another job.
            self._closed.append(handle)

    def seek(self, ref: Any) -> io.BufferedReader:
        """A file for libraries that `seek`: each part is fetched from the store when it is read."""
        found = self.stat(ref)
        source = _StoredFile(self._channel, found, found.size or 0)
        return io.BufferedReader(source, PIECE_BYTES)

    def write(
        self, name: str, data: bytes | Iterable[bytes], content_type: str | None = None
    ) -> FileRef:
        """Write a file of the job from bytes, or from chunks as they come; return its reference."""
        made = self.create(name, content_type)
        for chunk in (data,) if isinstance(data, bytes | bytearray | memoryview) else data:
            made.write(chunk)
        return made.commit()

    def create(self, name: str, content_type: str | None = None) -> "FileWriter":
        """A file of the job to be written piece by piece; it exists after its `commit()`."""
        return FileWriter(self._channel, self._channel.call("create", [name, content_type]))


class FileWriter:
    """A file that is being written; without a `commit` it is dropped when the job ends."""

    __slots__ = ("_buffer", "_channel", "_handle", "size")

    def __init__(self, channel: Channel, handle: int) -> None:
        self._channel = channel
        self._handle = handle
        self._buffer = bytearray()
        self.size = 0  # bytes written

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take all of the data; small pieces are sent together with those that follow."""
        self.size += len(data)
        self._buffer += data
        if len(self._buffer) >= PIECE_BYTES:
            self._send()
        return len(data)

    def _send(self) -> None:
        data = memoryview(self._buffer)
        for start in range(0, len(data), PIECE_BYTES):
            piece = bytes(data[start : start + PIECE_BYTES])
            self._channel.call("append", self._handle, piece)
        self._buffer = bytearray()

    def flush(self) -> None:
        """Do nothing: libraries call it, and only `commit` makes a file appear."""

    def commit(self) -> FileRef:
        """Finish the file; return its reference."""
        self._send()
        return FileRef.model_validate(self._channel.call("commit", self._handle))


class _StoredFile(io.RawIOBase):
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
            raise ValueError(f"cannot seek to {start + offset}: a file starts at 0")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + min(len(buffer), PIECE_BYTES), self._size)
        if end <= self._at:
            return 0
        piece = self._channel.call("range", [self._ref, self._at, end])
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


@dataclass(slots=True, kw_only=True, eq=False)
class SyncJob(JobInfo):
    """One attempt of one job for `def` code, see `Job`; `http`, `sql` and `mongo` need `async def`.

    Once the job is over (`cancelled`), every report raises asyncio.CancelledError. A thread cannot
    be stopped in any other way, so long loops should report regularly, or check `cancelled`.
    """

    channel: Channel
    log: JobLog = field(init=False)
    files: SyncFiles = field(init=False)

    def __post_init__(self) -> None:
        self.log = JobLog(partial(self.channel.send, "log"))
        self.files = SyncFiles(self.channel)

    @property
    def cancelled(self) -> bool:
        """Whether the attempt is over: whatever this code still does is discarded."""
        return self.channel.is_over()

    def progress(
        self, current: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Report how far the job is, see `Job.progress`."""
        self.channel.send("progress", progress_body(current, total, message))

    def emit(self, item: Any) -> None:
        """Stream one item to clients, see `Job.emit`."""
        self.channel.send("output", item_body(item))

    def step(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a plain function once per job, here and now, see `Job.step`."""
        if is_async(function):
            raise Misuse("a step that is async def needs an async def task")
        call = partial(function, *args, **kwargs)
        result: T = run_sync_step(self.channel, name, StepResult(name, function), call)
        return result

    def lock(self, name: str, *, wait: Duration | None = None) -> "SyncLock":
        """`with job.lock("name") as lock`, see `Job.lock`. Losing it sets `cancelled`."""
        return SyncLock(self.channel, name, wait)

    @property
    def http(self) -> NoReturn:
        raise _needs_async("http")

    def sql(self, name: str) -> NoReturn:  # noqa: ARG002 - the signature of `Job.sql`
        raise _needs_async("sql")

    def mongo(self, name: str) -> NoReturn:  # noqa: ARG002 - the signature of `Job.mongo`
        raise _needs_async("mongo")


class SyncLock:
    """A lock of the job, held within `with`; see `tandem_worker.jobs.locks.Lock`."""

    __slots__ = ("_channel", "_wait", "fence", "name")

    def __init__(self, channel: Channel, name: str, wait: Duration | None) -> None:
        self._channel = channel
        self.name, self._wait = checked(name, wait)
        self.fence = 0  # until it is held

    def __enter__(self) -> Self:
        if self.fence:
            raise used_before(self.name)
        self.fence = self._channel.call("lock", [self.name, self._wait])
        return self

    def __exit__(self, _type: object, error: object, _trace: object) -> None:
        self._channel.call("unlock", [self.fence, error is None])


def _needs_async(name: str) -> Misuse:
    return Misuse(f"job.{name} needs an async def task: def code runs outside the event loop")
