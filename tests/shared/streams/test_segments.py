"""Segments, and readers that cross from them to Redis without losing their place."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from tandem_shared.errors import Unavailable
from tandem_shared.files.store import FileStore
from tandem_shared.jobs.record import Attempt, Record
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Chunk, Segment
from tandem_shared.streams import segments
from tandem_shared.streams.reader import (
    ENTRY_TYPES,
    START,
    StreamEntry,
    StreamReader,
    StreamSource,
)
from tandem_shared.streams.segments import (
    MAGIC,
    REPORT_TYPES,
    read_segment,
    segment_path,
    write_segment,
)
from tests.shared.streams.test_reader import T, record

CHUNKS = [
    Chunk(T + 1, "output", 1, b'{"n":1}\n{"n":2}'),
    Chunk(T + 2, "log", 1, b'{"level":"info","message":"\xc3\xa9"}'),
    Chunk(T + 3, "progress", 2, b"{}"),
    Chunk(T + 4, "output", 70_000, b'"' + b"x" * 1_000_000 + b'"'),
    Chunk(T + 5, "output", 70_000, b""),
]


@pytest.fixture
def store() -> FileStore:
    return FileStore(MemoryStore())


async def read(store: FileStore, segment: Segment, offset: int = 0) -> list[tuple[Chunk, int]]:
    return [one async for one in read_segment(store, "J", segment, offset)]


async def test_a_segment_is_read_from_any_entry_on(store: FileStore) -> None:
    segment = await write_segment(store, "J", CHUNKS)
    assert segment[:2] == (T + 1, T + 5)
    assert segment.size == await store.size(segment_path("J", segment))
    everything = await read(store, segment)
    assert [chunk for chunk, _ in everything] == CHUNKS
    assert everything[-1][1] == segment.size
    for number, (_, offset) in enumerate(everything):
        assert await read(store, segment, offset) == everything[number + 1 :]


async def test_the_format_is_the_documented_one(store: FileStore) -> None:
    segment = await write_segment(store, "J", [Chunk(258, "log", 3, b"{}")])
    data = await store.load("jobs/J/output/258-258", 100)
    assert (
        data
        == MAGIC
        + bytes([0, 0, 0, 0, 0, 0, 1, 2])
        + bytes([0, 0, 0, 3])
        + bytes([1])
        + bytes([0, 0, 0, 2])
        + b"{}"
    )
    assert len(data) == segment.size


async def test_missing_and_damaged_segments_are_unavailable(store: FileStore) -> None:
    with pytest.raises(Unavailable, match="missing"):
        await read(store, Segment(1, 2, 100))
    segment = await write_segment(store, "J", CHUNKS[:2])
    path = segment_path("J", segment)
    data = await store.load(path, 1000)
    await store.write(path, data[:-1])
    with pytest.raises(Unavailable):
        await read(store, segment)
    with pytest.raises(Unavailable, match="damaged"):
        await read(store, segment._replace(size=segment.size - 1))
    kind = len(MAGIC) + 12
    await store.write(path, data[:kind] + b"\x09" + data[kind + 1 :])
    with pytest.raises(Unavailable, match="damaged"):
        await read(store, segment)


class Life:
    """A job whose reports move to the file store while it runs; an OutputTail like Redis."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.store = FileStore(MemoryStore())
        self.reports = list(chunks)
        self.tail: list[Chunk] = []
        self.index: list[Segment] = []
        self.reported = 0

    async def step(self, chunks: int, moved: int) -> None:
        """Report some more chunks, then move some of the oldest to the file store."""
        self.tail += self.reports[self.reported : self.reported + chunks]
        self.reported = min(self.reported + chunks, len(self.reports))
        oldest, self.tail = self.tail[:moved], self.tail[moved:]
        if oldest:
            self.index.append(await write_segment(self.store, "J", oldest))

    async def output(self, id: str, after: int = 0, limit: int = 100) -> Sequence[Chunk]:
        return [chunk for chunk in self.tail if chunk.stamp > after][:limit]

    async def segments(self, id: str, after: int = 0, limit: int = 64) -> Sequence[Segment]:
        return [one for one in self.index if one.last > after][:limit]

    def record(self) -> Record:
        """The record as of now; final once everything is reported."""
        firsts: dict[int, int] = {}
        for chunk in self.reports[: self.reported]:
            firsts.setdefault(chunk.attempt, chunk.stamp)
        # An attempt is lost 8 µs before the first report of the next one, which began 4 µs before
        # that report.
        ends = [*(first - 8 for first in list(firsts.values())[1:]), None]
        attempts = [
            Attempt(number, first - 4, ended, None if ended is None else "worker_lost", "w")
            for (number, first), ended in zip((firsts or {1: T + 10}).items(), ends, strict=True)
        ]
        last = self.reports[self.reported - 1].stamp if self.reported else 0
        now = {"attempt": attempts[-1].number, "output": last}
        if self.reported < len(self.reports):
            return record(attempts=tuple(attempts), stamp=attempts[-1].began, **now)
        end = max(last, T + 10) + 5
        attempts[-1] = attempts[-1]._replace(ended=end, outcome="succeeded")
        final = {"state": State.SUCCEEDED, "stamp": end, "ended": end, "result": b"1"}
        return record(attempts=tuple(attempts), **final, **now)

    def reader(self, after: Any = START) -> StreamReader:
        return StreamReader(
            StreamSource(self, self.store), "J", after=after, types=frozenset(ENTRY_TYPES)
        )


