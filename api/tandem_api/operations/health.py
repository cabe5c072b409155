"""Probes: `/livez` says that the process answers, `/readyz` that it can take and give jobs."""

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tandem_api.http.problems import RETRY_AFTER, of_status
from tandem_api.http.routing import Plain
from tandem_api.state import served
from tandem_shared.errors import Unavailable
from tandem_shared.queue.queue import Queue

PATIENCE = 1.0  # seconds: who probes waits no longer either

_HEADERS = {"Cache-Control": "no-store"}


async def live(_request: Request) -> Response:
    """GET /livez."""
    return Response(b'{"status":"ok"}', 200, _HEADERS, media_type="application/json")


async def ready(request: Request) -> Response:
    """GET /readyz: Redis takes a write, and the process does not end. The file store is not needed for that."""
    state = served(request)
    redis: dict[str, Any]
    try:
        async with asyncio.timeout(PATIENCE):
            redis = {"ok": True, "latency_ms": round(await state["queue"].ping() * 1000, 3)}
    except TimeoutError:
        redis = {"ok": False, "detail": f"Redis did not answer within {PATIENCE:g} s"}
    except Unavailable as error:
        redis = {"ok": False, "detail": str(error)}
    ledger = await _lag(state["queue"]) if redis["ok"] else None
    checks = {"redis": redis, "serving": {"ok": not state["drain"].announced}}
    failed = [name for name, check in checks.items() if not check["ok"]]
    if not failed:
        body = msgspec.json.encode({"status": "ok", "checks": checks, "ledger": ledger})
        return Response(body, 200, _HEADERS, media_type="application/json")
    detail = "the process is ending" if state["drain"].announced else "Redis cannot be written"
    problem = of_status(503, detail, more={"checks": checks}, headers={"Retry-After": RETRY_AFTER})
    return problem.response(request.scope)


async def _lag(queue: Queue) -> dict[str, Any] | None:
    """How far the ledger is behind: told, but no reason to be unready. None as long as no worker has ever kept it."""
    try:
        async with asyncio.timeout(PATIENCE):
            lag = await queue.events.lag()
    except (TimeoutError, Unavailable):
        return None
    return None if lag is None else {"lag_entries": lag.entries, "lag_seconds": lag.seconds}


ROUTES = [
    Route("/livez", Plain(live), methods=["GET"]),
    Route("/readyz", Plain(ready), methods=["GET"]),
]
