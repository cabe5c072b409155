"""Counts the requests that this API answers; processes on one port report a common total."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import Scope

# The directory in which the processes of server/supervisor.py collect their counts.
SHARED_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS".split())
REDIS_CALLS = ("submit", "read", "output")  # see `Queue`
BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)


class RequestMetrics:
    """Requests by route, method and status, and the time until their responses began.

    The end of a response is not measured, since a stream may last for hours. The time spent waiting
    for Redis is summed over requests, including those that share one call.
    """

    def __init__(self, routes: Iterable[Any]) -> None:
        # Label routes by their templates: each path that a client sends would be another series.
        self._paths: dict[Any, str] = {route.endpoint: route.path_format for route in routes}
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._count = Counter(
            "tandem_http_requests", "Requests answered.", labels, registry=self._registry
        )
        self._seconds = Histogram(
            "tandem_http_request_seconds",
            "Until the response begins.",
            labels[:2],
            buckets=BUCKETS_SECONDS,
            registry=self._registry,
        )
        calls = Counter(
            "tandem_http_redis_calls", "Answers of Redis.", ("call",), registry=self._registry
        )
        seconds = Counter(
            "tandem_http_redis_seconds",
            "Time that requests waited for them.",
            ("call",),
            registry=self._registry,
        )
        self._redis = {
            call: (calls.labels(call).inc, seconds.labels(call).inc) for call in REDIS_CALLS
        }
        # Bound methods by label, since `labels()` is slow.
        self._bound: dict[
            tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]
        ] = {}

    def answered(self, scope: Scope, status: int, began: float) -> None:
        """Counts a response that begins now, to a request from `began` (`time.perf_counter`)."""
        path = self._paths.get(scope.get("endpoint"), "other")
        method = scope.get("method", "GET")  # the scope of a WebSocket has none
        key = (method if method in METHODS else "other", path, status)
        bound = self._bound.get(key)
        if bound is None:
            count = self._count.labels(key[0], path, str(status))
            bound = self._bound[key] = (count.inc, self._seconds.labels(*key[:2]).observe)
        bound[0]()
        bound[1](time.perf_counter() - began)

    def redis_answered(self, call: str, count: int, seconds: float) -> None:
        """Counts the answers of one batch, and the total seconds that requests waited for it."""
        count_calls, count_seconds = self._redis[call]
        count_calls(count)
        count_seconds(seconds)

    def collect(self) -> Iterable[Metric]:
        """The metric families, over all processes that share the port."""
        if SHARED_DIRECTORY not in os.environ:
            return self._registry.collect()
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call] # the library has no types here
        return shared.collect()
