"""GET /metrics: the queues as Redis knows them, and the requests as this API answers them, for Prometheus."""

import asyncio
from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tandem_api.http.routing import Plain
from tandem_api.metrics import Requests
from tandem_api.state import served
from tandem_shared.errors import Unavailable
from tandem_shared.queue.events import Lag
from tandem_shared.queue.messages import QueueStats, WorkerInfo
from tandem_shared.queue.queue import Queue

PATIENCE = 5.0  # seconds for Redis; without it the rest is told
_STATES = ("waiting", "scheduled", "queued", "running", "retrying")


class Scrape(Collector):
    """One answer's families."""

    def __init__(self, requests: Requests, queues: Iterable[Metric]) -> None:
        self._requests, self._queues = requests, queues

    def collect(self) -> Iterator[Metric]:
        """The families."""
        yield from self._queues
        yield from self._requests.collect()


async def show_metrics(request: Request) -> Response:
    """GET /metrics, as text or OpenMetrics by `Accept`. Also while Redis is away, which it then tells."""
    state = served(request)
    found = list(await _queues(state["queue"]))
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    # In a thread: the numbers of several processes are read from files.
    body = await asyncio.to_thread(encode, Scrape(state["requests"], found))
    return Response(body, 200, {"Cache-Control": "no-store"}, media_type=media_type)


async def _queues(queue: Queue) -> Iterator[Metric]:
    try:
        async with asyncio.timeout(PATIENCE):
            latency, stats, workers, lag = await asyncio.gather(
                queue.ping(), queue.stats(), queue.workers(), queue.events.lag()
            )
    except (Unavailable, TimeoutError):
        return iter([GaugeMetricFamily("tandem_redis_up", "Whether Redis takes a write.", 0)])
    return _families(latency, stats, workers, lag)


def _families(
    latency: float, stats: list[QueueStats], workers: list[WorkerInfo], lag: Lag | None
) -> Iterator[Metric]:
    yield GaugeMetricFamily("tandem_redis_up", "Whether Redis takes a write.", 1)
    yield GaugeMetricFamily("tandem_redis_latency_seconds", "A write to Redis and back.", latency)
    if lag is not None:  # else no worker has ever kept one
        yield GaugeMetricFamily(
            "tandem_ledger_lag_entries", "Events that the ledger has not written.", lag.entries
        )
        yield GaugeMetricFamily(
            "tandem_ledger_lag_seconds", "Age of the oldest of them.", lag.seconds
        )
    yield GaugeMetricFamily("tandem_workers", "Live workers.", len(workers))
    slots = sum(one.concurrency for one in workers if not one.draining)
    yield GaugeMetricFamily("tandem_workers_slots", "Jobs that live workers run at once.", slots)
    jobs = GaugeMetricFamily(
        "tandem_queue_jobs", "Jobs that are not final, by state.", labels=("queue", "state")
    )
    age = GaugeMetricFamily(
        "tandem_queue_oldest_age_seconds",
        "How long the oldest due job has waited.",
        labels=("queue",),
    )
    paused = GaugeMetricFamily(
        "tandem_queue_paused", "Whether the queue is paused.", labels=("queue",)
    )
    for one in stats:
        for state in _STATES:
            jobs.add_metric((one.name, state), getattr(one, state))
        age.add_metric((one.name,), one.oldest_age or 0.0)
        paused.add_metric((one.name,), one.paused)
    yield from (jobs, age, paused)


ROUTES = [Route("/metrics", Plain(show_metrics), methods=["GET"])]
