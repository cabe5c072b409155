"""A circuit breaker for each host, shared by all jobs of a worker: a host that keeps failing is left alone for a while.

    closed     calls go through; FAULTS failures in a row, with no answer in between, open it
    open       calls are refused until its pause is over
    half-open  one call goes through, the probe; an answer closes the circuit, a failure opens it
    for longer

A failure is a connection that does not come about or breaks, or a 5xx. Anything else that the host
says is an answer. That a caller's own time ran out says nothing, since another caller may give
more.
"""

import random as _random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tandem_worker.errors import TaskError

FAULTS = 20  # in a row: above what one job with many attempts, or a restart of the host, makes
PAUSE = 5.0  # seconds, the first time
LONGEST = 60.0  # seconds
HOSTS = 10_000  # with failures that are remembered


def pause(openings: int) -> float:
    """Seconds that a circuit stays open when it opens for the n-th time (1, 2, …) without an answer in between."""
    return min(PAUSE * 2.0 ** min(openings - 1, 16), LONGEST)


@dataclass
class _Circuit:
    """A host with failures; one without has none."""

    faults: int = 0  # in a row
    openings: int = 0  # in a row
    until: float = 0.0  # by the clock; if openings
    probe: "Pass | None" = None


class Breaker:
    """The circuits of one worker. `clock` counts seconds."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._clock, self._random = clock, random
        self._circuits: dict[str, _Circuit] = {}

    def enter(self, host: str) -> "Pass":
        """Leave for one call. Raises TaskError `circuit_open`, retryable `after` the pause.

        Those that are refused are asked to come back spread over as long again, so that they do not
        all come at once.
        """
        circuit = self._circuits.get(host)
        passed = Pass(self, host)
        if circuit is None or not circuit.openings:
            return passed
        left = circuit.until - self._clock()
        if left > 0 or circuit.probe is not None:
            after = max(left, PAUSE) * (1 + self._random())
            message = f"{host} failed {circuit.faults} times in a row and is left alone for a while"
            raise TaskError("circuit_open", message, retryable=True, after=round(after, 3))
        circuit.probe = passed
        return passed

    def _answered(self, passed: "Pass") -> None:
        self._circuits.pop(passed.host, None)

    def _failed(self, passed: "Pass") -> None:
        circuit = self._circuits.get(passed.host)
        if circuit is None:
            if len(self._circuits) >= HOSTS:
                del self._circuits[next(iter(self._circuits))]  # the oldest
            circuit = self._circuits[passed.host] = _Circuit()
        # Calls that began before it opened may fail after it: they tell nothing new.
        if circuit.openings and circuit.probe is not passed:
            return
        circuit.faults += 1
        if circuit.faults >= FAULTS:
            circuit.openings += 1
            circuit.until = self._clock() + pause(circuit.openings)

    def _left(self, passed: "Pass") -> None:
        circuit = self._circuits.get(passed.host)
        if circuit is not None and circuit.probe is passed:
            circuit.probe = None


class Pass:
    """One call's leave. Whoever has it says how the call went, if that is known, and in the end that it is over."""

    __slots__ = ("_breaker", "host")

    def __init__(self, breaker: Breaker, host: str) -> None:
        self._breaker = breaker
        self.host = host

    def answered(self) -> None:
        self._breaker._answered(self)  # noqa: SLF001 - the two are one

    def failed(self) -> None:
        self._breaker._failed(self)  # noqa: SLF001 - likewise

    def over(self) -> None:
        """A probe that ended without a word, cancelled say, leaves its place to the next call."""
        self._breaker._left(self)  # noqa: SLF001 - likewise
