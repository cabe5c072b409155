"""The retry policy as data, and the delay before the next attempt as a pure function of it."""

import random as _random
from collections.abc import Callable
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from tandem_shared.times import DURATION_SCHEMA, Seconds

Backoff = Literal["exponential", "linear", "fixed"]

DEFAULT_MAX_ATTEMPTS = 3


class RetryPolicy(BaseModel):
    """How many attempts are made, and how far apart; durations as in tandem_shared.times."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: int = Field(default=DEFAULT_MAX_ATTEMPTS, ge=1, le=1000)
    backoff: Backoff = "exponential"
    base: Seconds = 1.0
    cap: Seconds = 300.0
    jitter: bool = True


_FIELD_SCHEMAS: dict[str, list[Any]] = {
    "max_attempts": [{"type": "integer", "minimum": 1, "maximum": 1000}],
    "backoff": [{"enum": list(get_args(Backoff))}],
    "base": DURATION_SCHEMA["anyOf"],
    "cap": DURATION_SCHEMA["anyOf"],
    "jitter": [{"type": "boolean"}],
}
# The JSON Schema of `options.retry`. A field that is left out or null takes the task's own value.
RETRY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        name: {"anyOf": [*schemas, {"type": "null"}]} for name, schemas in _FIELD_SCHEMAS.items()
    },
}


def retry_delay(
    policy: RetryPolicy,
    attempt: int,
    *,
    retryable: bool = True,
    after: float | None = None,
    random: Callable[[], float] = _random.random,
) -> float | None:
    """Seconds between the failure of attempt `attempt` (1, 2, …) and the next; None for no retry.

    `after` is the minimum that a server asked for (`Retry-After`), even above the cap. Jitter
    spreads the delay evenly over [0, backoff] ("full jitter"), so that jobs that failed together do
    not return together.
    """
    if not retryable or attempt >= policy.max_attempts:
        return None
    factors = {
        # Above any cap; the bound keeps the float finite.
        "exponential": 2.0 ** min(attempt - 1, 62),
        "linear": attempt,
        "fixed": 1,
    }
    wait = min(policy.base * factors[policy.backoff], policy.cap)
    if policy.jitter:
        wait *= random()
    return max(wait, after or 0.0)
