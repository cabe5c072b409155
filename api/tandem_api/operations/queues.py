"""Queues and workers, as operators look at them."""

import re
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tandem_api.http.retry import steadily
from tandem_api.http.routing import Plain
from tandem_api.state import served
from tandem_shared.errors import NotFound
from tandem_shared.queue.messages import QueueStats
from tandem_shared.settings import QUEUE_NAME_PATTERN
from tandem_shared.times import rfc3339

_HEADERS = {"Cache-Control": "private, no-cache"}


async def list_queues(request: Request) -> Response:
    """GET /v1/queues."""
    stats = await steadily(served(request)["queue"].stats)
    items = [_item(one) for one in stats]
    return Response(
        msgspec.json.encode({"items": items}), 200, _HEADERS, media_type="application/json"
    )


async def pause_queue(request: Request) -> Response:
    """POST /v1/queues/{name}/pause: also of a queue that has no job yet."""
    return await _turn(request, on=True)


async def resume_queue(request: Request) -> Response:
    """POST /v1/queues/{name}/resume."""
    return await _turn(request, on=False)


async def _turn(request: Request, *, on: bool) -> Response:
    name, queue = request.path_params["name"], served(request)["queue"]
    if re.fullmatch(QUEUE_NAME_PATTERN, name) is None:
        raise NotFound("queue", name[:64])
    await steadily(lambda: queue.pause(name, on=on))
    stats = await steadily(queue.stats)
    item = next((_item(one) for one in stats if one.name == name), None) or _item(
        QueueStats(name=name)
    )
    return Response(msgspec.json.encode(item), 200, _HEADERS, media_type="application/json")


def _item(one: QueueStats) -> dict[str, Any]:
    return {
        "name": one.name,
        "paused": one.paused,
        "waiting": one.waiting,
        "scheduled": one.scheduled,
        "queued": one.queued,
        "running": one.running,
        "retrying": one.retrying,
        "oldest_age": one.oldest_age,
    }


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
    return Response(
        msgspec.json.encode({"items": items}), 200, _HEADERS, media_type="application/json"
    )


ROUTES = [
    Route("/v1/queues", Plain(list_queues), methods=["GET"]),
    Route("/v1/queues/{name}/pause", Plain(pause_queue), methods=["POST"]),
    Route("/v1/queues/{name}/resume", Plain(resume_queue), methods=["POST"]),
    Route("/v1/workers", Plain(list_workers), methods=["GET"]),
]
