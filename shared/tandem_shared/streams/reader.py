"""A job's stream: what happened to the job and what it reported, in one order for every reader.

Nothing is stored for the stream itself. `state` entries are derived from the record; `progress`,
`log` and `output` carry stamps of the same clock, the newest few MiB in Redis and all older ones in
segments in the file store. An entry's id is its stamp and its index below that stamp, wherever the
entry is stored, so every replica gives the same ids.
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
from tandem_shared.streams.segments import REPORT_TYPES, read_segment
from tandem_shared.times import rfc3339_of_stamp

ENTRY_TYPES = ("state", *REPORT_TYPES, "end")
# Chunks per read: few while they are large (up to 64 KiB each), many once a read was small.
FEW_CHUNKS, MANY_CHUNKS = 16, 256
SMALL_READ_BYTES = 64 << 10
MAX_GROUP_ENTRIES = 256
_ID = re.compile(r"([0-9]{16})-([0-9]{5})", re.ASCII)


class Position(NamedTuple):
    """A place in a stream: a stamp in µs, and the index of an item below it."""

    stamp: int
    item: int

    def __str__(self) -> str:
        return f"{self.stamp:016d}-{self.item:05d}"


START = Position(0, 0)


def parse_position(text: str) -> Position:
    """The position that an entry's id names. Raises BadCursor."""
    match = _ID.fullmatch(text)
    if match is None:
        raise BadCursor
    return Position(int(match[1]), int(match[2]))


def end_position(record: Record) -> Position | None:
    """The position of the `end` entry; None until the job is final."""
    return Position(record.ended, 1) if record.done and record.ended is not None else None


def check_position(record: Record, position: Position, now: float) -> None:
    """Raises BadCursor for a position that this job's stream cannot have had by `now`.

    Until the job is final, that is one in the future: Redis may have come back older than it was,
    and lack the entry that the reader has. What is new follows it all the same.
    """
    newest = max(record.stamp, record.output, int(now * 1e6))
    last = end_position(record) or Position(newest, 99_999)
    if not Position(record.submitted, 0) <= position <= last:
        raise BadCursor


class StreamEntry(NamedTuple):
    """One entry; `data` is JSON."""

    position: Position
    type: str
    attempt: int
    data: bytes

    def json(self) -> bytes:
        """The entry as clients see it, on one line."""
        return EntryGroup(self.position, self.type, self.attempt, (self.data,)).json()[0]


class EntryGroup(NamedTuple):
    """One or more consecutive entries under one stamp; `data` is the JSON of each."""

    position: Position  # of the first entry
    type: str
    attempt: int
    data: Sequence[bytes]

    @property
    def last(self) -> Position:
        """The position of the last entry."""
        return Position(self.position.stamp, self.position.item + len(self.data) - 1)

    def entries(self) -> Iterator[StreamEntry]:
        """The entries one by one."""
        stamp, first = self.position
        for item, data in enumerate(self.data, first):
            yield StreamEntry(Position(stamp, item), self.type, self.attempt, data)

    def json(self) -> list[bytes]:
        """The entries as clients see them, each on one line."""
        # Format what the entries share only once: small ones cost little more than their own bytes.
        stamp, first = self.position
        head = b'{"id":"%016d-' % stamp
        at = rfc3339_of_stamp(stamp) or ""
        shared = f'","type":"{self.type}","attempt":{self.attempt},"at":"{at}","data":'.encode()
        return [
            b"%s%05d%s%s}" % (head, item, shared, data)
            for item, data in enumerate(self.data, first)
        ]


class OutputTail(Protocol):
    """The reports that Redis still holds, oldest first, above the stamp `after`; `Queue` is one."""

    async def output(self, id: str, after: int = 0, limit: int = 100) -> Sequence[Chunk]: ...
    async def segments(self, id: str, after: int = 0, limit: int = 64) -> Sequence[Segment]: ...


class StreamSource(NamedTuple):
    """Where streams are read from."""

    tail: OutputTail
    store: FileStore
    root: str = ""  # the path under which the API is published, for the URLs in `state` entries


