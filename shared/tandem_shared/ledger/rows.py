"""Rows of the ledger: made from a record's fields in Redis, and made back into a Record."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec

from tandem_shared.jobs.record import RECORD_FIELDS, Record, parse
from tandem_shared.queue.events import LEDGER_FIELDS, LedgerValues


def _same(names: str) -> dict[str, str]:
    return {name: name for name in names.split()}


# SQL column → the record's field in Redis.
_TEXTS = {
    **_same("tenant task queue state token attempts progress result error files"),
    "priority": "prio",
    "concurrency_key": "ck",
    "options": "opts",
}
_NUMBERS = {
    **_same("attempt run due began ended cancel"),
    "stamp": "v",
    "max_attempts": "max",
    "submitted": "at",
    "output": "o",
    "version": "ver",
    "concurrency_limit": "cl",
}
COLUMNS = {**_TEXTS, **_NUMBERS}
# Columns that never change after the submission.
IMMUTABLE = frozenset(("tenant", "task", "queue", "priority", "submitted", "version", "options"))
# The API validates tags against these limits.
MAX_TAG_NAME_CHARS, MAX_TAG_VALUE_CHARS = 64, 256

_columns = {field: name for name, field in COLUMNS.items()}
RECORD_COLUMNS = ("id", *map(_columns.__getitem__, RECORD_FIELDS[:-1]))  # what a Record is made of

_texts_of = itemgetter(*map(LEDGER_FIELDS.index, _TEXTS.values()))
_numbers_of = itemgetter(*map(LEDGER_FIELDS.index, _NUMBERS.values()))
_essentials_of = itemgetter(*map(LEDGER_FIELDS.index, ("v", "tenant", "task", "opts", "error")))


class _Options(msgspec.Struct):
    tags: dict[str, str] = {}
    replay_of: str | None = None


class StoredError(msgspec.Struct):
    type: str = ""
    message: str = ""


_options = msgspec.json.Decoder(_Options)
read_error = msgspec.json.Decoder(StoredError).decode


class JobRow(msgspec.Struct, frozen=True):
    """A job to be written; `values` as in COLUMNS, followed by payload and search text."""

    id: str
    tenant: str
    stamp: int
    final: bool
    values: tuple[Any, ...]
    tags: tuple[str, ...]  # see tag_text and replay_tag


def _without_nul(text: str | None) -> str | None:
    # PostgreSQL rejects the character 0 in texts.
    return text and text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def storable_text(text: str) -> str:
    """The text as both databases can store and compare it, also with lone surrogates."""
    return text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    # Lua may have written a number as 1.7e+15.
    return int(text) if text.isdigit() else int(float(text))


def tag_text(name: str, value: str) -> str:
    """A tag as the table stores it."""
    return storable_text(f"{name}={value}")[: MAX_TAG_NAME_CHARS + MAX_TAG_VALUE_CHARS + 1]


def replay_tag(origin: str) -> str:
    """The tag of all replays of the job `origin`.

    No tag of a client can equal it: tag names have at least one letter, so a tag that begins with
    `=` contains a second one, and an id contains none.
    """
    return f"={origin}"


def row_from_values(id: str, fields: LedgerValues) -> JobRow:
    """The row of a job, from what `Events.ledger_values` returns for it."""
    stamp, tenant, task, options, error = _essentials_of(fields)
    payload = fields[len(LEDGER_FIELDS)]
    given = _Options()
    if options is not None and ('"tags"' in options or '"replay_of"' in options):
        given = _options.decode(options)
    tags = sorted(tag_text(name, value) for name, value in given.tags.items())
    if given.replay_of is not None:
        tags.append(replay_tag(given.replay_of))
    values = (
        *map(_without_nul, _texts_of(fields)),
        *map(_number, _numbers_of(fields)),
        _without_nul(payload),
        _search_text(id, task or "", given.tags, error),
    )
    return JobRow(
        id,
        storable_text(tenant or ""),
        _number(stamp) or 0,
        payload is not None,
        values,
        tuple(tags),
    )


def _search_text(id: str, task: str, tags: Mapping[str, str], error: str | bytes | None) -> str:
    parts = [id, task, *(f"{name}={value}" for name, value in tags.items())]
    if error is not None:
        reason = read_error(error)
        parts += [reason.type, reason.message]
    return storable_text(" ".join(parts)).casefold()


def search_text(record: Record) -> str:
    """What `q` searches, case folded: id, task, tags, and the last error's type and message."""
    return _search_text(record.id, record.task, record.options.tags, record.error)


def record_from_row(row: Sequence[Any]) -> Record:
    """The record of a row of RECORD_COLUMNS. Raises ValueError for a row without a state."""
    id, *values = row
    record = parse(id, [*(None if one is None else str(one).encode() for one in values), None])
    if record is None:
        raise ValueError("the row has no state")
    return record
