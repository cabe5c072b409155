"""When a failed attempt is followed by another: a policy as data, and the delay as a pure function of it."""

import random as _random
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tandem_shared.times import DURATION_SCHEMA, Seconds

Backoff = Literal["exponential", "linear", "fixed"]


class RetryPolicy(BaseModel):
    """How often and how far apart attempts are made; durations are seconds or `250ms|30s|5m|2h|7d`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: int = Field(default=3, ge=1, le=1000)
    backoff: Backoff = "exponential"
    base: Seconds = 1.0
    cap: Seconds = 300.0
    jitter: bool = True


# The JSON Schema of `options.retry`: every field may be left out or null, and then the task's own
# holds.
RETRY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "max_attempts": {
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": 1000}, {"type": "null"}]
        },
        "backoff": {"anyOf": [{"enum": ["exponential", "linear", "fixed"]}, {"type": "null"}]},
        "base": {"anyOf": [*DURATION_SCHEMA["anyOf"], {"type": "null"}]},
        "cap": {"anyOf": [*DURATION_SCHEMA["anyOf"], {"type": "null"}]},
        "jitter": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
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
    """Seconds from the failure of attempt number `attempt` (1, 2, …) to the next one; None: there is none.

    `after` is what the other side asked for (`Retry-After`): a floor, also above the cap. With
    jitter the delay is spread evenly over [0, backoff] ("full jitter"), so that jobs which failed
    together do not come back together.
    """
    if not retryable or attempt >= policy.max_attempts:
        return None
    if policy.backoff == "exponential":
        # 2**62 seconds is far above any cap; the bound keeps the float finite
        wait = policy.base * 2.0 ** min(attempt - 1, 62)
    elif policy.backoff == "linear":
        wait = policy.base * attempt
    else:
        wait = policy.base
    wait = min(wait, policy.cap)
    if policy.jitter:
        wait *= random()
    return max(wait, after or 0.0)
