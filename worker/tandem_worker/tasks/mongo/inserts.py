"""The inserts of one job into a MongoDB collection, applied once: ids, batches, and what was refused."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from tandem_worker.connectors.mongo.connections import MongoConnection, Rejected, Target
from tandem_worker.connectors.mongo.extended_json import derived_id

BATCH = 1000  # documents that are inserted at once
BATCH_BYTES = 8 << 20  # likewise, as they stand in the file
SHOWN = 100  # refused documents that are told of; all are counted


class Entry(NamedTuple):
    """One document of a file, or what is wrong with it; `number` counts lines (rows, elements of an array) from 1."""

    number: int
    document: dict[str, Any] | None
    problem: str
    size: int  # bytes in the file, roughly


def _unheard(number: int, reason: str) -> None:
    """For whoever asks `insert` itself what was refused."""


class Inserts:
    """Counts what is `inserted`, by this attempt or an earlier one, and what is `bad`; `refuse` hears of the latter."""

    def __init__(
        self,
        connection: MongoConnection,
        target: Target,
        job: str,
        refuse: Callable[[int, str], None] = _unheard,
    ) -> None:
        self.inserted = 0
        self.bad = 0
        self._connection = connection
        self._target = target
        self._job = job
        self._refuse = refuse
        self._repeated: bool | None = (
            None  # whether an earlier attempt has begun; None: nobody needed to know
        )

    async def insert(self, entries: Sequence[Entry]) -> list[Rejected]:
        """Insert the documents at once; those that were refused."""
        documents, derived = [], set()
        for place, entry in enumerate(entries):
            document = entry.document or {}
            if "_id" not in document:
                derived.add(place)
                document = {"_id": derived_id(self._job, entry.number), **document}
            documents.append(document)
        if len(derived) < len(documents) and self._repeated is None:
            # Ids of the client's own choice do not tell whose documents they are: a note does.
            self._repeated = await self._connection.begin(self._target, self._job)
        rejected = await self._connection.insert(
            self._target, documents, derived=derived, repeated=bool(self._repeated)
        )
        self.inserted += len(documents) - len(rejected)
        return rejected

    async def add(self, batch: Sequence[Entry]) -> None:
        """Insert those of a batch that are documents, and count the others as bad."""
        for entry in batch:
            if entry.document is None:
                self._bad(entry.number, entry.problem)
        good = [entry for entry in batch if entry.document is not None]
        if good:
            for one in await self.insert(good):
                self._bad(good[one.place].number, one.reason)

    def _bad(self, number: int, reason: str) -> None:
        self.bad += 1
        if self.bad <= SHOWN:
            self._refuse(number, reason)


def next_batch(entries: Iterator[Entry]) -> list[Entry]:
    """The next of a file's entries, as many as are inserted at once; none at the end."""
    batch: list[Entry] = []
    size = 0
    for entry in islice(entries, BATCH):
        batch.append(entry)
        size += entry.size
        if size >= BATCH_BYTES:
            break
    return batch
