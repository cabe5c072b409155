"""Times and durations as clients write and read them.

A time is RFC 3339, written in UTC with milliseconds and read with any offset. A duration is a
number of seconds, or a text such as `250ms`, `30s`, `5m`, `2h`, `7d`.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BeforeValidator

SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"
# The JSON Schema of a duration in a request: the API validates with it and publishes it.
DURATION_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": DURATION_PATTERN}]
}
# JSON integers can exceed every float; below this bound float() is safe.
MAX_DURATION_SECONDS = 2.0**1000

_duration = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_rfc3339_time = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def rfc3339(seconds: float | None) -> str | None:
    """Seconds since the epoch as RFC 3339; None for None."""
    if seconds is None:
        return None
    whole, rest = divmod(seconds, 1)
    return _rfc3339(int(whole) * 1_000_000 + round(rest * 1_000_000))


def rfc3339_of_stamp(stamp: int | None) -> str | None:
    """Microseconds since the epoch as RFC 3339; None for None and for 0."""
    return _rfc3339(stamp) if stamp else None


def _rfc3339(stamp: int) -> str:
    seconds, micros = divmod(stamp, 1_000_000)
    return f"{_rfc3339_second(seconds)}.{micros // 1000:03d}Z"


@lru_cache(maxsize=4096)
def _rfc3339_second(seconds: int) -> str:
    # Many jobs share a second, and strftime takes ten times as long as this cache.
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def parse_rfc3339(text: str) -> float | None:
    """Seconds since the epoch of an RFC 3339 time with its offset; None for any other text."""
    if not _rfc3339_time.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper()).timestamp()
    except (ValueError, OverflowError):  # February 30, or a time before the year 1 in UTC
        return None


def parse_duration(value: float | str | timedelta) -> float:
    """The duration in seconds. Raises ValueError, worded for the client, for anything else."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    elif isinstance(value, str) and (match := _duration.fullmatch(value.strip())):
        value = float(match[1]) * SECONDS_PER_UNIT[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"{value!r} is not a duration; use a number of seconds, or 250ms, 30s, 5m, 2h, 7d"
        )
    if not 0 <= value < MAX_DURATION_SECONDS:
        raise ValueError(f"a duration must be finite and not negative, not {value!r}")
    return float(value)


Duration = float | str | timedelta
Now = Callable[[], float]  # a clock: seconds since the epoch
Seconds = Annotated[float, BeforeValidator(parse_duration)]
