"""Segments: the older part of what a job has said, in the file store.

An object `jobs/<job id>/output/<first stamp>-<last stamp>` holds consecutive entries of the job's
stream, whole:

    the 16 bytes of MAGIC, then of each entry
    stamp    8 bytes, unsigned, big-endian as all of them: µs
    attempt  4 bytes, unsigned
    type     1 byte: 0 progress, 1 log, 2 output
    length   4 bytes, unsigned: of the body
    body     its items as JSON, one a line

Entries never change, so two writers of one name write the same bytes. What Redis lists in the job's
index is part of the stream; an object that is not listed is a leftover of a worker that died, and
is swept with the job's other files.
"""

import struct
from collections.abc import AsyncIterator, Sequence

from tandem_shared.errors import NotFound, Unavailable
from tandem_shared.files.names import job_folder
from tandem_shared.files.store import FileStore
from tandem_shared.queue.messages import Chunk, Segment

MAGIC = b"tandem-output-1\n"
FETCH_BYTES = 256 << 10  # bytes that a reader fetches at once
FOLDER = "output"  # a place that no attempt's files have: theirs are numbers
_HEAD = struct.Struct(">QIBI")
_TYPES = ("progress", "log", "output")


def segment_path(job: str, segment: Segment) -> str:
    """Where it is in the store."""
    return f"{job_folder(job)}/{FOLDER}/{segment.first}-{segment.last}"


async def write_segment(store: FileStore, job: str, chunks: Sequence[Chunk]) -> Segment:
    """Stores consecutive entries of the job, at least one. Raises Unavailable."""
    parts = [MAGIC]
    for chunk in chunks:
        parts.append(
            _HEAD.pack(chunk.stamp, chunk.attempt, _TYPES.index(chunk.type), len(chunk.body))
        )
        parts.append(chunk.body)
    segment = Segment(chunks[0].stamp, chunks[-1].stamp, sum(map(len, parts)))
    await store.put(segment_path(job, segment), b"".join(parts))
    return segment


async def read_segment(
    store: FileStore, job: str, segment: Segment, offset: int = 0
) -> AsyncIterator[tuple[Chunk, int]]:
    """Its entries from the byte `offset` on (0, or one that came before), each with the offset behind it.

    Holds a piece and an entry at a time. Raises Unavailable, also for an object that is missing or
    damaged.
    """
    fetched = offset or len(
        MAGIC
    )  # the store's bytes up to here are in `data`, those before `at` are done with
    data, at = b"", 0
    path = segment_path(job, segment)
    while fetched - len(data) + at < segment.size:
        need = _HEAD.size
        if len(data) - at >= need:
            stamp, attempt, kind, length = _HEAD.unpack_from(data, at)
            need += length
        if (short := need - (len(data) - at)) > 0:
            until = min(fetched + max(short, FETCH_BYTES), segment.size)
            if fetched + short > segment.size:
                raise Unavailable("a part of the output is damaged")
            try:
                pieces = [piece async for piece in store.read(path, fetched, until)]
            except NotFound:
                raise Unavailable("a part of the output is missing in the file store") from None
            data, at, fetched = b"".join((data[at:], *pieces)), 0, until
            continue
        if kind >= len(_TYPES):
            raise Unavailable("a part of the output is damaged")
        body = data[at + _HEAD.size : at + need]
        at += need
        yield Chunk(stamp, _TYPES[kind], attempt, body), fetched - len(data) + at
