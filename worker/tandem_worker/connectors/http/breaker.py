"""A circuit breaker per host, shared by a worker's jobs: failing hosts get no calls for a while.

    closed     calls pass; MAX_FAILURES failures in a row, without an answer in between, open it
    open       calls are refused until the pause is over
    half-open  one call passes, the probe; an answer closes the circuit, a failure opens it for
               longer

A failure is a connection that cannot be opened or breaks, or a 5xx. Any other response is an
answer. A caller's own timeout counts as neither: another caller may allow more time.
"""

import random as _random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tandem_worker.errors import TaskError

MAX_FAILURES = 20  # in a row; above what one job's attempts, or the restart of a host, cause
FIRST_PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 60.0
MAX_HOSTS = 10_000  # whose failures are remembered


def pause_seconds(openings: int) -> float:
    """How long a circuit stays open, the n-th time (1, 2, …) without an answer in between."""
    return min(FIRST_PAUSE_SECONDS * 2.0 ** min(openings - 1, 16), MAX_PAUSE_SECONDS)


@dataclass
class _Circuit:
    """State of a host that has failed; healthy hosts have no entry."""

    failures: int = 0  # in a row
    openings: int = 0  # in a row
    open_until: float = 0.0  # by the clock, if `openings`
    probe: "Permit | None" = None


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

    def enter(self, host: str) -> "Permit":
        """Permission for one call. Raises TaskError `circuit_open`, retryable `after` the pause.

        `after` is spread over twice the pause, so that refused calls do not all return at once.
        """
        circuit = self._circuits.get(host)
        permit = Permit(self, host)
        if circuit is None or not circuit.openings:
            return permit
        left = circuit.open_until - self._clock()
        if left > 0 or circuit.probe is not None:
            after = max(left, FIRST_PAUSE_SECONDS) * (1 + self._random())
            message = f"{host} failed {circuit.failures} times in a row and gets no calls for now"
            raise TaskError("circuit_open", message, retryable=True, after=round(after, 3))
        circuit.probe = permit
        return permit

    def record_answer(self, permit: "Permit") -> None:
        """Close the circuit."""
        self._circuits.pop(permit.host, None)

    def record_failure(self, permit: "Permit") -> None:
        """Count a failure, which may open the circuit."""
        circuit = self._circuits.get(permit.host)
        if circuit is None:
            if len(self._circuits) >= MAX_HOSTS:
                del self._circuits[next(iter(self._circuits))]  # the oldest
            circuit = self._circuits[permit.host] = _Circuit()
        # A call that began before the circuit opened may fail after it: only the probe counts now.
        if circuit.openings and circuit.probe is not permit:
            return
        circuit.failures += 1
        if circuit.failures >= MAX_FAILURES:
            circuit.openings += 1
            circuit.open_until = self._clock() + pause_seconds(circuit.openings)

    def release(self, permit: "Permit") -> None:
        """Let the next call be the probe if this one was; it may have been cancelled."""
        circuit = self._circuits.get(permit.host)
        if circuit is not None and circuit.probe is permit:
            circuit.probe = None


class Permit:
    """Permission for one call. Its holder reports the outcome, if known, and always the end."""

    __slots__ = ("_breaker", "host")

    def __init__(self, breaker: Breaker, host: str) -> None:
        self._breaker = breaker
        self.host = host

    def answered(self) -> None:
        self._breaker.record_answer(self)

    def failed(self) -> None:
        self._breaker.record_failure(self)

    def over(self) -> None:
        self._breaker.release(self)
