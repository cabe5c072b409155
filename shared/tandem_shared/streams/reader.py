"""A job's stream: one order for what happened to it and what it said, the same from every reader and every replica.

Nothing is stored for the stream itself: `state` entries follow from the record, `progress`, `log`
and `output` stand under stamps of the same clock, the newest few MiB in Redis and all before them
in segments in the file store. An entry's id is its stamp and its index below that stamp, wherever
it stands.
"""

import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import NamedTuple, Protocol

from tandem_shared.errors import BadCursor
from tandem_shared.files.store import FileStore
from tandem_shared.jobs.record import Record
from tandem_shared.queue.messages import Chunk, Segment
from tandem_shared.streams.segments import read_segment
from tandem_shared.times import rfc3339_of_stamp

ENTRY_TYPES = ("state", "progress", "log", "output", "end")
REPORT_TYPES = frozenset({"progress", "log", "output"})  # what the job itself says
FEW_CHUNKS, MANY_CHUNKS = (
    16,
    256,
)  # chunks a reading: few of up to 64 KiB each, many where they are small
SMALL_READ_BYTES = 64 << 10  # bytes of a reading that make the next one a larger one
MAX_GROUP_ENTRIES = 256  # entries that are told together at most
_ID = re.compile(r"([0-9]{16})-([0-9]{5})", re.ASCII)


class Position(NamedTuple):
    """A place in a stream: the stamp in µs, and which of the items below it."""

    stamp: int
    item: int

    def __str__(self) -> str:
        return f"{self.stamp:016d}-{self.item:05d}"


START = Position(0, 0)


def parse_position(text: str) -> Position:
    """The place that an entry's id names. Raises BadCursor."""
    match = _ID.fullmatch(text)
    if match is None:
        raise BadCursor
    return Position(int(match[1]), int(match[2]))


def end_position(record: Record) -> Position | None:
    """Where `end` stands; None as long as the job is not final."""
    return Position(record.ended, 1) if record.done and record.ended is not None else None


def check_position(record: Record, place: Position) -> None:
    """Raises BadCursor for a place that this job's stream cannot have had."""
    last = end_position(record) or Position(max(record.stamp, record.output), 99_999)
    if not Position(record.submitted, 0) <= place <= last:
        raise BadCursor


class StreamEntry(NamedTuple):
    """One entry; `data` is JSON."""

    position: Position
    type: str
    attempt: int
    at: str  # RFC 3339
    data: bytes

    def json(self) -> bytes:
        """The entry as clients see it, on one line."""
        return _json(self.position, self.type, self.attempt, self.at, (self.data,))[0]


class EntryGroup(NamedTuple):
    """Consecutive entries under one stamp, at least one; `data` is JSON of each."""

    position: Position  # of the first
    type: str
    attempt: int
    data: Sequence[bytes]

    @property
    def last(self) -> Position:
        """The place of the last one."""
        return Position(self.position.stamp, self.position.item + len(self.data) - 1)

    def entries(self) -> Iterator[StreamEntry]:
        """One by one."""
        stamp, first = self.position
        at = _at(stamp)
        for item, data in enumerate(self.data, first):
            yield StreamEntry(Position(stamp, item), self.type, self.attempt, at, data)

    def json(self) -> list[bytes]:
        """Them as clients see them, each on one line."""
        return _json(self.position, self.type, self.attempt, _at(self.position.stamp), self.data)


def _json(place: Position, type: str, attempt: int, at: str, data: Sequence[bytes]) -> list[bytes]:
    # What entries of one stamp share is written once: a flood of small ones costs little more than
    # their own bytes.
    stamp, first = place
    head = b'{"id":"%016d-' % stamp
    rest = f'","type":"{type}","attempt":{attempt},"at":"{at}","data":'.encode()
    return [b"%s%05d%s%s}" % (head, item, rest, one) for item, one in enumerate(data, first)]


class OutputTail(Protocol):
    """What Redis holds of what jobs said, oldest first and above the stamp `after`; `Queue` is one."""

    async def output(self, id: str, after: int = 0, limit: int = 100) -> Sequence[Chunk]: ...
    async def segments(self, id: str, after: int = 0, limit: int = 64) -> Sequence[Segment]: ...


