"""Files as a task sees them: references, reading what was uploaded or produced, writing what this job produces."""

import mimetypes
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from tandem_shared.errors import NotFound, TooLarge
from tandem_shared.files.names import OCTET_STREAM, job_path, name_problem
from tandem_shared.files.store import FileStore, WriteResult
from tandem_shared.files.uploads import find_upload
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.view import JobFile
from tandem_worker.errors import Permanent

READ_LIMIT = 64 << 20  # bytes that `read` gives at once unless told otherwise
MAX_FILES = 10_000  # of one job: their names stand in its record


class FileRef(BaseModel):
    """A file reference. On input only `file` counts, so one job's result can be the next's `source` as it stands."""

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
    """One attempt's way to the file store: it reads what its tenant may read and writes in a place of its own.

    `find` looks another job of the same tenant up, for references of the form `<job id>/<name>`.
    Errors are the kind that no further attempt helps: `file_not_found`, `invalid_file_name`,
    `too_large`; a store that does not answer raises shared.errors.Unavailable.
    """

    def __init__(
        self,
        store: FileStore,
        job: str,
        stamp: int,
        *,
        tenant: str = "default",
        find: Callable[[str], Awaitable[Record | None]] | None = None,
    ) -> None:
        self._store = store
        self._job = job
        self._stamp = stamp  # of the claim, µs
        self._tenant = tenant
        self._find = find
        self._names: set[str] = set()
        self._folders: set[str] = set()  # every part of a name before a slash of it
        self._last: tuple[str, tuple[str, FileRef]] | None = (
            None  # where the file is that `range` read last
        )
        self._views: dict[str, JobFile] = {}

    @property
    def written(self) -> list[dict[str, Any]]:
        """`{name, size, sha256, content_type, url}` of each file written, as the record's `files` publishes them."""
        return [msgspec.structs.asdict(view) for view in self._views.values()]

    async def stat(self, reference: Reference) -> FileRef:
        """The reference with all that is known of the file."""
        return (await self._place(reference))[1]

    async def read(self, reference: Reference, limit: int = READ_LIMIT) -> bytes:
        """The whole file, at most `limit` bytes: `too_large` above, and then `open` is for it."""
        path, found = await self._place(reference)
        try:
            return await self._store.load(path, limit)
        except TooLarge as error:
            raise Permanent("too_large", f"{error}: {found.file}") from None
        except NotFound:
            raise _missing(found.file) from None

    async def open(self, reference: Reference, start: int = 0) -> AsyncIterator[bytes]:
        """The file's bytes from `start` on, in pieces of about 1 MiB: `async for piece in job.files.open(…)`."""
        path, found = await self._place(reference)
        try:
            async for piece in self._store.read(path, start, found.size):
                yield piece
        except NotFound:
            raise _missing(found.file) from None

    async def range(self, reference: Reference, start: int, end: int) -> bytes:
        """The file's bytes from `start` up to `end` (exclusive), which may be beyond its last."""
        ref = reference if isinstance(reference, FileRef) else FileRef.model_validate(reference)
        if self._last is None or self._last[0] != ref.file:
            self._last = ref.file, await self._place(ref)
        path, found = self._last[1]
        stop = end if found.size is None else min(end, found.size)
        try:
            return b"".join([piece async for piece in self._store.read(path, start, stop)])
        except NotFound:
            raise _missing(found.file) from None

    async def write(
        self,
        name: str,
        data: bytes | bytearray | memoryview | AsyncIterable[bytes],
        content_type: str | None = None,
        *,
        limit: int | None = None,
    ) -> FileRef:
        """Store a file that this job produces; it is published when the job succeeds. `name` may have `/` in it.

        A second write of a name replaces the first. Without a `content_type` the name's extension
        tells it. More than `limit` bytes are `too_large`.
        """
        if not isinstance(data, bytes | bytearray | memoryview | AsyncIterable):
            raise TypeError(
                f"a file is made of bytes or of an async iterable of bytes, not of {type(data).__name__}"
            )
        self._claim(name)
        if isinstance(data, bytearray | memoryview):
            data = bytes(data)
        content_type = content_type or mimetypes.guess_type(name)[0] or OCTET_STREAM
        try:
            stored: WriteResult = await self._store.write(
                job_path(self._job, self._stamp, name),
                data,
                limit=limit,
                name=name,
                content_type=content_type,
            )
        except TooLarge as error:
            raise Permanent("too_large", f"{error}: {name}") from None
        view = JobFile(
            name=name,
            size=stored.size,
            sha256=stored.sha256,
            content_type=content_type,
            url=f"/v1/jobs/{self._job}/files/{quote(name)}",
        )
        self._views[name] = view
        return _reference(self._job, view)

    def _claim(self, name: str) -> None:
        reason, parents = name_problem(name), set[str]()
        if reason is None:
            # Local stores have directories: no name can be both a file and a part of another name.
            parents = {name[:end] for end, letter in enumerate(name) if letter == "/"}
            clash = name in self._folders or not parents.isdisjoint(self._names)
            reason = (
                "is a part of another file's name, or has another file's as a part"
                if clash
                else None
            )
        if reason is not None:
            raise Permanent("invalid_file_name", f"the file name {name[:100]!r} {reason}")
        if name not in self._names and len(self._names) >= MAX_FILES:
            raise Permanent("too_large", f"a job produces at most {MAX_FILES} files")
        self._names.add(name)
        self._folders |= parents

    async def _place(self, reference: Reference) -> tuple[str, FileRef]:
        """Path in the store, and the full reference."""
        ref = reference if isinstance(reference, FileRef) else FileRef.model_validate(reference)
        job, slash, name = ref.file.partition("/")
        if not slash:
            return await self._upload(ref.file)
        if job == self._job and name in self._views:
            return job_path(job, self._stamp, name), _reference(job, self._views[name])
        # What is no id of ours is not asked for: it would become part of a key.
        record = (
            await self._find(job)
            if self._find is not None and job.isalnum() and job.isascii()
            else None
        )
        if record is None or not record.files or not record.attempts:
            raise _missing(ref.file)
        view = next((one for one in record.produced_files() if one.name == name), None)
        if view is None:
            raise _missing(ref.file)
        return job_path(record.id, record.attempts[-1].began, name), _reference(record.id, view)

    async def _upload(self, id: str) -> tuple[str, FileRef]:
        try:
            upload = await find_upload(self._store, id, tenant=self._tenant)
        except NotFound:
            raise _missing(id) from None
        return upload.path, FileRef(
            file=upload.id,
            name=upload.name,
            size=upload.size,
            sha256=upload.sha256,
            content_type=upload.content_type,
            url=f"/v1/files/{upload.id}",
        )


def _reference(job: str, view: JobFile) -> FileRef:
    return FileRef(
        file=f"{job}/{view.name}",
        name=view.name,
        size=view.size,
        sha256=view.sha256,
        content_type=view.content_type,
        url=view.url,
    )


def _missing(file: str) -> Permanent:
    return Permanent("file_not_found", f"there is no file {file[:200]!r}, or it has expired")
