"""Dead letters: runs failed and cancelled jobs again, one by its id or all that match a filter."""

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request, Response
from jsonschema_rs import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, WithJsonSchema

from tandem_api.http.body import JSON, content_type, decode_object, read_body
from tandem_api.http.caching import no_store
from tandem_api.http.parameters import idempotency_key, preferred_wait, traceparent
from tandem_api.http.problems import error_problem
from tandem_api.http.routing import JOB
from tandem_api.jobs.job import JobId, submit
from tandem_api.jobs.listing import (
    MergedPage,
    find_jobs,
    job_filter,
    position_of,
    recent_jobs,
)
from tandem_api.jobs.lookup import find_job
from tandem_api.openapi.describe import (
    BODY_PROBLEMS,
    COMMON,
    SUBMIT_HEADERS,
    SUBMITTED,
    TRACEPARENT,
    content,
    json_router,
    problems,
    ref,
)
from tandem_api.redis_retry import retry_briefly
from tandem_api.state import RequestState, StateDep
from tandem_api.validation.filter import FILTER_SCHEMA, MAX_JOBS
from tandem_api.validation.messages import explain
from tandem_shared.errors import Conflict, Invalid, NotFound, Refused, TandemError, Unavailable
from tandem_shared.jobs.record import Record, Submission
from tandem_shared.jobs.replay import REPLAYABLE, ReplayInput, replay_key
from tandem_shared.jobs.states import State
from tandem_shared.ledger.query import JobFilter

CALL_SECONDS = 10.0  # after which a call returns with a cursor to continue from
PAGE_JOBS = 200  # that are looked up together
BATCH_JOBS = 50  # that are replayed together: each payload may have a MiB

_validator = Draft202012Validator(FILTER_SCHEMA)
_ITEMS_SCHEMA: dict[str, Any] = {"type": "array", "items": ref("ReplayedJob")}

router = json_router("jobs", responses=COMMON)


@router.post(
    f"{JOB}/replay",
    status_code=202,
    response_class=Response,
    responses={
        **SUBMITTED,
        **problems(400, 404, 422, _409="The job neither failed nor was cancelled"),
    },
    openapi_extra={"parameters": SUBMIT_HEADERS},
)
async def replay_job(request: Request, state: StateDep, id: JobId) -> Response:
    """Run a failed or cancelled job again, as a new job.

    The old job stays as it is; the new one names it in `replay_of`.
    """
    key, wait = idempotency_key(request), preferred_wait(request)
    record = await find_job(state, id)
    if record.state not in REPLAYABLE:
        raise Conflict(
            f"the job is {record.state.value}: only failed and cancelled jobs are replayed"
        )
    material = (await _materials(state, [record.id])).get(record.id)
    if material is None:
        raise NotFound("job", record.id)
    submission = await state["submissions"].replay(
        record, material, key=key, traceparent=traceparent(request)
    )
    return await submit(state, submission, wait)


async def _materials(state: RequestState, ids: Sequence[str]) -> dict[str, ReplayInput]:
    """What a replay of these jobs needs, from Redis or, once a record has expired, the ledger."""
    found = await retry_briefly(state["queue"].replay_inputs, ids, tenant=state["tenant"])
    materials = {id: one for id, one in zip(ids, found, strict=True) if one is not None}
    missing = [id for id in ids if id not in materials]
    if missing:
        materials |= await state["ledger"].replay_inputs(missing, tenant=state["tenant"])
    return materials


