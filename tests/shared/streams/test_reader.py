"""The stream reader on plain data: one order, from any position, whatever is written meanwhile."""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from obstore.store import MemoryStore

from tandem_shared.errors import BadCursor
from tandem_shared.files.store import FileStore
from tandem_shared.jobs.record import Attempt, JobOptions, Record
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Chunk, Segment
from tandem_shared.streams.reader import (
    ENTRY_TYPES,
    FEW_CHUNKS,
    MAX_GROUP_ENTRIES,
    START,
    Position,
    StreamEntry,
    StreamReader,
    StreamSource,
    check_position,
    end_position,
    parse_position,
)

ALL = frozenset(ENTRY_TYPES)
T = 1_800_000_000_000_000  # µs, of the submission


def record(**given: Any) -> Record:
    blank: dict[str, Any] = {
        "id": "J",
        "task": "t",
        "tenant": "default",
        "queue": "default",
        "priority": "normal",
        "state": State.RUNNING,
        "stamp": T + 10,
        "attempt": 1,
        "max_attempts": 3,
        "submitted": T,
        "scheduled_for": None,
        "due": T // 1000,
        "options": JobOptions(timeout=30.0),
        "began": T + 10,
        "ended": None,
        "cancel": None,
        "progress": None,
        "attempts": (Attempt(1, T + 10, None, None, "w"),),
        "result": None,
        "error": None,
        "files": None,
        "output": 0,
    }
    return Record(**{**blank, **given})


def final(stamp: int = T + 1000, **given: Any) -> Record:
    attempts = (Attempt(1, T + 10, stamp, "succeeded", "w"),)
    return record(
        state=State.SUCCEEDED, stamp=stamp, ended=stamp, attempts=attempts, result=b"1", **given
    )


def chunk(stamp: int, *items: bytes, type: str = "output", attempt: int = 1) -> Chunk:
    return Chunk(stamp, type, attempt, b"\n".join(items))


class Log:
    """An OutputTail of these chunks, which remembers each read."""

    def __init__(self, *chunks: Chunk) -> None:
        self.chunks = list(chunks)
        self.reads: list[tuple[int, int]] = []

    async def output(self, id: str, after: int = 0, limit: int = 100) -> Sequence[Chunk]:
        self.reads.append((after, limit))
        return [chunk for chunk in self.chunks if chunk.stamp > after][:limit]

    async def segments(self, id: str, after: int = 0, limit: int = 64) -> Sequence[Segment]:
        return ()


def reading(log: Log, id: str, **given: Any) -> StreamReader:
    return StreamReader(StreamSource(log, FileStore(MemoryStore())), id, **given)


async def read(reader: StreamReader, now: Record) -> list[StreamEntry]:
    return [entry async for entry in reader.entries(now)]


def kinds(entries: list[StreamEntry]) -> list[tuple[str, int]]:
    return [(entry.type, entry.position.stamp - T) for entry in entries]


LOG = Log(
    chunk(T + 20, b"1", b"2"),
    chunk(T + 30, b'{"current":1}', type="progress"),
    chunk(T + 40, b'{"level":"info"}', type="log"),
    chunk(T + 50, b"3"),
)
WHOLE = [
    ("state", 0),
    ("state", 10),
    ("output", 20),
    ("output", 20),
    ("progress", 30),
    ("log", 40),
    ("output", 50),
    ("state", 1000),
    ("end", 1000),
]


async def test_everything_comes_in_one_order() -> None:
    entries = await read(reading(LOG, "J", types=ALL), final(output=T + 50))
    assert kinds(entries) == WHOLE
    assert [entry.position for entry in entries] == sorted({entry.position for entry in entries})
    lines = [msgspec.json.decode(entry.json()) for entry in entries]
    assert all(list(line) == ["id", "type", "attempt", "at", "data"] for line in lines)
    assert [line["data"] for line in lines if line["type"] == "output"] == [1, 2, 3]
    assert lines[0]["data"]["state"] == "queued"
    assert lines[-1]["data"]["result"] == 1
    assert lines[2]["at"] == "2027-01-15T08:00:00.000Z"


async def test_a_reader_continues_from_any_entry_without_gap_or_repeat() -> None:
    now = final(output=T + 50)
    entries = await read(reading(LOG, "J", types=ALL), now)
    for number, entry in enumerate(entries):
        rest = await read(
            reading(LOG, "J", after=parse_position(str(entry.position)), types=ALL), now
        )
        assert rest == entries[number + 1 :]


