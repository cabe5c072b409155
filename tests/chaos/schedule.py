"""Which faults happen in a chaos run and when: the same seed gives the same schedule."""

import random
from collections.abc import Mapping
from typing import NamedTuple

WEIGHTS: Mapping[str, int] = {
    "kill worker": 5, "stop worker": 4, "end worker": 3, "kill api": 3, "end api": 3, "stop api": 2,
    "kill redis": 2, "stop redis": 2, "cut redis": 4, "slow redis": 2, "stall redis": 2,
    "cut clients": 4, "slow clients": 2, "stall clients": 2, "end database": 1, "no disk": 2,
    "late finishes": 4, "pause queue": 2, "rewind redis": 2, "suspend worker": 2,
    "shift worker": 2, "shift api": 2,
}  # fmt: skip


class ScheduledFault(NamedTuple):
    """A fault `at` so many seconds after the start of the run."""

    at: float
    kind: str
    target: int  # which process of its kind, modulo their number
    seconds: float  # how long it lasts
    dice: float  # from 0 to 1, for every other choice


def schedule(
    seed: int, seconds: float, pause: float, weights: Mapping[str, int], *, lease: float
) -> list[ScheduledFault]:
    """Faults for that many seconds, `pause` seconds apart on average."""
    chance = random.Random(seed)
    faults, at = [], 1.0
    while at < seconds:
        kind = chance.choices(list(weights), list(weights.values()))[0]
        target = chance.randrange(12)
        # Some last longer than a lease: those make zombies.
        duration = chance.uniform(1.2 if kind.startswith("suspend") else 0.2, 2.5) * lease
        faults.append(ScheduledFault(at, kind, target, duration, chance.random()))
        at += chance.uniform(0.5, 1.5) * pause
    return faults
