"""Job ids: sorted by submission time, unique without coordination, the shard's letter last."""

import itertools
import os
import re
import secrets
import time

ID_CHARS = 22
_TIME_CHARS = 10  # milliseconds since the epoch, 50 bits
ID_PATTERN = r"^[0-9A-HJKMNP-TV-Z]{10}[0-9A-Za-z]{12}$"

_ID = re.compile(ID_PATTERN, re.ASCII)
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: sorts like the values
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]  # the text of 10 bits


def _base32(value: int, chars: int) -> str:
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(5 * (chars - 1), -1, -5))


_process: str
_counter: "itertools.count[int]"


def _reseed() -> None:
    global _process, _counter
    _process, _counter = _base32(secrets.randbits(35), 7), itertools.count(secrets.randbits(16))


_reseed()
os.register_at_fork(after_in_child=_reseed)  # else a forked child would repeat its parent's ids


def new_id(now: float | None = None, *, shard: str = "a") -> str:
    """A job id: 10 characters of time, 4 of a counter, 7 of the process, and the shard's letter.

    `now` is Redis' time, seconds since the epoch; without it, tests and tools use this host's.
    """
    ms = int((time.time() if now is None else now) * 1000)
    pairs, count = _PAIRS, next(_counter)
    return (
        f"{pairs[ms >> 40 & 1023]}{pairs[ms >> 30 & 1023]}{pairs[ms >> 20 & 1023]}"
        f"{pairs[ms >> 10 & 1023]}{pairs[ms & 1023]}"
        f"{pairs[count >> 10 & 1023]}{pairs[count & 1023]}{_process}{shard}"
    )


def is_id(text: str) -> bool:
    """Whether the text has the form of an id; no other text may reach a database."""
    return _ID.fullmatch(text) is not None


def id_prefix(seconds: float) -> str:
    """The common prefix of ids made at `seconds` since the epoch; it sorts before all of them."""
    return _base32(max(0, min(int(seconds * 1000), (1 << 50) - 1)), _TIME_CHARS)


def id_time(id: str) -> float | None:
    """Seconds since the epoch at which the id was made; None if it is not one of our ids."""
    time = id[:_TIME_CHARS]
    if len(time) < _TIME_CHARS or not all(char in _ALPHABET for char in time):
        return None
    value = 0
    for char in time:
        value = value * 32 + _ALPHABET.index(char)
    return value / 1000
