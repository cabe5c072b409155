"""GET /metrics for Prometheus: the queues as Redis knows them, and the requests of this API."""

import asyncio
from collections.abc import Iterable, Iterator

from fastapi import Request, Response
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tandem_api.http.caching import NO_STORE
from tandem_api.http.parameters import headers_of
from tandem_api.metrics import RequestMetrics
from tandem_api.openapi.describe import content, json_router, problems, response
from tandem_api.state import StateDep
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import OPEN
from tandem_shared.queue.events import Lag
from tandem_shared.queue.messages import QueueStats, WorkerInfo
from tandem_shared.queue.queue import Queue

MAX_QUEUES = 500  # with a series each: clients may choose the names
REDIS_SECONDS = 5.0  # to wait for Redis; without an answer, request metrics are still served

router = json_router("operating", default_response_class=Response)


class Scrape(Collector):
    """The metric families of one response."""

    def __init__(self, requests: RequestMetrics, queues: Iterable[Metric]) -> None:
        self._requests, self._queues = requests, queues

    def collect(self) -> Iterator[Metric]:
        yield from self._queues
        yield from self._requests.collect()


@router.get(
    "/metrics",
    responses={
        200: response("OK", content({}, "text/plain", "application/openmetrics-text")),
        **problems(401),
    },
)
async def show_metrics(request: Request, state: StateDep) -> Response:
    """Show queues and requests, for Prometheus.

    Text or OpenMetrics, by `Accept`. While Redis is away, `tandem_redis_up` is 0.
    """
    queues = list(await _queue_metrics(state["queue"]))
    encode, media_type = choose_encoder(headers_of(request).get("accept", ""))
    # In a thread, because the counts of several processes are read from files.
    body = await asyncio.to_thread(encode, Scrape(state["metrics"], queues))
    return Response(body, 200, NO_STORE, media_type=media_type)


async def _queue_metrics(queue: Queue) -> Iterator[Metric]:
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            latency, stats, workers, lag = await asyncio.gather(
                queue.ping(), queue.stats(), queue.workers(with_jobs=False), queue.events.lag()
            )
    except (Unavailable, TimeoutError):
        return iter([_gauge("redis_up", "Whether Redis accepts a write.", 0)])
    return _families(latency, stats, workers, lag)


def _families(
    latency: float, stats: list[QueueStats], workers: list[WorkerInfo], lag: Lag | None
) -> Iterator[Metric]:
    yield _gauge("redis_up", "Whether Redis accepts a write.", 1)
    yield _gauge("redis_latency_seconds", "A write to Redis and back.", latency)
    if lag is not None:  # a worker keeps a ledger
        yield _gauge("ledger_lag_entries", "Events that the ledger has not written.", lag.entries)
        yield _gauge("ledger_lag_seconds", "Age of the oldest of them.", lag.seconds)
    yield _gauge("workers", "Live workers.", len(workers))
    slots = sum(one.concurrency for one in workers if not one.draining)
    yield _gauge("workers_slots", "Jobs that live workers run at once.", slots)
    jobs = _gauge("queue_jobs", "Jobs that are not final, by state.", None, "queue", "state")
    age = _gauge("queue_oldest_age_seconds", "Wait of the oldest due job.", None, "queue")
    paused = _gauge("queue_paused", "Whether the queue is paused.", None, "queue")
    for one in _busiest(stats):
        for state in OPEN:
            jobs.add_metric((one.name, state), getattr(one, state))
        age.add_metric((one.name,), one.oldest_age or 0.0)
        paused.add_metric((one.name,), one.paused)
    yield from (jobs, age, paused)


def _busiest(stats: list[QueueStats]) -> list[QueueStats]:
    """The queues with a series each: those with most jobs; all others are one, named `*`."""
    if len(stats) <= MAX_QUEUES:
        return stats
    by_jobs = sorted(stats, key=lambda one: sum(getattr(one, state) for state in OPEN))
    rest, shown = by_jobs[:-MAX_QUEUES], by_jobs[-MAX_QUEUES:]
    sums = {state: sum(getattr(one, state) for one in rest) for state in OPEN}
    oldest = max(one.oldest_age or 0.0 for one in rest)
    return [*shown, QueueStats(name="*", oldest_age=oldest, **sums)]


def _gauge(name: str, text: str, value: float | None, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tandem_{name}", text, value, labels=labels or None)
