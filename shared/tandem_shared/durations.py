"""Durations as people write them: a number of seconds, or `250ms`, `30s`, `5m`, `2h`, `7d`."""

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"
# What a duration may be in a request, for the schemas that the API validates with and shows.
SCHEMA: dict[str, Any] = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": PATTERN}]}

LONGEST = 2.0**1000  # seconds: for an integer above that, which JSON may well have, there is no float

_written = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")


def seconds(value: float | str | timedelta) -> float:
    """The duration in seconds; ValueError, in words for the writer, for anything that is none or is negative."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, str):
        match = _written.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r} is no duration: give a number of seconds, or 250ms, 30s, 5m, 2h, 7d")
        value = float(match[1]) * UNITS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no duration: give a number of seconds, or 250ms, 30s, 5m, 2h, 7d")
    if not 0 <= value < LONGEST:
        raise ValueError(f"a duration is finite and not negative, {value!r} is not")
    return float(value)


Duration = float | str | timedelta
Seconds = Annotated[float, BeforeValidator(seconds)]
