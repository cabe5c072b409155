"""What clients submit in a chaos run: kinds of jobs, how often each is chosen, and its body."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

RETRY = {"max_attempts": 6, "base": "50ms", "cap": "500ms"}
INSERT = "INSERT INTO applied (key) VALUES ($1)"
KEYS = 6  # concurrency keys; the limit of each is 1 or 2
LOCKS = 4

WEIGHTS: Mapping[str, float] = {
    "quick": 30, "slow": 12, "thread": 4, "flaky": 8, "refuses": 3, "late": 2, "poison": 0.03,
    "stream": 4, "socket": 2, "file": 4, "sql": 14, "delayed": 6, "cancelled": 6, "keyed": 5,
    "locked": 3, "steps": 3, "bulk": 9, "lines": 6, "blocks": 0.4, "stuck": 0.05, "crowd": 0.03,
}  # fmt: skip


TASKS = {
    "stream": "chaos.stream", "socket": "chaos.stream", "sql": "sql.execute",
    "delayed": "chaos.quick", "cancelled": "chaos.slow", "keyed": "chaos.slow",
    "stuck": "chaos.blocks",
}  # fmt: skip


ITEMS = range(20, 400)
SLOW = (0.02, 0.1, 0.5, 2.5)
# The values of a payload, by kind of job.
PAYLOADS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "slow": {"seconds": SLOW}, "thread": {"seconds": SLOW}, "cancelled": {"seconds": (1.0,)},
    "keyed": {"seconds": (0.02, 0.1, 0.4)}, "flaky": {"fails": (1, 2)},
    "blocks": {"seconds": (0.3, 2.5, 5.0)}, "stuck": {"seconds": (20.0,)},
    "stream": {"count": ITEMS, "seconds": (0.0, 0.01, 0.05)},
    "socket": {"count": ITEMS, "seconds": (0.0, 0.01, 0.05)},
    "file": {"count": (10, 300_000, 2_000_000)},
    "locked": {"lock": range(LOCKS), "seconds": (0.0, 0.05, 0.2)},
    "steps": {"count": range(2, 5), "seconds": (0.02, 0.2, 0.6)},
}  # fmt: skip


class JobRequest(NamedTuple):
    """The body of a submission, and what its client and the checker need to know about it."""

    body: dict[str, Any]
    concurrency_key: tuple[str, int] | None = None  # the key and its limit
    size: int = 0  # items of its output, or bytes of its file


def job_request(kind: str, key: str, chance: random.Random) -> JobRequest:
    """A job of that kind."""
    payload = {"key": key, **_payload(kind, chance)}
    options: dict[str, Any] = {"retry": RETRY}
    concurrency_key = None
    match kind:
        case "late":
            options = {"timeout": "300ms", "retry": {**RETRY, "max_attempts": 2}}
        case "stuck":
            options = {"timeout": "1s", "retry": {**RETRY, "max_attempts": 1}}
        case "sql":
            payload = {"connection": "effects", "statements": [{"sql": INSERT, "params": [key]}]}
        case "delayed":
            options["delay"] = f"{chance.randrange(100, 5000)}ms"
        case "keyed":
            number = chance.randrange(KEYS)
            concurrency_key = (f"key-{number}", 1 + number % 2)
            names = ("concurrency_key", "concurrency_limit")
            options |= dict(zip(names, concurrency_key, strict=True))
        case "locked":
            options["timeout"] = "2m"  # includes the wait for the lock
    body = {"task": TASKS.get(kind, f"chaos.{kind}"), "payload": payload, "options": options}
    return JobRequest(body, concurrency_key, payload.get("count", 0))


def _payload(kind: str, chance: random.Random) -> dict[str, Any]:
    values = {name: chance.choice(values) for name, values in PAYLOADS.get(kind, {}).items()}
    return {**values, "lock": f"lock-{values['lock']}"} if "lock" in values else values
