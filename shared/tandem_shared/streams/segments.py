"""Segments: the older part of a job's output, in the file store.

An object `jobs/<job id>/output/<first stamp>-<last stamp>` holds consecutive entries of the job's
output stream:

    magic    16 bytes, MAGIC
    then for each entry, numbers unsigned and big-endian:
    stamp    8 bytes, µs
    attempt  4 bytes
    type     1 byte: the index in REPORT_TYPES
    length   4 bytes: of the body
    body     the entry's items as JSON, one per line

Entries never change, so two writers of one name write the same bytes. A segment belongs to the
stream once Redis lists it in the job's index. An object that is not listed was left by a worker
that died, and is swept with the job's other files.
"""

import struct
from collections.abc import AsyncIterator, Sequence

from tandem_shared.errors import NotFound, Unavailable
from tandem_shared.files.names import job_folder
from tandem_shared.files.store import FileStore
from tandem_shared.queue.messages import Chunk, Segment

MAGIC = b"tandem-output-1\n"
REPORT_TYPES = ("progress", "log", "output")  # what a job writes; stored by index, so only append
FETCH_BYTES = 256 << 10  # that a reader asks the store for at once
FOLDER = "output"  # never the folder of an attempt's files, which is a number
_HEAD = struct.Struct(">QIBI")


def segment_path(job: str, segment: Segment) -> str:
    """The segment's path in the store."""
    return f"{job_folder(job)}/{FOLDER}/{segment.first}-{segment.last}"


async def write_segment(store: FileStore, job: str, chunks: Sequence[Chunk]) -> Segment:
    """Store consecutive entries of the job, at least one. Raises Unavailable."""
    parts = [MAGIC]
    for chunk in chunks:
        kind = REPORT_TYPES.index(chunk.type)
        parts += (_HEAD.pack(chunk.stamp, chunk.attempt, kind, len(chunk.body)), chunk.body)
    segment = Segment(chunks[0].stamp, chunks[-1].stamp, sum(map(len, parts)))
    await store.put(segment_path(job, segment), b"".join(parts))
    return segment


async def read_segment(
    store: FileStore, job: str, segment: Segment, offset: int = 0
) -> AsyncIterator[tuple[Chunk, int]]:
    """Yield the entries from `offset` on, each with the offset behind it; 0 is the beginning.

    Holds FETCH_BYTES and one entry in memory. Raises Unavailable, also for an object that is
    missing or damaged.
    """
    path = segment_path(job, segment)
    # `data` ends at the byte `fetched` of the object; its first `used` bytes have been read.
    data, used, fetched = b"", 0, offset or len(MAGIC)
    while fetched - len(data) + used < segment.size:
        need = _HEAD.size
        if len(data) - used >= need:
            stamp, attempt, kind, length = _HEAD.unpack_from(data, used)
            need += length
        if (missing := need - (len(data) - used)) > 0:
            if fetched + missing > segment.size:
                raise Unavailable("a part of the output is damaged")
            until = min(fetched + max(missing, FETCH_BYTES), segment.size)
            try:
                pieces = [piece async for piece in store.read(path, fetched, until)]
            except NotFound:
                raise Unavailable("a part of the output is missing in the file store") from None
            data, used, fetched = b"".join((data[used:], *pieces)), 0, until
            continue
        if kind >= len(REPORT_TYPES):
            raise Unavailable("a part of the output is damaged")
        body = data[used + _HEAD.size : used + need]
        used += need
        yield Chunk(stamp, REPORT_TYPES[kind], attempt, body), fetched - len(data) + used
