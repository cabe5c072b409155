"""A worker's metrics: plain numbers while jobs run, turned into Prometheus' form by a scrape.

The library's own counters take a lock and some microseconds per observation; a whole job takes tens
of them.
"""

import contextlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import accumulate
from typing import Any, Literal, get_args
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import make_wsgi_app, start_wsgi_server
from prometheus_client.registry import Collector

from tandem_shared.errors import Misconfigured
from tandem_shared.queue.messages import Finish

# What a worker does for many jobs at once: round trips to Redis, segments of output that move to
# the file store, and the ledger's batches (read from Redis, written to SQL, acknowledged).
Phase = Literal[
    "claim", "finish", "report", "archive", "ledger_read", "ledger_write", "ledger_acknowledge"
]
ObserveBatch = Callable[[Phase, float, int], None]  # see `WorkerMetrics.observe_batch`

MAX_BLOCKED_SECONDS = 5.0  # of a loop that still counts as live
BUCKET_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0)  # upper bounds


class Durations:
    """A histogram of seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKET_SECONDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKET_SECONDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds and cumulative counts, as Prometheus wants them."""
        bounds = (*map(str, BUCKET_SECONDS), "+Inf")
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class WorkerMetrics(Collector):
    """Attempts by task and outcome, and time by phase. Counted on the loop, read in any thread."""

    def __init__(self, running: Sized, capacity: int, zombies: Sized = ()) -> None:
        self._running, self._capacity, self._zombies = running, capacity, zombies
        self.loop_blocked: Callable[[], float] = float  # seconds for which the loop stands still
        self.ready: Callable[[], bool] = bool  # whether the worker claims jobs
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._jobs: Counter[tuple[str, str]] = Counter()
        self._waits: defaultdict[str, Durations] = defaultdict(Durations)  # by task
        self._runs: defaultdict[str, Durations] = defaultdict(Durations)
        self._writes = Durations()
        self._phases: dict[Phase, Durations] = {phase: Durations() for phase in get_args(Phase)}
        self._items: dict[Phase, int] = dict.fromkeys(self._phases, 0)

    def attempt_started(self, task: str, waited: float) -> None:
        """Count an attempt that started `waited` seconds after it was due."""
        self._waits[task].observe(max(0.0, waited))

    def attempt_ended(self, task: str, finish: Finish | None, ran: float) -> None:
        """Count an attempt that ran for `ran` seconds. None: the worker no longer held the job."""
        self._outcomes[task, "lost" if finish is None else finish.outcome] += 1
        self._runs[task].observe(ran)

    def job_ended(self, task: str, outcome: str) -> None:
        """Count a job whose end this worker copied to the ledger."""
        self._jobs[task, outcome] += 1

    def outcome_written(self, seconds: float) -> None:
        """Count an outcome that reached Redis `seconds` after its attempt ended."""
        self._writes.observe(seconds)

    def observe_batch(self, phase: Phase, seconds: float, items: int) -> None:
        """Count a batch of `items`: jobs, outcomes, reports, chunks of output, or rows."""
        self._phases[phase].observe(seconds)
        self._items[phase] += items

    def collect(self) -> Iterator[Metric]:
        """Build the metrics."""
        yield GaugeMetricFamily(
            "tandem_worker_running", "Attempts that run on this worker.", len(self._running)
        )
        yield GaugeMetricFamily(
            "tandem_worker_concurrency", "Jobs this worker runs at once.", self._capacity
        )
        yield GaugeMetricFamily(
            "tandem_worker_zombies",
            "Code that still runs although its job has ended: it ignored its cancellation.",
            len(self._zombies),
        )
        yield GaugeMetricFamily(
            "tandem_worker_loop_blocked_seconds",
            "For how long one job has kept the event loop from all others.",
            self.loop_blocked(),
        )
        attempts = CounterMetricFamily(
            "tandem_attempts",
            "Attempts that ended, by outcome; lost: the worker no longer held the job.",
            labels=("task", "outcome"),
        )
        for labels, count in list(self._outcomes.items()):
            attempts.add_metric(labels, count)
        yield attempts
        jobs = CounterMetricFamily(
            "tandem_jobs",
            "Jobs that ended, wherever that was decided: succeeded, failed, cancelled, timeout,"
            " worker_lost, expired, record_lost. Counted by the worker that copies the end to the"
            " ledger; sum over the workers.",
            labels=("task", "outcome"),
        )
        for labels, count in list(self._jobs.items()):
            jobs.add_metric(labels, count)
        yield jobs
        yield _histogram(
            "tandem_attempt_wait_seconds", "From when a job was due to its start.", self._waits
        )
        yield _histogram("tandem_attempt_run_seconds", "How long attempts ran.", self._runs)
        yield HistogramMetricFamily(
            "tandem_attempt_write_seconds",
            "From an attempt's end to its outcome in Redis.",
            self._writes.buckets(),
            self._writes.total,
        )
        yield _histogram(
            "tandem_worker_phase_seconds",
            "Duration of the batches in which a worker serves many jobs at once.",
            self._phases,
            label="phase",
        )
        items = CounterMetricFamily(
            "tandem_worker_phase_items", "Items in those batches.", labels=("phase",)
        )
        for phase, count in self._items.items():
            items.add_metric((phase,), count)
        yield items


def _histogram(
    name: str, text: str, durations: Mapping[Any, Durations], *, label: str = "task"
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=(label,))
    for value, one in list(durations.items()):
        family.add_metric((value,), one.buckets(), one.total)
    return family


def _with_probes(metrics: WorkerMetrics, scrape: WSGIApplication) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path not in ("/livez", "/readyz"):
            return scrape(environ, start_response)
        blocked = metrics.loop_blocked()
        text = "ok"
        if blocked > MAX_BLOCKED_SECONDS:
            text = f"the event loop has been blocked for {blocked:.0f} s"
        elif path == "/readyz" and not metrics.ready():
            text = "the worker claims no jobs: it starts or drains"
        status = "200 OK" if text == "ok" else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    return answer


@contextlib.contextmanager
def serving(metrics: WorkerMetrics, host: str, port: int) -> Iterator[int]:
    """Answer `GET /metrics` in a thread, also while the loop is busy; port 0 serves nothing.

    `/livez` is 503 while the loop is blocked, `/readyz` also before the worker claims jobs and once
    it drains.
    Yields the port. Raises Misconfigured if it cannot listen on the port.
    """
    if not port:
        yield 0
        return
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    try:
        server, thread = start_wsgi_server(port, host, registry)
        server.set_app(_with_probes(metrics, make_wsgi_app(registry)))
    except OSError as error:
        reason = error.strerror or str(error)
        raise Misconfigured(
            "TANDEM_METRICS_HOST, TANDEM_METRICS_PORT:"
            f" cannot listen on {host} port {port}: {reason}"
        ) from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