@st.composite
def chunks(draw: st.DrawFn) -> list[Chunk]:
    """The reports of some attempts; each names the one before it, as report.lua does."""
    found: list[Chunk] = []
    stamp, before = T + 10, 0
    for attempt in range(1, draw(st.integers(1, 3)) + 1):
        stamp += 10
        for kind, items in draw(
            st.lists(st.tuples(st.sampled_from(ENTRY_TYPES[1:4]), st.integers(1, 4)), max_size=8)
        ):
            stamp += draw(st.integers(1, 5))
            size = draw(st.sampled_from((1, 10, 200)))
            body = b"\n".join(b'"%d %s"' % (number, b"x" * size) for number in range(items))
            found.append(Chunk(stamp, kind, attempt, body, before))
            before = stamp
    return found


@seed(4)
@settings(max_examples=150, deadline=None)
@given(reports=chunks(), data=st.data())
async def test_readers_get_every_entry_once_and_in_order_wherever_it_is_stored(
    reports: list[Chunk], data: st.DataObject
) -> None:
    plain = Life(reports)
    await plain.step(len(reports), 0)
    expected = [entry async for entry in plain.reader().entries(plain.record())]
    assert [one.data for one in expected if one.type in REPORT_TYPES] == [
        item for chunk in reports for item in chunk.items
    ]
    assert [entry.position for entry in expected] == sorted({entry.position for entry in expected})

    life = Life(reports)
    reader, got = life.reader(), list[StreamEntry]()
    piece, segments.FETCH_BYTES = (
        segments.FETCH_BYTES,
        data.draw(st.sampled_from((1, 30, 1000)), "fetch bytes"),
    )
    try:
        while not got or got[-1].type != "end":
            await life.step(
                data.draw(st.integers(1, 5), "reports"), data.draw(st.integers(0, 6), "moved")
            )
            now = life.record()
            after = data.draw(st.none() | st.integers(0, 12), "disconnects after")
            async for entry in reader.entries(now):
                got.append(entry)
                if data.draw(st.booleans(), "moves meanwhile"):
                    await life.step(0, data.draw(st.integers(0, 3), "moved meanwhile"))
                if after is not None and len(got) >= after:
                    reader = life.reader(entry.position)  # reconnects, at any replica
                    break
    finally:
        segments.FETCH_BYTES = piece
    assert got == expected
