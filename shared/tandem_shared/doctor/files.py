"""Checks of the file store: files that belong to nothing, and files that are missing."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import replace

from tandem_shared.doctor.findings import Finding, collect
from tandem_shared.doctor.ledger import LedgerCheck
from tandem_shared.files.names import job_folder, job_path
from tandem_shared.files.store import FileStore
from tandem_shared.files.uploads import belongs_to_upload
from tandem_shared.jobs.record import Record
from tandem_shared.queue.messages import Segment
from tandem_shared.queue.queue import Queue
from tandem_shared.streams.segments import segment_path

MIN_AGE_SECONDS = 3600.0  # younger files may belong to a job or an upload not yet recorded
BATCH_JOBS = 200
MAX_CONCURRENT_CALLS = 8  # to the store

Stored = tuple[Record, Sequence[Segment]]  # a record, and the segments of its output


class FilesCheck:
    """Checks the file store; every method raises Unavailable if a store does not answer."""

    def __init__(
        self,
        store: FileStore,
        queue: Queue,
        ledger: LedgerCheck,
        *,
        min_age: float = MIN_AGE_SECONDS,
    ) -> None:
        self._store, self._queue, self._ledger, self._min_age = store, queue, ledger, min_age

    async def find(self) -> list[Finding]:
        """What seems broken, at most MAX_FINDINGS."""
        return await collect(self._find())

    async def _find(self) -> AsyncGenerator[list[Finding], None]:
        before = await self._queue.clock.earliest() - self._min_age
        async for ids in self._old_jobs(before):
            yield await self._without_job(ids)
        async for stored in self._store.list("uploads"):
            if stored.modified < before:
                yield await self._without_upload(stored.path)
        async for records in self._queue.integrity.with_stored_files():
            yield await self._missing(records)

    async def _old_jobs(self, before: float) -> AsyncIterator[list[str]]:
        """Yield the jobs whose files are all old, in batches; a job may come twice."""
        newest: dict[str, float] = {}  # file of each job of the batch
        async for stored in self._store.list("jobs"):
            id = stored.path.split("/")[1]
            # Listings mostly have the files of a job together.
            if len(newest) >= BATCH_JOBS and id not in newest:
                yield [id for id, modified in newest.items() if modified < before]
                newest = {}
            newest[id] = max(newest.get(id, 0.0), stored.modified)
        yield [id for id, modified in newest.items() if modified < before]

    async def _without_job(self, ids: Sequence[str]) -> list[Finding]:
        known = await self._queue.integrity.existing(ids) if ids else set[str]()
        known |= await self._ledger.known([id for id in ids if id not in known])
        return [Finding("files-without-job", id) for id in ids if id not in known]

    async def _without_upload(self, path: str) -> list[Finding]:
        id, _, part = path.removeprefix("uploads/").partition("/")
        if part in ("", "meta.json", "begun.json") or await belongs_to_upload(
            self._store, id, part
        ):
            return []
        return [Finding("half-upload", path)]

    async def _missing(self, records: Sequence[Stored]) -> list[Finding]:
        expected = [one for stored in records for one in _expected(*stored)]
        found: list[Finding] = []
        for start in range(0, len(expected), MAX_CONCURRENT_CALLS):
            batch = expected[start : start + MAX_CONCURRENT_CALLS]
            sizes = await asyncio.gather(*(self._store.size(path) for path, _, _ in batch))
            found += [
                finding
                for (_, size, finding), stored in zip(batch, sizes, strict=True)
                if stored != size
            ]
        return found

    async def recheck(self, suspects: Sequence[Finding], *, fix: bool = False) -> list[Finding]:
        """The suspects that are still broken, fixed if possible and asked for."""
        still: list[Finding] = []
        for suspect in suspects:
            still += [
                replace(finding, fixed=fix and await self._fix(finding))
                for finding in await self._recheck(suspect)
            ]
        return still

    async def _recheck(self, finding: Finding) -> list[Finding]:
        if finding.code == "files-without-job":
            return await self._without_job([finding.subject])
        if finding.code == "half-upload":
            return await self._without_upload(finding.subject)
        job = finding.subject.partition("/")[0]
        missing = await self._missing(await self._queue.integrity.records([job]))
        return [one for one in missing if one == finding]

    async def _fix(self, finding: Finding) -> bool:
        if finding.code == "files-without-job":
            await self._store.delete_tree(job_folder(finding.subject))
        elif finding.code == "half-upload":
            await self._store.delete(finding.subject)
        else:
            return False
        return True


def _expected(record: Record, segments: Sequence[Segment]) -> Iterator[tuple[str, int, Finding]]:
    """The path and size of each object that a job refers to, and the finding if it is not there."""
    for segment in segments:
        finding = Finding("output-missing", f"{record.id}/{segment.first}")
        yield segment_path(record.id, segment), segment.size, finding
    if record.files is not None and record.attempts:
        for file in record.produced_files():
            finding = Finding("file-missing", f"{record.id}/{file.name}")
            yield job_path(record.id, record.attempts[-1].began, file.name), file.size, finding
