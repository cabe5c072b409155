"""Probes: `/livez` says whether the process answers, `/readyz` whether it can accept jobs."""

import asyncio
from typing import Any, Literal

from fastapi import Depends, Request, Response
from pydantic import BaseModel, Field

from tandem_api.http.caching import no_store
from tandem_api.http.problems import RETRY_AFTER_SECONDS, status_problem
from tandem_api.openapi.describe import json_router, problems
from tandem_api.state import StateDep
from tandem_shared.errors import Unavailable
from tandem_shared.queue.queue import Queue

PROBE_SECONDS = 1.0  # to wait for Redis, less than probes usually wait

router = json_router("operating", dependencies=[Depends(no_store)])
_OPEN: dict[str, Any] = {"security": []}  # no key is needed


class SetupWarning(BaseModel):
    """A part of the installation that does not hold what Tandem promises."""

    part: str = Field(description="redis, store, database or workers")
    detail: str = Field(description="what is wrong, and what to do")


class Health(BaseModel):
    """A healthy service."""

    status: Literal["ok"]
    checks: dict[str, Any] = Field(default={}, description="of /readyz: what was checked")
    ledger: dict[str, Any] | None = Field(
        default=None, description="of /readyz: how far the ledger is behind; null if unknown"
    )
    warnings: list[SetupWarning] = Field(
        default=[], description="of /readyz: what an operator should correct"
    )


@router.get(
    "/livez",
    response_model=Health,
    response_model_exclude_unset=True,
    openapi_extra=_OPEN,
)
async def live() -> dict[str, str]:
    """Whether the process answers, also while Redis is away."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model=Health,
    responses=problems(503),
    openapi_extra=_OPEN,
)
async def ready(request: Request, state: StateDep) -> dict[str, Any] | Response:
    """Whether the API can accept and return jobs.

    It can while Redis accepts writes and the process is not shutting down. The file store does not
    count.
    """
    redis: dict[str, Any]
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            redis = {"ok": True, "latency_ms": round(await state["queue"].ping() * 1000, 3)}
    except TimeoutError:
        redis = {"ok": False, "detail": f"Redis did not answer within {PROBE_SECONDS:g} s"}
    except Unavailable as error:
        redis = {"ok": False, "detail": str(error)}
    ending = state["drain"].announced
    checks = {"redis": redis, "serving": {"ok": not ending}}
    if redis["ok"] and not ending:
        return {
            "status": "ok",
            "checks": checks,
            "ledger": await _ledger_lag(state["queue"]),
            "warnings": [concern._asdict() for concern in state["setup"].concerns],
        }
    problem = status_problem(
        503,
        "the process is shutting down" if ending else "Redis does not accept writes",
        more={"checks": checks},
        headers={"Retry-After": RETRY_AFTER_SECONDS},
    )
    return problem.response(request.scope)


async def _ledger_lag(queue: Queue) -> dict[str, Any] | None:
    """How far the ledger is behind, which does not make the API unready; None without a ledger."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            lag = await queue.events.lag()
    except (TimeoutError, Unavailable):
        return None
    return None if lag is None else {"lag_entries": lag.entries, "lag_seconds": lag.seconds}
