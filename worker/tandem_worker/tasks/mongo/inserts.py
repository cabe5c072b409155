"""The inserts of one job into a MongoDB collection, applied once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tandem_worker.connectors.mongo.connection import CollectionRef, MongoConnection, Rejected
from tandem_worker.connectors.mongo.extended_json import derived_id

BATCH_DOCUMENTS = 1000
BATCH_BYTES = 8 << 20  # in the file
MAX_REPORTED = 100  # refused documents that are reported; all are counted


class NumberedDocument(NamedTuple):
    """A document, or the problem with it, and its line in the file (or row, or element), from 1."""

    number: int
    document: dict[str, Any] | None
    problem: str = ""
    size: int = 0  # bytes in the file, roughly


class Inserts:
    """Counts documents: `inserted` by any attempt, and `bad` ones, which `report` receives."""

    def __init__(
        self,
        connection: MongoConnection,
        target: CollectionRef,
        job: str,
        report: Callable[[int, str], None],
    ) -> None:
        self.inserted = 0
        self.bad = 0
        self._connection = connection
        self._target = target
        self._job = job
        self._report = report
        self._repeated: bool | None = None  # whether an earlier attempt began; None: not asked yet

    async def insert(self, documents: Sequence[NumberedDocument]) -> list[Rejected]:
        """Insert the documents in one command; returns those that the server refused."""
        given, derived = [], set()
        for index, (number, document, *_) in enumerate(documents):
            fields = document or {}
            if "_id" not in fields:
                derived.add(index)
                fields = {"_id": derived_id(self._job, number), **fields}
            given.append(fields)
        if len(derived) < len(given) and self._repeated is None:
            # An id that the client chose does not show which job inserted it: leave a record.
            self._repeated = await self._connection.begin(self._target, self._job)
        rejected = await self._connection.insert(
            self._target, given, derived=derived, repeated=bool(self._repeated)
        )
        self.inserted += len(given) - len(rejected)
        return rejected

    async def add(self, batch: Sequence[NumberedDocument]) -> None:
        """Insert the valid documents of a batch, and count the others as bad."""
        for item in batch:
            if item.document is None:
                self._count_bad(item.number, item.problem)
        good = [item for item in batch if item.document is not None]
        if good:
            for rejected in await self.insert(good):
                self._count_bad(good[rejected.position].number, rejected.reason)

    def _count_bad(self, number: int, reason: str) -> None:
        self.bad += 1
        if self.bad <= MAX_REPORTED:
            self._report(number, reason)