class StreamSource(NamedTuple):
    """Where streams are read from."""

    tail: OutputTail
    store: FileStore


def state_groups(record: Record, after: Position) -> list[EntryGroup]:
    """What happened to the job up to now, beyond `after`: a group for each."""
    return [
        EntryGroup(Position(stamp, 0), "state", attempt, (data,))
        for stamp, attempt, data in record.told
        if (stamp, 0) > after
    ]


def end_group(record: Record) -> EntryGroup | None:
    """The last entry, of a final job."""
    place = end_position(record)
    # The job as it is now is the last of what was told of it.
    return (
        EntryGroup(place, "end", record.attempt, (record.told[-1][2],))
        if place is not None
        else None
    )


def report_groups(chunk: Chunk, after: Position) -> Iterator[EntryGroup]:
    """The items of a chunk beyond `after`, up to TOGETHER at once."""
    if chunk.stamp < after.stamp:
        return
    items = chunk.items
    for start in range(
        after.item + 1 if chunk.stamp == after.stamp else 0, len(items), MAX_GROUP_ENTRIES
    ):
        data = items[start : start + MAX_GROUP_ENTRIES]
        yield EntryGroup(Position(chunk.stamp, start), chunk.type, chunk.attempt, data)


def _at(stamp: int) -> str:
    return rfc3339_of_stamp(stamp) or ""


class StreamReader:
    """One reader's way through one job's stream: it remembers only where it is."""

    def __init__(
        self, source: StreamSource, id: str, *, after: Position = START, types: frozenset[str]
    ) -> None:
        self.position = after
        self._source, self._id = source, id
        self._states = "state" in types
        self._said = types & REPORT_TYPES
        self._read = max(0, after.stamp - 1)  # chunks up to this stamp are done with
        self._segments: deque[Segment] = deque()  # the next ones
        self._offset = 0  # bytes of the first of them that are done with

    async def groups(self, record: Record) -> AsyncGenerator[EntryGroup, None]:
        """What is new as of this record, in order; the last entry is `end` if the job is final.

        The record says up to which stamp anything was said, so no entry is passed over that is
        written meanwhile.
        """
        states = iter(state_groups(record, self.position) if self._states else ())
        state = next(states, None)
        async for chunk in self._chunks(record.output):
            while state is not None and state.position.stamp < chunk.stamp:
                yield self._passed(state)
                state = next(states, None)
            if chunk.type in self._said:
                for group in report_groups(chunk, self.position):
                    yield self._passed(group)
            self._read = chunk.stamp
        while state is not None:
            yield self._passed(state)
            state = next(states, None)
        end = end_group(record)
        if end is not None and end.position > self.position:
            yield self._passed(end)

    def _passed(self, group: EntryGroup) -> EntryGroup:
        self.position = group.last
        return group

    async def entries(self, record: Record) -> AsyncGenerator[StreamEntry, None]:
        """The same one by one; who stops after one of them goes on behind it."""
        async with aclosing(self.groups(record)) as groups:
            async for group in groups:
                for entry in group.entries():
                    self.position = entry.position
                    yield entry

    async def _chunks(self, last: int) -> AsyncIterator[Chunk]:
        """Those up to the stamp `last`: what is newer than the record waits, as a state may have to stand before it."""
        limit = FEW_CHUNKS
        while self._said and self._read < last:
            if self._segments:
                async for chunk in self._archived():
                    if chunk.stamp > last:
                        return
                    yield chunk
                continue
            chunks = await self._source.tail.output(self._id, self._read, limit)
            # An entry names the one before it. If that is not the last one read, those between have
            # left Redis.
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
            limit = (
                MANY_CHUNKS
                if sum(len(chunk.body) for chunk in chunks) < SMALL_READ_BYTES
                else FEW_CHUNKS
            )

    async def _archived(self) -> AsyncIterator[Chunk]:
        """The rest of the first segment, which then is done with."""
        segment = self._segments[0]
        async for chunk, offset in read_segment(
            self._source.store, self._id, segment, self._offset
        ):
            if chunk.stamp > self._read:
                yield chunk
            self._offset = offset
        self._segments.popleft()
        self._offset = 0
