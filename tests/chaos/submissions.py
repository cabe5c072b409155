"""What is submitted in a chaos run: kinds of work, how often each is chosen, and its body."""

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

RETRY = {"max_attempts": 6, "base": "50ms", "cap": "500ms"}
INSERT = "INSERT INTO applied (key) VALUES ($1)"
KEYS = 6  # concurrency keys; each has a limit of its own, 1 or 2
LOCKS = 4

WEIGHTS: Mapping[str, float] = {
    "quick": 30, "slow": 12, "thread": 4, "flaky": 8, "refuses": 3, "late": 2, "poison": 0.03, "stream": 4, "socket": 2,
    "file": 4, "sql": 14, "delayed": 6, "cancelled": 6, "keyed": 5, "locked": 3, "steps": 3, "bulk": 9, "lines": 6,
}  # fmt: skip


TASKS = {
    "stream": "chaos.stream", "socket": "chaos.stream", "sql": "sql.execute", "delayed": "chaos.quick",
    "cancelled": "chaos.slow", "keyed": "chaos.slow",
}  # fmt: skip


class Work(NamedTuple):
    """A submission: its body, and what a client has to know of it besides."""

    body: dict[str, Any]
    held: tuple[str, int] | None = None  # concurrency key and limit
    items: int = 0  # of its output, or bytes of its file


def work(kind: str, key: str, chance: random.Random) -> Work:
    """One submission of that kind."""
    payload = {"key": key, **_payload(kind, chance)}
    options: dict[str, Any] = {"retry": RETRY}
    held = None
    match kind:
        case "late":
            options = {"timeout": "300ms", "retry": {**RETRY, "max_attempts": 2}}
        case "sql":
            payload = {"connection": "effects", "statements": [{"sql": INSERT, "params": [key]}]}
        case "delayed":
            options["delay"] = f"{chance.randrange(100, 5000)}ms"
        case "keyed":
            number = chance.randrange(KEYS)
            held = (f"key-{number}", 1 + number % 2)
            options |= {"concurrency_key": held[0], "concurrency_limit": held[1]}
        case "locked":
            options["timeout"] = "2m"  # which counts while it waits for the lock
    body = {"task": TASKS.get(kind, f"chaos.{kind}"), "payload": payload, "options": options}
    return Work(body, held, payload.get("count", 0))


def _payload(kind: str, chance: random.Random) -> dict[str, Any]:
    match kind:
        case "slow" | "thread":
            return {"seconds": chance.choice((0.02, 0.1, 0.5, 2.5))}
        case "cancelled":
            return {"seconds": 1.0}
        case "keyed":
            return {"seconds": chance.choice((0.02, 0.1, 0.4))}
        case "flaky":
            return {"fails": chance.randrange(1, 3)}
        case "stream" | "socket":
            return {"count": chance.randrange(20, 400), "seconds": chance.choice((0.0, 0.01, 0.05))}
        case "file":
            return {"count": chance.choice((10, 300_000, 2_000_000))}
        case "locked":
            return {
                "lock": f"lock-{chance.randrange(LOCKS)}",
                "seconds": chance.choice((0.0, 0.05, 0.2)),
            }
        case "steps":
            return {"count": chance.randrange(2, 5), "seconds": chance.choice((0.02, 0.2, 0.6))}
    return {}
