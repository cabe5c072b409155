"""Reads fields of records, as many in one call as Redis may take the time for."""

import math
from collections.abc import Sequence
from typing import Any

from tandem_shared.jobs.record import RECORD_FIELDS, Record, parse
from tandem_shared.queue.scripts import MAX_CALL_BYTES, MAX_CALL_JOBS, Scripts

# Of a record without what may be large.
HEAD_FIELDS = [
    name for name in RECORD_FIELDS if name not in ("progress", "result", "files", "attempts")
]


async def read_fields(
    scripts: Scripts, fields: Sequence[str], ids: Sequence[str], max_bytes: float = math.inf
) -> list[Any]:
    """These fields of each job's record; of the first jobs only once `max_bytes` are read."""
    found: list[Any] = []
    size = 0
    while len(found) < len(ids) and size <= max_bytes:
        some = ids[len(found) : len(found) + MAX_CALL_JOBS]
        read, *rows = await scripts.run("read_fields", MAX_CALL_BYTES, len(fields), *fields, *some)
        found += rows
        size += read
    return found


async def read_records(
    scripts: Scripts,
    ids: Sequence[str],
    max_bytes: float = math.inf,
    fields: Sequence[str] = RECORD_FIELDS,
) -> list[Record | None]:
    """The records, with these of their fields."""
    found = await read_fields(scripts, fields, ids, max_bytes)
    if fields is not RECORD_FIELDS:
        given = (dict(zip(fields, values, strict=True)) for values in found)
        found = [[one.get(name) for name in RECORD_FIELDS] for one in given]
    return list(map(parse, ids, found))