class StreamReader:
    """Reads one job's stream from `after` on; its position is all that it remembers."""

    def __init__(
        self, source: StreamSource, id: str, *, after: Position = START, types: frozenset[str]
    ) -> None:
        self.position = after
        self._source, self._id, self._types = source, id, types
        self._reports = not types.isdisjoint(REPORT_TYPES)
        self._read = max(0, after.stamp - 1)  # the stamp of the last chunk that was read
        self._segments: deque[Segment] = deque()  # to be read next
        self._offset = 0  # bytes of the first segment that have been read

    async def groups(self, record: Record) -> AsyncGenerator[EntryGroup, None]:
        """Yield what is new as of this record, in order; the last entry of a final job is `end`.

        Chunks newer than the record wait for a newer record, since a state may belong before them.
        """
        transitions = self._transitions(record)
        async for chunk in self._chunks(record.output):
            while transitions and transitions[0].position.stamp < chunk.stamp:
                yield self._advance(transitions.popleft())
            if chunk.type in self._types:
                for group in self._reported(chunk):
                    yield self._advance(group)
            self._read = chunk.stamp
        for group in transitions:
            yield self._advance(group)

    def _advance(self, group: EntryGroup) -> EntryGroup:
        self.position = group.last
        return group

    async def entries(self, record: Record) -> AsyncGenerator[StreamEntry, None]:
        """As `groups`, entry by entry; the caller may stop after any entry and continue later."""
        async with aclosing(self.groups(record)) as groups:
            async for group in groups:
                for entry in group.entries():
                    self.position = entry.position
                    yield entry

    def _transitions(self, record: Record) -> deque[EntryGroup]:
        """The new `state` entries if wanted, and `end`."""
        groups = [
            EntryGroup(Position(stamp, 0), "state", attempt, (data,))
            for stamp, attempt, data in record.state_entries(self._source.root)
            if "state" in self._types
        ]
        end = end_position(record)
        if end is not None:
            final = record.state_entries(self._source.root)[-1][2]
            groups.append(EntryGroup(end, "end", record.attempt, (final,)))
        return deque(group for group in groups if group.position > self.position)

    def _reported(self, chunk: Chunk) -> Iterator[EntryGroup]:
        """The new items of a chunk, at most MAX_GROUP_ENTRIES at once."""
        first = self.position.item + 1 if chunk.stamp == self.position.stamp else 0
        items = chunk.items if chunk.stamp >= self.position.stamp else ()
        for start in range(first, len(items), MAX_GROUP_ENTRIES):
            data = items[start : start + MAX_GROUP_ENTRIES]
            yield EntryGroup(Position(chunk.stamp, start), chunk.type, chunk.attempt, data)

    async def _chunks(self, last: int) -> AsyncIterator[Chunk]:
        """The unread chunks up to the stamp `last`."""
        limit = FEW_CHUNKS
        while self._reports and self._read < last:
            if self._segments:
                async for chunk in self._first_segment():
                    if chunk.stamp > last:
                        return
                    yield chunk
                continue
            chunks = await self._source.tail.output(self._id, self._read, limit)
            # Each chunk names the one before it. If we have not read that, it has moved from Redis
            # to a segment.
            if not chunks or chunks[0].before > self._read:
                self._segments.extend(await self._source.tail.segments(self._id, self._read))
                if self._segments:
                    continue
                if not chunks:
                    return  # the output has expired
            for chunk in chunks:
                if chunk.stamp > last:
                    return
                yield chunk
            small = sum(len(chunk.body) for chunk in chunks) < SMALL_READ_BYTES
            limit = MANY_CHUNKS if small else FEW_CHUNKS

    async def _first_segment(self) -> AsyncIterator[Chunk]:
        """The rest of the first segment, which is dropped at its end."""
        segment = self._segments[0]
        async for chunk, offset in read_segment(
            self._source.store, self._id, segment, self._offset
        ):
            if chunk.stamp > self._read:
                yield chunk
            self._offset = offset
        self._segments.popleft()
        self._offset = 0
