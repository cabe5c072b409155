"""What a worker counts, for Prometheus: plain numbers while jobs run, made into families when somebody asks.

The library's own counters take a lock and some microseconds an observation; a job takes tens of
them in all.
"""

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import start_wsgi_server
from prometheus_client.registry import Collector

from tandem_shared.errors import Misconfigured
from tandem_shared.queue.messages import Finish

# What a worker does for many jobs at once: round trips to Redis, segments of output on their way to
# the file store, and the ledger's batches: what is read from Redis, written to SQL, and then
# acknowledged.
Phase = Literal[
    "claim", "finish", "report", "archive", "ledger_read", "ledger_write", "ledger_acknowledge"
]
Spent = Callable[[Phase, float, int], None]  # see `Tally.spent`

BOUNDS = (
    0.001,
    0.005,
    0.02,
    0.1,
    0.5,
    2.0,
    10.0,
    60.0,
    600.0,
)  # seconds, the upper ends of the buckets


class Times:
    """How long something took: a histogram of seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Upper end and how many took no longer, as Prometheus wants them."""
        sums, sum_ = [], 0
        for end, count in zip((*map(str, BOUNDS), "+Inf"), list(self.counts), strict=True):
            sum_ += count
            sums.append((end, float(sum_)))
        return sums


def untold(phase: Phase, seconds: float, items: int) -> None:
    """For whom nobody counts."""


class Tally(Collector):
    """Attempts by task and outcome, where their time goes and the worker's. Counted on the loop, read in any thread."""

    def __init__(self, running: Sized, capacity: int) -> None:
        self._running, self._capacity = running, capacity
        self._outcomes: dict[tuple[str, str], int] = {}
        self._waits: dict[str, Times] = {}
        self._runs: dict[str, Times] = {}
        self._writes = Times()
        self._phases: dict[Phase, Times] = {phase: Times() for phase in get_args(Phase)}
        self._items: dict[Phase, int] = dict.fromkeys(self._phases, 0)

    def started(self, task: str, waited: float) -> None:
        """An attempt starts, `waited` seconds after it was due."""
        times = self._waits.get(task)
        if times is None:
            times = self._waits[task] = Times()
        times.add(max(0.0, waited))

    def ended(self, task: str, finish: Finish | None, ran: float) -> None:
        """An attempt ended after `ran` seconds; None: its job was no longer this worker's."""
        key = (task, "lost" if finish is None else finish.outcome)
        self._outcomes[key] = self._outcomes.get(key, 0) + 1
        times = self._runs.get(task)
        if times is None:
            times = self._runs[task] = Times()
        times.add(ran)

    def written(self, seconds: float) -> None:
        """An outcome is written, so many seconds after its attempt ended."""
        self._writes.add(seconds)

    def spent(self, phase: Phase, seconds: float, items: int) -> None:
        """A batch of so many items (jobs, outcomes, reports, entries of output, rows) has taken so long."""
        self._phases[phase].add(seconds)
        self._items[phase] += items

    def collect(self) -> Iterator[Metric]:
        """The families."""
        yield GaugeMetricFamily(
            "tandem_worker_running", "Attempts that run on this worker.", len(self._running)
        )
        yield GaugeMetricFamily(
            "tandem_worker_concurrency", "Jobs this worker runs at once.", self._capacity
        )
        attempts = CounterMetricFamily(
            "tandem_attempts",
            "Attempts that ended, by outcome; lost: with the lease.",
            labels=("task", "outcome"),
        )
        for (task, outcome), count in list(self._outcomes.items()):
            attempts.add_metric((task, outcome), count)
        yield attempts
        yield _histogram(
            "tandem_attempt_wait_seconds", "From when a job was due to its start.", self._waits
        )
        yield _histogram("tandem_attempt_run_seconds", "How long attempts ran.", self._runs)
        writes = "From an attempt's end to its outcome in Redis."
        yield HistogramMetricFamily(
            "tandem_attempt_write_seconds", writes, self._writes.buckets(), self._writes.total
        )
        phases = "What the worker does for many jobs at once, a batch each."
        yield _histogram("tandem_worker_phase_seconds", phases, self._phases, label="phase")
        items = CounterMetricFamily(
            "tandem_worker_phase_items", "What those batches held.", labels=("phase",)
        )
        for phase, count in self._items.items():
            items.add_metric((phase,), count)
        yield items


def _histogram(
    name: str, text: str, times: Mapping[Any, Times], *, label: str = "task"
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=(label,))
    for value, one in list(times.items()):
        family.add_metric((value,), one.buckets(), one.total)
    return family


@contextlib.contextmanager
def serving(tally: Tally, host: str, port: int) -> Iterator[int]:
    """Answers `GET /metrics` in a thread of its own, so also while the loop is busy. Gives the port; 0 serves none.

    Raises Misconfigured if the port cannot be had.
    """
    if not port:
        yield 0
        return
    registry = CollectorRegistry()
    registry.register(tally)
    ProcessCollector(registry=registry)
    try:
        server, thread = start_wsgi_server(port, host, registry)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"TANDEM_METRICS_HOST, TANDEM_METRICS_PORT: cannot listen on {host} port {port}: {reason}"
        raise Misconfigured(message) from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
