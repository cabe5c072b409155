"""The catalogue: what workers publish about their tasks, and all that the API knows of them."""

import hashlib
from typing import Any

import msgspec


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One task as its worker describes it. Schemas are JSON Schema 2020-12."""

    name: str
    summary: str = ""
    queue: str = "default"
    payload_schema: dict[str, Any]
    result_schema: dict[str, Any]
    defaults: dict[str, Any]  # {"timeout": seconds, "priority": …, "retry": {the fields of RetryPolicy}}
    example: Any = None  # a payload that the schema accepts
    version: int = 1  # a job runs only on workers whose version of its task is at least the one it was validated with


_entry = msgspec.json.Decoder(Entry)


def encode(entry: Entry) -> bytes:
    """The entry as the catalogue holds it, in one spelling, so that equal entries have equal bytes."""
    return msgspec.json.encode(entry, order="deterministic")


def decode(data: bytes) -> Entry:
    """The inverse of `encode`."""
    return _entry.decode(data)


def digest(entries: list[Entry]) -> str:
    """Names a worker's set of tasks and versions; workers with equal sets share what Redis keeps of it."""
    known = sorted(f"{entry.name}@{entry.version}" for entry in entries)
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
