"""Rows of the ledger: made of a record's fields as Redis has them, and made into a Record again."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec

from tandem_shared.jobs.record import RECORD_FIELDS, Record, parse
from tandem_shared.queue.events import LEDGER_FIELDS, LedgerValues

# Column → the record's field. `parse` and the scripts know the fields, SQL the columns.
COLUMNS = {
    # Texts
    "tenant": "tenant", "task": "task", "queue": "queue", "priority": "prio", "state": "state",
    "concurrency_key": "ck", "token": "token", "options": "opts", "attempts": "attempts", "progress": "progress",
    "result": "result", "error": "error", "files": "files",
    # Numbers
    "stamp": "v", "attempt": "attempt", "max_attempts": "max", "submitted": "at", "run": "run", "due": "due",
    "began": "began", "ended": "ended", "cancel": "cancel", "output": "o", "version": "ver", "concurrency_limit": "cl",
}  # fmt: skip
NUMBERS = frozenset(
    "stamp attempt max_attempts submitted run due began ended cancel output version concurrency_limit".split()
)
# What a job keeps for its whole life.
IMMUTABLE = frozenset(("tenant", "task", "queue", "priority", "submitted", "version", "options"))
MAX_TAG_NAME_CHARS, MAX_TAG_VALUE_CHARS = (
    64,
    256,
)  # characters, as api/tandem_api/validation/submission.py has them

_texts_of = itemgetter(
    *(LEDGER_FIELDS.index(field) for name, field in COLUMNS.items() if name not in NUMBERS)
)
_numbers_of = itemgetter(
    *(LEDGER_FIELDS.index(field) for name, field in COLUMNS.items() if name in NUMBERS)
)
_FIELDS = {field: name for name, field in COLUMNS.items()}
_STAMP, _TENANT, _OPTIONS = (
    LEDGER_FIELDS.index("v"),
    LEDGER_FIELDS.index("tenant"),
    LEDGER_FIELDS.index("opts"),
)
_TASK, _ERROR = LEDGER_FIELDS.index("task"), LEDGER_FIELDS.index("error")


class _Tagged(msgspec.Struct):
    tags: dict[str, str] = {}
    replay_of: str | None = None


class _Explained(msgspec.Struct):
    type: str = ""
    message: str = ""


_tags_of = msgspec.json.Decoder(_Tagged)
_error_of = msgspec.json.Decoder(_Explained)


class JobRow(msgspec.Struct, frozen=True):
    """A job to be written: `values` in the order of COLUMNS, then the payload and the words; its tags `name=value`."""

    id: str
    tenant: str
    stamp: int
    final: bool
    values: tuple[Any, ...]
    tags: tuple[str, ...]


def _text(value: str | None) -> str | None:
    # PostgreSQL has no character 0 in its texts.
    return (
        value
        if value is None or "\0" not in value
        else value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    )


def storable_text(text: str) -> str:
    """A text that both databases can hold, as tags are stored and looked for."""
    return text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _number(text: str) -> int:
    # A field that Lua wrote may be 1.7e+15.
    return int(text) if text.isdigit() else int(float(text))


def tag_text(name: str, value: str) -> str:
    """A tag as one text."""
    return storable_text(f"{name}={value}")[: MAX_TAG_NAME_CHARS + MAX_TAG_VALUE_CHARS + 1]


def replay_tag(origin: str) -> str:
    """The tag by which the replays of a job are found.

    No client's is like it: a name has a letter at least, so what begins with `=` has another one,
    and an id has none.
    """
    return f"={origin}"


def row_from_facts(id: str, facts: LedgerValues) -> JobRow:
    """The row of a job from what `Events.facts` says of it."""
    payload, options, error = facts[len(LEDGER_FIELDS)], facts[_OPTIONS] or "{}", facts[_ERROR]
    given = (
        _tags_of.decode(options) if '"tags"' in options or '"replay_of"' in options else _Tagged()
    )
    tags, origin = given.tags, given.replay_of
    values = (
        *map(_text, _texts_of(facts)),
        *[None if value is None else _number(value) for value in _numbers_of(facts)],
        _text(payload),
        _words(id, facts[_TASK] or "", tags, error),
    )
    return JobRow(
        id,
        storable_text(facts[_TENANT] or ""),
        _number(facts[_STAMP] or "0"),
        payload is not None,
        values,
        (
            *sorted(tag_text(name, value) for name, value in tags.items()),
            *([replay_tag(origin)] if origin is not None else []),
        ),
    )


def _words(id: str, task: str, tags: Mapping[str, str], error: str | bytes | None) -> str:
    parts = [id, task, *(f"{name}={value}" for name, value in tags.items())]
    if error is not None:
        explained = _error_of.decode(error)
        parts += [explained.type, explained.message]
    return storable_text(" ".join(parts)).casefold()


def search_text(record: Record) -> str:
    """What `q` looks through: id, task, tags, and type and message of the last error; case folded."""
    return _words(record.id, record.task, record.options.tags, record.error)


def record_from_row(columns: Sequence[str], values: Sequence[Any]) -> Record:
    """The record of a row whose columns are these."""
    found = dict(zip(columns, values, strict=True))
    raw = [
        None if (value := found.get(_FIELDS.get(field, ""))) is None else str(value).encode()
        for field in RECORD_FIELDS
    ]
    made = parse(found["id"], raw)
    if made is None:
        raise ValueError("a row without a state")
    return made
