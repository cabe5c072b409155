"""The catalogue over HTTP."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tandem_api.http.routing import Plain
from tandem_api.state import served
from tandem_shared.catalogue import CatalogueEntry
from tandem_shared.errors import NotFound, UnknownTask

_HEADERS = {"Cache-Control": "private, no-cache"}


def _view(entry: CatalogueEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "queue": entry.queue,
        "payload_schema": entry.payload_schema,
        "result_schema": entry.result_schema,
        "defaults": entry.defaults,
        "example": entry.example,
    }


async def list_tasks(request: Request) -> Response:
    """GET /v1/tasks."""
    catalogue = served(request)["catalogue"]
    await catalogue.refresh()
    items = [_view(entry) for _, entry in sorted(catalogue.entries.items())]
    return Response(
        msgspec.json.encode({"items": items}), 200, _HEADERS, media_type="application/json"
    )


async def show_task(request: Request) -> Response:
    """GET /v1/tasks/{task}."""
    catalogue = served(request)["catalogue"]
    name = request.path_params["task"]
    await catalogue.refresh()
    try:
        entry = await catalogue.find(name)
    except UnknownTask:
        raise NotFound("task", name[:200]) from None
    return Response(msgspec.json.encode(_view(entry)), 200, _HEADERS, media_type="application/json")


ROUTES = [
    Route("/v1/tasks", Plain(list_tasks), methods=["GET"]),
    Route("/v1/tasks/{task}", Plain(show_task), methods=["GET"]),
]
