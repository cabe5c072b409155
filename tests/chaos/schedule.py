"""What is done to the processes of a chaos run and when, by a seed: the same seed, the same schedule."""

import random
from collections.abc import Mapping
from typing import NamedTuple

WEIGHTS: Mapping[str, int] = {
    "kill worker": 5, "stop worker": 4, "end worker": 3, "kill api": 3, "end api": 3, "stop api": 2, "kill redis": 2,
    "stop redis": 2, "cut redis": 4, "slow redis": 2, "stall redis": 2, "cut clients": 4, "slow clients": 2,
    "stall clients": 2, "end database": 1, "no disk": 2, "late finishes": 4, "pause queue": 2,
}  # fmt: skip


class Fault(NamedTuple):
    """What happens `at` so many seconds after the begin, to which of its kind, for how long."""

    at: float
    kind: str
    target: int
    seconds: float
    dice: float  # from 0 to 1, for whatever else is to be decided


def schedule(
    seed: int, seconds: float, pause: float, weights: Mapping[str, int], *, lease: float
) -> list[Fault]:
    """Faults for that many seconds, `pause` apart on average."""
    chance = random.Random(seed)
    faults, at = [], 1.0
    while at < seconds:
        kind = chance.choices(list(weights), list(weights.values()))[0]
        # Longer than a lease as well as shorter: zombies are made by the former.
        faults.append(
            Fault(at, kind, chance.randrange(12), chance.uniform(0.2, 2.5) * lease, chance.random())
        )
        at += chance.uniform(0.5, 1.5) * pause
    return faults
