"""The queue's events, from Redis' append-only file: none is missed, whoever reads the stream and cuts it off meanwhile.

What a crash of Redis has taken with it is not there either: the file is the history that remains.
"""

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.evidence import Event

# XADD <stream> (how to trim) <id> e <length>: what the scripts wrote, as Redis repeats it to itself.
_ENTRY = re.compile(
    rb"XADD\r\n\$\d+\r\ntandem:\{a\}:events\r\n(?:\$\d+\r\n[^\r]*\r\n){1,5}?\$1\r\ne\r\n\$(?P<length>\d+)\r\n"
)


def events(path: Path) -> Iterator[Event]:
    """All transitions, in order. The file must not have been rewritten."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as journal:
        for entry in _ENTRY.finditer(journal):
            body = journal[entry.end() : entry.end() + int(entry["length"])]
            for line in body.decode().splitlines():
                id, state, stamp, attempt, *_ = line.split(" ")
                yield Event(id, state, int(stamp), int(attempt))
