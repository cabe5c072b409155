"""Jobs for a ledger, made without a queue: their facts as Redis returns them, and their rows."""

import random
from typing import Any

import msgspec

from tandem_shared.jobs.ids import id_prefix, new_id
from tandem_shared.jobs.states import State
from tandem_shared.ledger.rows import JobRow, row_from_values
from tandem_shared.queue.events import LEDGER_FIELDS, LedgerValues

BEGAN = 1_800_000_000 * 1_000_000  # µs


def facts(state: State = State.QUEUED, stamp: int = BEGAN, **given: Any) -> LedgerValues:
    """The facts of a job, as `Events.ledger_values` returns them."""
    final = state in (State.SUCCEEDED, State.FAILED, State.CANCELLED)
    options: dict[str, Any] = {"timeout": 30}
    if tags := given.pop("tags", None):
        options["tags"] = tags
    values: dict[str, Any] = {
        "state": state.value,
        "task": "t",
        "tenant": "default",
        "queue": "default",
        "prio": "normal",
        "v": stamp,
        "attempt": 1,
        "max": 3,
        "at": BEGAN,
        "due": BEGAN // 1000,
        "ver": 1,
        "opts": msgspec.json.encode(options).decode(),
        "ended": stamp if final else None,
        **given,
    }
    payload = '{"n": 1}' if final else None
    return [
        None if (value := values.get(name)) is None else str(value) for name in LEDGER_FIELDS
    ] + [payload]


def many(count: int, *, seed: int = 1) -> list[JobRow]:
    """Jobs of all kinds, one per second."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        state = chance.choice(list(State))
        tags = {"customer": str(chance.randrange(5)), "odd": "ja" if number % 2 else "nein"}
        error = {
            "type": "card",
            "message": f"No. {number} 100%_of!it",
            "retryable": True,
            "attempt": 1,
        }
        rows.append(
            row_from_values(
                id_prefix(BEGAN / 1e6 + number) + new_id()[10:],
                facts(
                    state,
                    BEGAN + number * 1_000_000,
                    at=BEGAN + number * 1_000_000,
                    task=chance.choice(["a.one", "a.two", "b"]),
                    queue=chance.choice(["default", "mail"]),
                    tenant="acme" if number % 7 == 0 else "default",
                    tags=tags if number % 3 else None,
                    error=msgspec.json.encode(error).decode() if state is State.FAILED else None,
                ),
            )
        )
    return rows
