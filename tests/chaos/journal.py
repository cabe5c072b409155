"""The queue's events, from Redis' append-only files, which keep them when the stream is trimmed.

Events that a crash of Redis lost are missing here too: the files hold the history that survived.
"""

import mmap
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tandem_shared.dev.servers import LocalServer
from tests.chaos.check.evidence import Transition

# A rewrite drops the entries that were trimmed, so Redis must never start one by itself. A rewrite
# on request writes commands, because the entries of an RDB file are compressed.
_OPTIONS = ("--auto-aof-rewrite-percentage", "0", "--aof-use-rdb-preamble", "no")
_RDB = (b"REDIS", b"VALKEY")  # how an RDB file begins
# XADD <stream> (trimming options) <id> e <length>: how Redis logs what the scripts have added.
_ENTRY = re.compile(
    rb"XADD\r\n\$\d+\r\ntandem:\{a\}:events\r\n(?:\$\d+\r\n[^\r]*\r\n){1,5}?"
    rb"\$1\r\ne\r\n\$(?P<length>\d+)\r\n"
)


def journaled(server: LocalServer) -> LocalServer:
    """The same Redis, with the settings that let `transitions` read its append-only files."""
    return replace(server, argv=(*server.argv, *_OPTIONS))


def transitions(data: Path) -> Iterator[Transition]:
    """All transitions, in order, of the `journaled` Redis that keeps its files in `data`."""
    for path in _files(data):
        if path.stat().st_size:  # mmap refuses an empty file
            yield from _read(path)


class History:
    """How long the append-only file was in the last seconds, so that it can be cut back."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._sizes: deque[tuple[float, int]] = deque(maxlen=200)

    def note(self) -> None:
        """Called several times a second."""
        path = _files(self._data)[-1]
        if path.exists():
            self._sizes.append((time.monotonic(), path.stat().st_size))

    def cut_back(self, seconds: float) -> None:
        """Remove what a Redis that has been killed wrote in its last seconds."""
        earliest = time.monotonic() - seconds
        size = next((size for at, size in self._sizes if at >= earliest), None)
        path = _files(self._data)[-1]
        if size is not None and size < path.stat().st_size:
            os.truncate(path, size)


def _files(data: Path) -> list[Path]:
    """The files that Redis would load, in order."""
    folder = data / "appendonlydir"
    if not folder.exists():
        return [data / "appendonly.aof"]  # Redis 6.2 keeps a single file
    files = []
    # Redis 7 and Valkey list a base file, its increments, and history (h) that the base replaces.
    for line in (folder / "appendonly.aof.manifest").read_text(encoding="utf-8").splitlines():
        words = line.split(" ")
        fields = dict(zip(words[::2], words[1::2], strict=True))
        if fields["type"] in ("b", "i"):
            files.append(folder / fields["file"])
    return files


def _read(path: Path) -> Iterator[Transition]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as journal:
        if journal[:6].startswith(_RDB):
            raise ValueError(
                f"{path} is an RDB file, which cannot be read here; start Redis with `journaled`"
            )
        for entry in _ENTRY.finditer(journal):
            body = journal[entry.end() : entry.end() + int(entry["length"])]
            for line in body.decode().splitlines():
                id, state, stamp, attempt, *_ = line.split(" ")
                yield Transition(id, state, int(stamp), int(attempt))
