"""How a stream is written: as server-sent events, as lines of JSON, or its output as CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Protocol

import msgspec
from starlette.exceptions import HTTPException

from tandem_shared.jobs.states import State
from tandem_shared.streams.reader import EntryGroup, StreamEntry

SSE, CSV = "text/event-stream", "text/csv"
LINES = ("application/x-ndjson", "application/jsonl")


class Format(Protocol):
    """One way to write a stream; what the methods return is sent as it is, b"" for nothing."""

    media_type: str
    start: bytes
    idle: bytes  # after a while without entries

    def written(self, group: EntryGroup) -> bytes:
        """Raises Cut."""
        ...


class Cut(Exception):
    """The stream cannot be told to its end in this format: the body is aborted, so that nobody takes it for whole."""


class Events:
    """Server-sent events, as the WHATWG has them."""

    media_type = SSE
    start = b"retry: 3000\n\n"
    idle = b": ping\n\n"

    def written(self, group: EntryGroup) -> bytes:
        head, (stamp, first) = b"event: %s\ndata: " % group.type.encode(), group.position
        return b"".join(
            [
                b"id: %016d-%05d\n%s%s\n\n" % (stamp, item, head, text)
                for item, text in enumerate(group.json(), first)
            ]
        )


class Lines:
    """One JSON object a line."""

    start = b""
    idle = b"\n"

    def __init__(self, media_type: str) -> None:
        self.media_type = media_type

    def written(self, group: EntryGroup) -> bytes:
        return b"\n".join((*group.json(), b""))


class Table:
    """Output items as CSV (RFC 4180), the first item's keys as the header; what is no object is a row of one cell."""

    media_type = f"{CSV}; charset=utf-8; header=present"
    start = b""
    idle = b""

    def __init__(self) -> None:
        self._buffer = io.StringIO(newline="")
        self._writer = csv.writer(self._buffer)
        self._columns: list[str] | None = None
        self._attempt = 0

    def written(self, group: EntryGroup) -> bytes:
        return b"".join(map(self.entry, group.entries()))

    def entry(self, entry: StreamEntry) -> bytes:
        """One of them."""
        if entry.type != "output":
            if entry.type == "end" and _final.decode(entry.data).state is not State.SUCCEEDED:
                raise Cut
            return b""
        if self._columns is not None and entry.attempt != self._attempt:
            raise Cut  # the new attempt gives all rows again, and nothing in CSV can say so
        self._attempt = entry.attempt
        item = _cells(entry.data)
        rows: list[Sequence[str]] = []
        if self._columns is None:
            self._columns = list(item)
            rows.append(self._columns)
        rows.append([item.get(column, "") for column in self._columns])
        self._writer.writerows(rows)
        text = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return text.encode()


class _Final(msgspec.Struct):
    state: State


_final = msgspec.json.Decoder(_Final)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)


def _cells(item: bytes) -> dict[str, str]:
    if not item.startswith(b"{"):
        return {"value": _cell(item)}
    return {name: _cell(bytes(value)) for name, value in _object.decode(item).items()}


def _cell(value: bytes) -> str:
    # Numbers stay as they were written: a float would lose digits of a long one.
    if value == b"null":
        return ""
    return _text.decode(value) if value.startswith(b'"') else value.decode()


# -------------------------------------------------------------------------------------- negotiation


def negotiate(accept: str, types: frozenset[str]) -> Format:
    """The format that an Accept header (RFC 9110, 12.5.1) likes best. Raises HTTPException 406."""
    offered = [SSE, *LINES, *([CSV] if types == {"output"} else [])]
    ranges = [_range(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    best, chosen = 0.0, ""
    for media_type in offered:
        quality = _quality(media_type, ranges)
        if quality > best:
            best, chosen = quality, media_type
    if not chosen:
        wanted = (
            "text/csv is for ?types=output alone; "
            if CSV in accept.lower() and CSV not in offered
            else ""
        )
        raise HTTPException(406, f"{wanted}there are {', '.join(offered)}", {"Vary": "Accept"})
    if chosen == SSE:
        return Events()
    return Table() if chosen == CSV else Lines(chosen)


def _range(part: str) -> tuple[str, float]:
    name, *parameters = (word.strip().lower() for word in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = float(parameter[2:])
            except ValueError:
                quality = 0.0
    return name, quality


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """What the most specific range that fits says."""
    for wanted in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        found = [quality for name, quality in ranges if name == wanted]
        if found:
            return max(found)
    return 0.0
