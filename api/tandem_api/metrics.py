"""The requests that this API answers, counted for /metrics; processes that serve together add their numbers up."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import Scope

# set by api/tandem_api/server/supervisor.py: the directory in which processes add up their numbers
SHARED = "PROMETHEUS_MULTIPROC_DIR"
METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS".split())
CALLS = ("submit", "read", "output")  # see `Queue`
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)  # seconds


class Requests:
    """Requests by route, method and status, and the time until the answer begins (a stream may go on for hours).

    Of that time, what they waited for Redis: summed, as it is measured for those that go there
    together.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._count = Counter(
            "tandem_http_requests", "Requests answered.", labels, registry=self._registry
        )
        self._times = Histogram(
            "tandem_http_request_seconds",
            "Until the answer begins.",
            labels[:2],
            buckets=BOUNDS,
            registry=self._registry,
        )
        calls = Counter(
            "tandem_http_redis_calls", "Answers of Redis.", ("call",), registry=self._registry
        )
        seconds = Counter(
            "tandem_http_redis_seconds",
            "For how long they were waited for.",
            ("call",),
            registry=self._registry,
        )
        self._waits = {call: (calls.labels(call).inc, seconds.labels(call).inc) for call in CALLS}
        self._paths: dict[Any, str] = {}
        self._known: dict[
            tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]
        ] = {}

    def name(self, routes: Iterable[Any]) -> None:
        """Learns what the routes are called: labels are their templates, never what a client wrote."""
        self._paths |= {
            route.endpoint: route.path_format for route in routes if hasattr(route, "endpoint")
        }

    def answered(self, scope: Scope, status: int, begun: float) -> None:
        """The answer to a request begins, which came at `begun` on the clock of `time.perf_counter`."""
        path = self._paths.get(scope.get("endpoint"), "other")
        method = scope.get("method", "GET")  # an upgrade to WebSocket says none, and is that
        key = (method if method in METHODS else "other", path, status)
        known = self._known.get(key)
        if known is None:
            count = self._count.labels(key[0], key[1], str(status))
            known = self._known[key] = (count.inc, self._times.labels(*key[:2]).observe)
        known[0]()
        known[1](time.perf_counter() - begun)

    def heard(self, call: str, count: int, seconds: float) -> None:
        """So many answers of Redis came together, for which so many seconds were waited in all."""
        calls, waited = self._waits[call]
        calls(count)
        waited(seconds)

    def collect(self) -> Iterable[Metric]:
        """The families, of all processes that serve together."""
        if SHARED not in os.environ:
            return self._registry.collect()
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call] # the library has no types here
        return together.collect()
