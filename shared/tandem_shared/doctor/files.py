"""Whether the file store agrees with the queue and the ledger: files that are nobody's, and files that are missing."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import NamedTuple

from tandem_shared.doctor.findings import Finding
from tandem_shared.doctor.ledger import LedgerCheck
from tandem_shared.errors import NotFound
from tandem_shared.files.names import job_path
from tandem_shared.files.store import FileStore
from tandem_shared.files.uploads import belongs_to_upload
from tandem_shared.jobs.record import Record
from tandem_shared.queue.messages import Segment
from tandem_shared.queue.queue import Queue
from tandem_shared.streams.segments import segment_path

MIN_AGE_SECONDS = (
    3600.0  # seconds: what was written since may belong to somebody who has not told yet
)
BATCH_JOBS = 200  # jobs that are asked for at once
MAX_REQUESTS = 8  # objects
MAX_FINDINGS = 5000  # findings


class _Object(NamedTuple):
    path: str
    size: int
    word: str  # what it means if it is not there
    subject: str


class FilesCheck:
    """The look at one store; every method raises Unavailable when it, Redis or the ledger does not answer."""

    def __init__(
        self, store: FileStore, queue: Queue, ledger: LedgerCheck, *, young: float = MIN_AGE_SECONDS
    ) -> None:
        self._store, self._queue, self._ledger, self._young = store, queue, ledger, young

    async def look(self) -> list[Finding]:
        """All that seems not to hold, about MOST at most; to be looked at again."""
        found: list[Finding] = []
        portion: list[str] = []
        async for id in self._old_trees():
            portion.append(id)
            if len(portion) == BATCH_JOBS:
                found += await self._unknown(portion)
                portion = []
            if len(found) >= MAX_FINDINGS:
                return found
        found += await self._unknown(portion)
        async for stat in self._store.list("uploads"):
            if stat.modified < time.time() - self._young:
                found += await self._half(stat.path)
        async for records in self._queue.integrity.with_stored_files():
            found += await self._missing(records)
            if len(found) >= MAX_FINDINGS:
                break
        return found

    async def _old_trees(self) -> AsyncIterator[str]:
        # A listing mostly has the objects of one job together; one that comes again is asked for
        # again.
        before, last, young = time.time() - self._young, "", False
        async for stat in self._store.list("jobs"):
            id = stat.path.split("/")[1]
            if id != last:
                if last and not young:
                    yield last
                last, young = id, False
            young = young or stat.modified >= before
        if last and not young:
            yield last

    async def _unknown(self, ids: Sequence[str]) -> list[Finding]:
        if not ids:
            return []
        there = await self._queue.integrity.existing(ids)
        if rest := [id for id in ids if id not in there]:
            there |= await self._ledger.knows(rest)
        return [Finding("files-without-job", id) for id in dict.fromkeys(ids) if id not in there]

    async def _half(self, path: str) -> list[Finding]:
        _, id, part = path.split("/", 2) if path.count("/") > 1 else ("", "", "")
        if (
            not id
            or part in ("meta.json", "begun.json")
            or await belongs_to_upload(self._store, id, part)
        ):
            return []
        return [Finding("half-upload", path)]

    async def _missing(self, records: Sequence[tuple[Record, Sequence[Segment]]]) -> list[Finding]:
        wanted: list[_Object] = []
        for record, segments in records:
            wanted += [
                _Object(
                    segment_path(record.id, one),
                    one.size,
                    "output-missing",
                    f"{record.id}/{one.first}",
                )
                for one in segments
            ]
            if record.files is not None and record.attempts:
                began = record.attempts[-1].began
                wanted += [
                    _Object(
                        job_path(record.id, began, one.name),
                        one.size,
                        "file-missing",
                        f"{record.id}/{one.name}",
                    )
                    for one in record.produced_files()
                ]
        found: list[Finding] = []
        for start in range(0, len(wanted), MAX_REQUESTS):
            objects = wanted[start : start + MAX_REQUESTS]
            there = await asyncio.gather(*(self._there(one) for one in objects))
            found += [
                Finding(one.word, one.subject)
                for one, is_there in zip(objects, there, strict=True)
                if not is_there
            ]
        return found

    async def _there(self, one: _Object) -> bool:
        try:
            return await self._store.size(one.path) == one.size
        except NotFound:
            return False

    async def again(self, findings: Iterable[Finding], *, mend: bool = False) -> list[Finding]:
        """Those that are still there, and mends them if asked to."""
        still: list[Finding] = []
        for one in findings:
            id = one.subject.partition("/")[0]
            if one.word == "files-without-job":
                if await self._unknown([id]):
                    if mend:
                        await self._store.delete_tree(f"jobs/{id}")
                    still.append(Finding(one.word, id, mended=mend))
            elif one.word == "half-upload":
                if await self._half(one.subject):
                    if mend:
                        await self._store.delete(one.subject)
                    still.append(Finding(one.word, one.subject, mended=mend))
            else:
                still += [
                    now
                    for now in await self._missing(await self._queue.integrity.records([id]))
                    if now == one
                ]
        return still
