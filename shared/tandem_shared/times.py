"""Times as clients read them: RFC 3339 in UTC with milliseconds."""

from datetime import UTC, datetime
from functools import lru_cache


def rfc3339(seconds: float | None) -> str | None:
    """Of seconds since the epoch; None of None."""
    if seconds is None:
        return None
    whole, rest = divmod(seconds, 1)
    return _written(int(whole) * 1_000_000 + round(rest * 1_000_000))


def of_stamp(stamp: int | None) -> str | None:
    """Of µs since the epoch; None of None and of 0."""
    return _written(stamp) if stamp else None


def _written(stamp: int) -> str:
    seconds, micros = divmod(stamp, 1_000_000)
    return f"{_second(seconds)}.{micros // 1000:03d}Z"


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    # Many jobs share one, and the library takes ten times as long.
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