async def test_entries_of_one_stamp_form_groups_and_are_continued_one_by_one() -> None:
    log, now = (
        Log(chunk(T + 20, *(b"%d" % n for n in range(MAX_GROUP_ENTRIES + 44)))),
        final(output=T + 20),
    )
    groups = [group async for group in reading(log, "J", types=frozenset({"output"})).groups(now)]
    assert [len(group.data) for group in groups] == [MAX_GROUP_ENTRIES, 44, 1]
    entries = await read(reading(log, "J", types=frozenset({"output"})), now)
    assert [line for group in groups for line in group.json()] == [
        entry.json() for entry in entries
    ]
    assert [group.last for group in groups] == [
        entries[at].position for at in (MAX_GROUP_ENTRIES - 1, MAX_GROUP_ENTRIES + 43, -1)
    ]
    reader = reading(log, "J", types=frozenset({"output"}))
    async with aclosing(reader.entries(now)) as some:
        assert [await anext(some) for _ in range(MAX_GROUP_ENTRIES + 3)] == entries[
            : MAX_GROUP_ENTRIES + 3
        ]
    assert await read(reader, now) == entries[MAX_GROUP_ENTRIES + 3 :]


@pytest.mark.parametrize("wanted", ["output", "state", "log progress", "end", ""])
async def test_unwanted_types_are_left_out_except_the_end(wanted: str) -> None:
    types = set(wanted.split())
    log = Log(*LOG.chunks)
    entries = await read(reading(log, "J", types=frozenset(types)), final(output=T + 50))
    assert kinds(entries) == [one for one in WHOLE if one[0] in types | {"end"}]
    assert bool(log.reads) is bool(types & {"output", "log", "progress"}), (
        "output that no type selects is not read"
    )


async def test_output_newer_than_the_record_waits_for_a_newer_record() -> None:
    """Otherwise a state would come too late: here the second attempt, unknown to the old record."""
    log = Log(chunk(T + 20, b"1"), chunk(T + 200, b"2", attempt=2))
    reader = reading(log, "J", types=ALL)
    assert kinds(await read(reader, record(output=T + 20))) == [
        ("state", 0),
        ("state", 10),
        ("output", 20),
    ]
    assert await read(reader, record(output=T + 20)) == []
    attempts = (Attempt(1, T + 10, T + 100, "failed", "w"), Attempt(2, T + 150, None, None, "w"))
    later = record(attempt=2, stamp=T + 150, began=T + 150, attempts=attempts, output=T + 200)
    assert kinds(await read(reader, later)) == [("state", 100), ("state", 150), ("output", 200)]


async def test_chunks_are_read_once_and_in_small_batches_while_they_are_large() -> None:
    log = Log(*(chunk(T + 20 + n, b'"' + b"x" * (20 << 10) + b'"') for n in range(3 * FEW_CHUNKS)))
    reader = reading(log, "J", types=ALL)
    entries = await read(reader, record(output=T + 20 + 3 * FEW_CHUNKS - 1))
    assert len(entries) == 3 * FEW_CHUNKS + 2
    assert [limit for _, limit in log.reads] == [FEW_CHUNKS, FEW_CHUNKS, FEW_CHUNKS]
    log.reads.clear()
    await read(reader, record(output=T + 20 + 3 * FEW_CHUNKS - 1))
    assert log.reads == []


async def test_expired_output_is_skipped() -> None:
    assert kinds(await read(reading(Log(), "J", types=ALL), final(output=T + 50)))[-1] == (
        "end",
        1000,
    )


@pytest.mark.parametrize(
    "text", ["", "x", "1-1", f"{T}-1", f"{T}-000001", f" {T}-00001", f"{T}-0000１", f"-{T}-00001"]
)
def test_a_malformed_position_is_a_bad_cursor(text: str) -> None:
    with pytest.raises(BadCursor):
        parse_position(text)


def test_a_position_that_redis_has_lost_is_accepted_until_the_end() -> None:
    lost = Position(T + 2000, 7)
    check_position(record(output=T + 50), lost, (T + 3000) / 1e6)
    with pytest.raises(BadCursor):
        check_position(final(output=T + 50), lost, (T + 3000) / 1e6)


def test_only_positions_that_the_stream_can_have_had_are_accepted() -> None:
    running, ended = record(output=T + 50), final(output=T + 50)
    for now, position in (
        (running, Position(T, 0)),
        (running, Position(T + 50, 99)),
        (ended, Position(T + 1000, 0)),
        (ended, Position(T + 1000, 1)),
    ):
        check_position(now, position, T / 1e6)
        assert parse_position(str(position)) == position
    for now, position in (
        (running, START),
        (running, Position(T - 1, 5)),
        (running, Position(T + 51, 0)),
        (ended, Position(T + 1000, 2)),
        (ended, Position(T + 2000, 0)),
    ):
        with pytest.raises(BadCursor):
            check_position(now, position, T / 1e6)
    assert end_position(ended) == Position(T + 1000, 1)
    assert end_position(running) is None
