"""Job ids: sortable by submission time, unique without coordination, with the shard as the last letter."""

import itertools
import os
import secrets
import time

ID_LENGTH = 22


_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: sorts as its values do


_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]  # what 10 bits are


_counter = itertools.count(secrets.randbits(16))


def _base32(value: int, width: int) -> str:
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(5 * (width - 1), -1, -5))


_process = _base32(secrets.randbits(35), 7)


def new_id(shard: str = "a") -> str:
    """A job id: 10 letters of ms time, 4 of a counter, 7 of the process, and the shard's letter last."""
    pairs, ms, count = _PAIRS, time.time_ns() // 1_000_000, next(_counter)
    return (
        f"{pairs[ms >> 40 & 1023]}{pairs[ms >> 30 & 1023]}{pairs[ms >> 20 & 1023]}{pairs[ms >> 10 & 1023]}"
        f"{pairs[ms & 1023]}{pairs[count >> 10 & 1023]}{pairs[count & 1023]}{_process}{shard}"
    )


def id_of(seconds: float) -> str:
    """The start of all ids that are made at that time, which sorts before them; seconds since the epoch."""
    return _base32(max(0, min(int(seconds * 1000), (1 << 50) - 1)), 10)


def id_time(id: str) -> float | None:
    """Seconds since the epoch at which the id was made, None if it is no id of ours."""
    if len(id) < 10 or any(letter not in _ALPHABET for letter in id[:10]):
        return None
    value = 0
    for letter in id[:10]:
        value = value * 32 + _ALPHABET.index(letter)
    return value / 1000


def _reseed() -> None:
    global _process, _counter  # a forked child must not repeat its parent's ids
    _process, _counter = _base32(secrets.randbits(35), 7), itertools.count(secrets.randbits(16))


os.register_at_fork(after_in_child=_reseed)