class Replays(BaseModel):
    """The result of a bulk replay."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    dry_run: bool
    matched: NonNegativeInt = 0
    replayed: NonNegativeInt = 0
    already_replayed: NonNegativeInt = Field(0, description="matched jobs that have a replay")
    refused: NonNegativeInt = Field(0, description="jobs that their task no longer accepts")
    ledger_lag: float = Field(0.0, description="seconds; changes since then may be missing")
    items: Annotated[list[dict[str, Any]], WithJsonSchema(_ITEMS_SCHEMA)] = []
    next_cursor: str | None = Field(None, description="for the next call; null at the end")


class ReplayRequest(NamedTuple):
    """Which jobs to replay; `ids`, newest first, restricts them to these."""

    wanted: JobFilter
    ids: list[str] | None
    limit: int
    before: str | None
    dry_run: bool


@router.post(
    "/v1/jobs/replay",
    dependencies=[Depends(no_store)],
    responses=BODY_PROBLEMS,
    openapi_extra={
        "parameters": [TRACEPARENT],
        "requestBody": {"required": True, "content": content(ref("ReplayFilter"), JSON)},
    },
)
async def replay_jobs(request: Request, state: StateDep) -> Replays:
    """Run all failed or cancelled jobs that match a filter again, each of them once.

    A repeated call is safe: a job that has been replayed is not replayed again.
    """
    # The idempotency key of a replay contains the old job's id, so concurrent calls create one new
    # job. Once the key has expired, the ledger knows the replay.
    content_type(request)
    asked = _read(await read_body(request, state["settings"].max_body), state["tenant"])
    report, before = Replays(dry_run=asked.dry_run), asked.before
    trace, end = traceparent(request), time.monotonic() + CALL_SECONDS
    lag = await retry_briefly(state["queue"].events.lag)
    report.ledger_lag = lag.seconds if lag is not None else 0.0
    recent = await recent_jobs(state)
    try:
        while True:
            left = asked.limit - report.matched
            page = await _page(state, asked, before, min(PAGE_JOBS, left), recent)
            for start in range(0, len(page.records), BATCH_JOBS):
                batch = page.records[start : start + BATCH_JOBS]
                await _replay(state, batch, recent, report, trace)
                before = batch[-1].id
            before = page.next
            if before is None or report.matched >= asked.limit or time.monotonic() > end:
                break
    except Unavailable:
        if not report.matched:
            raise
        # Report what has been done, and where to continue.
    report.next_cursor = before
    return report


async def _page(
    state: RequestState,
    asked: ReplayRequest,
    before: str | None,
    limit: int,
    recent: Mapping[str, Record],
) -> MergedPage:
    if asked.ids is None:
        return await find_jobs(state, asked.wanted, limit, before, recent)
    left = [id for id in asked.ids if before is None or id < before]
    ids = left[:limit]
    records = await retry_briefly(state["queue"].get_many, ids, tenant=state["tenant"])
    for index, id in enumerate(ids):
        if records[index] is None:
            records[index] = await state["ledger"].get(id, tenant=state["tenant"])
    matching = [one for one in records if one is not None and asked.wanted.matches(one)]
    return MergedPage(matching, ids[-1] if len(ids) < len(left) else None)


async def _replay(
    state: RequestState,
    records: Sequence[Record],
    recent: Mapping[str, Record],
    report: Replays,
    trace: str | None,
) -> None:
    """Replays one batch, then adds it to the report."""
    ids = [record.id for record in records]
    replayed = {record.options.replay_of for record in recent.values()} | await state[
        "ledger"
    ].replayed(ids, tenant=state["tenant"])
    todo = [record for record in records if record.id not in replayed]
    prepared = [] if report.dry_run else await _prepare(state, todo, trace)
    jobs = [one for _, one in prepared if isinstance(one, Submission)]
    submitted = iter(await retry_briefly(state["queue"].submit_many, jobs) if jobs else [])
    report.matched += len(records)
    report.already_replayed += len(records) - len(todo)
    for record, one in prepared:
        done = next(submitted) if isinstance(one, Submission) else one
        if isinstance(done, TandemError):
            report.refused += 1
            report.items.append({"replay_of": record.id, "error": error_problem(done).members()})
        elif done.replayed:
            report.already_replayed += 1
        else:
            report.replayed += 1
            report.items.append({"id": done.id, "replay_of": record.id})


async def _prepare(
    state: RequestState, records: Sequence[Record], trace: str | None
) -> list[tuple[Record, Submission | Refused]]:
    """The new job for each record, or why it is refused. Raises Unavailable."""
    materials = await _materials(state, [record.id for record in records])
    prepared: list[tuple[Record, Submission | Refused]] = []
    for record in records:
        try:
            if record.id not in materials:
                raise NotFound("job", record.id)  # it has just been deleted
            submission = await state["submissions"].replay(
                record, materials[record.id], key=replay_key(record), traceparent=trace
            )
        except Refused as error:
            prepared.append((record, error))
        else:
            prepared.append((record, submission))
    return prepared


def _read(body: bytes, tenant: str) -> ReplayRequest:
    """Raises Invalid with every wrong field, and Malformed."""
    value = decode_object(body)
    errors = explain(_validator.iter_errors(value), FILTER_SCHEMA)
    if errors:
        raise Invalid(errors)
    given = {name: one for name, one in value.items() if one is not None}
    states = given.get("state", State.FAILED)
    if isinstance(states, str):
        states = [states]
    wanted = job_filter(tenant, given, states, given.get("tags", {}).items(), [])
    return ReplayRequest(
        wanted,
        sorted(set(given["ids"]), reverse=True) if "ids" in given else None,
        int(given.get("limit", MAX_JOBS)),
        position_of(given.get("cursor")),
        given.get("dry_run", False),
    )
