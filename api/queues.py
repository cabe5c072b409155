"""Queues and workers, as operators look at them."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.routing import Plain
from api.state import served
from api.waiting import steadily
from shared.jobs import rfc3339

_HEADERS = {"Cache-Control": "private, no-cache"}


async def list_queues(request: Request) -> Response:
    """GET /v1/queues."""
    stats = await steadily(served(request)["queue"].stats)
    items = [
        {
            "name": one.name,
            "paused": one.paused,
            "waiting": one.waiting,
            "scheduled": one.scheduled,
            "queued": one.queued,
            "running": one.running,
            "retrying": one.retrying,
            "oldest_age": one.oldest_age,
        }
        for one in stats
    ]
    return Response(msgspec.json.encode({"items": items}), 200, _HEADERS, media_type="application/json")


async def list_workers(request: Request) -> Response:
    """GET /v1/workers."""
    workers = await steadily(served(request)["queue"].workers)
    items = [
        {
            "id": one.id,
            "host": one.host,
            "pid": one.pid,
            "queues": one.queues,
            "concurrency": one.concurrency,
            "running": one.running,
            "started_at": rfc3339(one.started_at),
            "last_seen": rfc3339(one.last_seen),
            "version": one.version,
            "draining": one.draining,
        }
        for one in workers
    ]
    return Response(msgspec.json.encode({"items": items}), 200, _HEADERS, media_type="application/json")


ROUTES = [
    Route("/v1/queues", Plain(list_queues), methods=["GET"]),
    Route("/v1/workers", Plain(list_workers), methods=["GET"]),
]
