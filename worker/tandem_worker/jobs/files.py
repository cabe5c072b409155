"""Files as a task sees them: uploads and files of other jobs to read, its own files to write."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from tandem_shared.errors import NotFound, TooLarge
from tandem_shared.files.headers import media_type
from tandem_shared.files.names import job_path, name_problem
from tandem_shared.files.store import FileStore
from tandem_shared.files.uploads import find_upload
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.view import JobFile
from tandem_worker.errors import Permanent

MAX_READ_BYTES = 64 << 20  # of one `read`, by default
MAX_FILES = 10_000  # of one job: its record lists them


class FileRef(BaseModel):
    """A file reference. Input needs only `file`, so one job's result can be another's `source`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    file: str = Field(
        min_length=1, max_length=1000, description="an upload's id, or `<job id>/<name>`"
    )
    name: str | None = None
    size: int | None = Field(default=None, description="bytes")
    sha256: str | None = Field(default=None, description="hexadecimal")
    content_type: str | None = None
    url: str | None = Field(default=None, description="path of the API that serves it")


Reference = FileRef | Mapping[str, Any]


class JobFiles:
    """One attempt's access to the file store: reads its tenant's files, and writes its own.

    `find` looks up another job of the same tenant, for references of the form `<job id>/<name>`.
    Raises Permanent `file_not_found`, `invalid_file_name` and `too_large`, and Unavailable when the
    store does not answer.
    """

    def __init__(
        self,
        store: FileStore,
        job: str,
        stamp: int,
        tenant: str,
        find: Callable[[str], Awaitable[Record | None]],
    ) -> None:
        self._store, self._job, self._tenant, self._find = store, job, tenant, find
        self._stamp = stamp  # of the claim, µs
        self._names: set[str] = set()
        self._folders: set[str] = set()  # what comes before each `/` of a name
        self._last: tuple[str, tuple[str, FileRef]] | None = None  # that `range` read
        self._written: dict[str, JobFile] = {}

    @property
    def written(self) -> list[JobFile]:
        """The files written so far, as the record's `files` publishes them."""
        return list(self._written.values())

    async def stat(self, reference: Reference) -> FileRef:
        """The reference with everything known about the file."""
        return (await self._locate(reference))[1]

    async def read(self, reference: Reference, limit: int = MAX_READ_BYTES) -> bytes:
        """The whole file. Raises Permanent `too_large` above `limit` bytes; `open` has no limit."""
        path, found = await self._locate(reference)
        with _permanent(found.file):
            return await self._store.load(path, limit)

    async def open(self, reference: Reference, start: int = 0) -> AsyncIterator[bytes]:
        """The file from `start` on, in pieces of about 1 MiB, for `async for`."""
        path, found = await self._locate(reference)
        with _permanent(found.file):
            async for piece in self._store.read(path, start, found.size):
                yield piece

    async def range(self, reference: Reference, start: int, end: int) -> bytes:
        """The file's bytes from `start` to `end` (exclusive), which may be beyond its last one."""
        ref = reference if isinstance(reference, FileRef) else FileRef.model_validate(reference)
        if self._last is None or self._last[0] != ref.file:
            self._last = ref.file, await self._locate(ref)
        path, found = self._last[1]
        stop = end if found.size is None else min(end, found.size)
        with _permanent(found.file):
            return b"".join([piece async for piece in self._store.read(path, start, stop)])

    async def write(
        self,
        name: str,
        data: bytes | bytearray | memoryview | AsyncIterable[bytes],
        content_type: str | None = None,
        *,
        limit: int | None = None,
    ) -> FileRef:
        """Store a file of this job; it is published when the job succeeds. `name` may contain `/`.

        A second write of a name replaces the first. The default `content_type` is guessed from the
        name. Raises Permanent `too_large` above `limit` bytes.
        """
        if not isinstance(data, bytes | bytearray | memoryview | AsyncIterable):
            raise TypeError(
                f"a file takes bytes or an async iterable of bytes, not {type(data).__name__}"
            )
        self._claim(name)
        if isinstance(data, bytearray | memoryview):
            data = bytes(data)
        content_type = media_type(content_type, name)
        path = job_path(self._job, self._stamp, name)
        try:
            stored = await self._store.write(
                path, data, limit=limit, name=name, content_type=content_type
            )
        except TooLarge as error:
            raise Permanent("too_large", f"{error}: {name}") from None
        written = self._written[name] = JobFile(
            name=name,
            size=stored.size,
            sha256=stored.sha256,
            content_type=content_type,
            url=f"/v1/jobs/{self._job}/files/{quote(name)}",
        )
        return _reference(self._job, written)

    def _claim(self, name: str) -> None:
        problem = name_problem(name)
        # Local stores have directories: a name cannot be both a file and a directory.
        folders = {name[:end] for end, letter in enumerate(name) if letter == "/"}
        if problem is None and (name in self._folders or not folders.isdisjoint(self._names)):
            problem = "is a file and a directory at once; another file of this job has such a name"
        if problem is not None:
            raise Permanent("invalid_file_name", f"the file name {name[:100]!r} {problem}")
        if name not in self._names and len(self._names) >= MAX_FILES:
            raise Permanent("too_large", f"a job can write at most {MAX_FILES} files")
        self._names.add(name)
        self._folders |= folders

    async def _locate(self, reference: Reference) -> tuple[str, FileRef]:
        """The path in the store, and the full reference."""
        ref = reference if isinstance(reference, FileRef) else FileRef.model_validate(reference)
        job, slash, name = ref.file.partition("/")
        if not slash:
            return await self._locate_upload(ref.file)
        if job == self._job and name in self._written:
            return job_path(job, self._stamp, name), _reference(job, self._written[name])
        # Only something like an id may become part of a Redis key.
        record = await self._find(job) if job.isalnum() and job.isascii() else None
        if record is not None and record.attempts:
            for file in record.produced_files():
                if file.name == name:
                    path = job_path(record.id, record.attempts[-1].began, name)
                    return path, _reference(record.id, file)
        raise _missing(ref.file)

    async def _locate_upload(self, id: str) -> tuple[str, FileRef]:
        claimed_at = self._stamp / 1e6  # what was there when the attempt began stays for all of it
        with _permanent(id):
            upload = await find_upload(self._store, id, tenant=self._tenant, now=claimed_at)
        return upload.path, FileRef(
            file=upload.id,
            name=upload.name,
            size=upload.size,
            sha256=upload.sha256,
            content_type=upload.content_type,
            url=f"/v1/files/{upload.id}",
        )


def _reference(job: str, file: JobFile) -> FileRef:
    return FileRef(file=f"{job}/{file.name}", **msgspec.structs.asdict(file))


@contextmanager
def _permanent(file: str) -> Iterator[None]:
    """Turn the errors of reading a file into errors that are not retried."""
    try:
        yield
    except TooLarge as error:
        raise Permanent("too_large", f"{error}: {file}") from None
    except NotFound:
        raise _missing(file) from None


def _missing(file: str) -> Permanent:
    return Permanent("file_not_found", f"file {file[:200]!r} does not exist, or has expired")
