"""The formats of a stream: server-sent events, NDJSON and, for output alone, CSV."""

import csv
import io
import re
from collections.abc import Sequence
from typing import Protocol

import msgspec
from starlette.exceptions import HTTPException

from tandem_shared.jobs.states import State
from tandem_shared.streams.reader import EntryGroup, StreamEntry

SSE, CSV = "text/event-stream", "text/csv"
MAX_ACCEPT_CHARS = 4096  # the rest of the header is ignored
NDJSON_TYPES = ("application/x-ndjson", "application/jsonl")


_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")  # RFC 9110, 12.4.2


class StreamFormat(Protocol):
    """One way to write a stream; its bytes are sent as they are."""

    media_type: str
    start: bytes
    idle: bytes  # after a while without entries

    def write(self, group: EntryGroup) -> bytes:
        """The bytes of these entries. Raises Truncated."""
        ...


class Truncated(Exception):
    """The format cannot express the rest of the stream, so the body must break off."""


class SseFormat:
    """Server-sent events, as the WHATWG defines them."""

    media_type = SSE
    # Without an empty line: some clients take a block without data for an event.
    start = b"retry: 3000\n"
    idle = b": ping\n"

    def write(self, group: EntryGroup) -> bytes:
        """An event for each entry."""
        head, (stamp, first) = b"event: %s\ndata: " % group.type.encode(), group.position
        return b"".join(
            [
                b"id: %016d-%05d\n%s%s\n\n" % (stamp, item, head, text)
                for item, text in enumerate(group.json(), first)
            ]
        )


class NdjsonFormat:
    """One JSON object per line."""

    start = b""
    idle = b"\n"

    def __init__(self, media_type: str) -> None:
        self.media_type = media_type

    def write(self, group: EntryGroup) -> bytes:
        """A line for each entry."""
        return b"\n".join((*group.json(), b""))


class CsvFormat:
    """Output items as CSV (RFC 4180) under the keys of the first one.

    An item that is not an object is a row of one cell.
    """

    media_type = f"{CSV}; charset=utf-8; header=present"
    start = b""
    idle = b""

    def __init__(self) -> None:
        self._buffer = io.StringIO(newline="")
        self._writer = csv.writer(self._buffer)
        self._columns: list[str] | None = None
        self._attempt = 0

    def write(self, group: EntryGroup) -> bytes:
        """A row for each item."""
        return b"".join(map(self.write_entry, group.entries()))

    def write_entry(self, entry: StreamEntry) -> bytes:
        """The row of an output item; nothing for other entries. Raises Truncated."""
        if entry.type != "output":
            if entry.type == "end" and _final.decode(entry.data).state is not State.SUCCEEDED:
                raise Truncated
            return b""
        if self._columns is not None and entry.attempt != self._attempt:
            raise Truncated  # the new attempt starts over, and CSV cannot mark the old rows
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
    # Copy numbers as written: decoding a long one would lose digits.
    if value == b"null":
        return ""
    return _text.decode(value) if value.startswith(b'"') else value.decode()


def negotiate(accept: str, types: frozenset[str]) -> StreamFormat:
    """The format that an Accept header (RFC 9110, 12.5.1) prefers. Raises HTTPException 406."""
    offered = [SSE, *NDJSON_TYPES, *([CSV] if types == {"output"} else [])]
    ranges = [_range(part) for part in accept[:MAX_ACCEPT_CHARS].split(",") if part.strip()] or [
        ("*/*", 1.0)
    ]
    qualities = {media_type: _quality(media_type, ranges) for media_type in offered}
    chosen = max(offered, key=qualities.__getitem__)  # the first of equals
    if not qualities[chosen]:
        hint = (
            f"; {CSV} needs ?types=output" if CSV in accept.lower() and CSV not in offered else ""
        )
        raise HTTPException(406, f"accept one of {', '.join(offered)}{hint}", {"Vary": "Accept"})
    if chosen == SSE:
        return SseFormat()
    return CsvFormat() if chosen == CSV else NdjsonFormat(chosen)


def _range(part: str) -> tuple[str, float]:
    """A media range and its quality."""
    name, *parameters = (word.strip().lower() for word in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            quality = float(parameter[2:]) if _QUALITY.fullmatch(parameter[2:]) else 0.0
    return name, quality


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of the most specific range that includes the media type."""
    for candidate in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        found = [quality for name, quality in ranges if name == candidate]
        if found:
            return max(found)
    return 0.0
