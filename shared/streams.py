"""A job's stream: one order for what happened to it and what it said, the same from every reader and every replica.

Nothing is stored for the stream itself: `state` entries follow from the record, `progress`, `log` and `output` stand
under stamps of the same clock, the newest few MiB in Redis and all before them in segments in the file store. An
entry's id is its stamp and its index below that stamp, wherever it stands.
"""

import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import NamedTuple, Protocol

from shared.errors import BadCursor
from shared.files import FileStore
from shared.jobs import Record, rfc3339
from shared.queue import Chunk, Segment
from shared.segments import read_segment

TYPES = ("state", "progress", "log", "output", "end")
SAID = frozenset({"progress", "log", "output"})  # what the job itself says
FEW, MANY = 16, 256  # chunks a reading: few of up to 64 KiB each, many where they are small
SMALL = 64 << 10  # bytes of a reading that make the next one a larger one
_ID = re.compile(r"([0-9]{16})-([0-9]{5})", re.ASCII)


class Position(NamedTuple):
    """A place in a stream: the stamp in µs, and which of the items below it."""

    stamp: int
    item: int

    def __str__(self) -> str:
        return f"{self.stamp:016d}-{self.item:05d}"


START = Position(0, 0)


def position(text: str) -> Position:
    """The place that an entry's id names. Raises BadCursor."""
    match = _ID.fullmatch(text)
    if match is None:
        raise BadCursor
    return Position(int(match[1]), int(match[2]))


def end_of(record: Record) -> Position | None:
    """Where `end` stands; None as long as the job is not final."""
    return Position(record.ended, 1) if record.done and record.ended is not None else None


def refuse_unknown(record: Record, place: Position) -> None:
    """Raises BadCursor for a place that this job's stream cannot have had."""
    last = end_of(record) or Position(max(record.stamp, record.output), 99_999)
    if not Position(record.submitted, 0) <= place <= last:
        raise BadCursor


class Entry(NamedTuple):
    """One entry; `data` is JSON."""

    place: Position
    type: str
    attempt: int
    at: str  # RFC 3339
    data: bytes

    def json(self) -> bytes:
        """The entry as clients see it, on one line."""
        head = f'{{"id":"{self.place}","type":"{self.type}","attempt":{self.attempt},"at":"{self.at}","data":'
        return b"".join((head.encode(), self.data, b"}"))


class Tail(Protocol):
    """What Redis holds of what jobs said, oldest first and above the stamp `after`; `shared.queue.Queue` is one."""

    async def output(self, id: str, after: int = 0, limit: int = 100) -> Sequence[Chunk]: ...
    async def segments(self, id: str, after: int = 0, limit: int = 64) -> Sequence[Segment]: ...


class Source(NamedTuple):
    """Where streams are read from."""

    tail: Tail
    store: FileStore


def state_entries(record: Record, after: Position) -> list[Entry]:
    """What happened to the job up to now, beyond `after`."""
    return [
        Entry(Position(stamp, 0), "state", attempt, _at(stamp), data)
        for stamp, attempt, data in record.told
        if (stamp, 0) > after
    ]


def end_entry(record: Record) -> Entry | None:
    """The last entry, of a final job."""
    place = end_of(record)
    # The job as it is now is the last of what was told of it.
    return Entry(place, "end", record.attempt, _at(place.stamp), record.told[-1][2]) if place is not None else None


def said_entries(chunk: Chunk, after: Position) -> Iterator[Entry]:
    """The items of a chunk beyond `after`."""
    at = _at(chunk.stamp)
    for index, item in enumerate(chunk.items):
        if (chunk.stamp, index) > after:
            yield Entry(Position(chunk.stamp, index), chunk.type, chunk.attempt, at, item)


def _at(stamp: int) -> str:
    return rfc3339(stamp / 1_000_000) or ""


class Reader:
    """One reader's way through one job's stream: it remembers only where it is."""

    def __init__(self, source: Source, id: str, *, after: Position = START, types: frozenset[str]) -> None:
        self.place = after
        self._source, self._id = source, id
        self._states = "state" in types
        self._said = types & SAID
        self._read = max(0, after.stamp - 1)  # chunks up to this stamp are done with
        self._segments: deque[Segment] = deque()  # the next ones
        self._offset = 0  # bytes of the first of them that are done with

    async def entries(self, record: Record) -> AsyncGenerator[Entry, None]:
        """What is new as of this record, in order; the last one is `end` if the job is final.

        The record says up to which stamp anything was said, so no entry is passed over that is written meanwhile.
        """
        states = iter(state_entries(record, self.place) if self._states else ())
        state = next(states, None)
        async for chunk in self._chunks(record.output):
            while state is not None and state.place.stamp < chunk.stamp:
                yield self._passed(state)
                state = next(states, None)
            if chunk.type in self._said:
                for entry in said_entries(chunk, self.place):
                    yield self._passed(entry)
            self._read = chunk.stamp
        while state is not None:
            yield self._passed(state)
            state = next(states, None)
        end = end_entry(record)
        if end is not None and end.place > self.place:
            yield self._passed(end)

    def _passed(self, entry: Entry) -> Entry:
        self.place = entry.place
        return entry

    async def _chunks(self, last: int) -> AsyncIterator[Chunk]:
        """Those up to the stamp `last`: what is newer than the record waits, as a state may have to stand before it."""
        limit = FEW
        while self._said and self._read < last:
            if self._segments:
                async for chunk in self._archived():
                    if chunk.stamp > last:
                        return
                    yield chunk
                continue
            chunks = await self._source.tail.output(self._id, self._read, limit)
            # An entry names the one before it. If that is not the last one read, those between have left Redis.
            if not chunks or chunks[0].before > self._read:
                self._segments.extend(await self._source.tail.segments(self._id, self._read))
                if self._segments:
                    continue
                if not chunks:
                    return  # they have expired
            for chunk in chunks:
                if chunk.stamp > last:
                    return
                yield chunk
            limit = MANY if sum(len(chunk.body) for chunk in chunks) < SMALL else FEW

    async def _archived(self) -> AsyncIterator[Chunk]:
        """The rest of the first segment, which then is done with."""
        segment = self._segments[0]
        async for chunk, offset in read_segment(self._source.store, self._id, segment, self._offset):
            if chunk.stamp > self._read:
                yield chunk
            self._offset = offset
        self._segments.popleft()
        self._offset = 0
