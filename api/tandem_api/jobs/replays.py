"""Dead letters: failed and cancelled jobs run again, one by its id, or all that match a filter."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from jsonschema_rs import Draft202012Validator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tandem_api.http.body import content_type, decode, read_body, refuse_depth
from tandem_api.http.headers import idempotency_key, preferred_wait, traceparent
from tandem_api.http.problems import of_error
from tandem_api.http.retry import steadily
from tandem_api.http.routing import JOB, Plain
from tandem_api.jobs.job import accept
from tandem_api.jobs.listing import Found, cursor_of, id_before, look, recent, time_of
from tandem_api.jobs.lookup import known
from tandem_api.state import Served, served
from tandem_api.validation.messages import explain
from tandem_shared.errors import Conflict, Invalid, NotFound, TandemError, Unavailable
from tandem_shared.jobs.record import Record, Submission
from tandem_shared.jobs.replay import REPLAYABLE, ReplayInput, replay_key
from tandem_shared.jobs.states import State
from tandem_shared.ledger.query import JobFilter
from tandem_shared.ledger.rows import storable_text

MOST = 10_000  # jobs of one call
IDS = 1000  # that a filter may name
LONGEST = 10.0  # seconds after which a call tells how far it came
PAGE = 200  # jobs that are looked for at once
PORTION = 50  # of them that are replayed together: a payload may have a MiB

_TEXT: dict[str, Any] = {"type": ["string", "null"], "maxLength": 200}
_TIME: dict[str, Any] = {"type": ["string", "null"], "format": "date-time"}
_STATE: dict[str, Any] = {"enum": sorted(REPLAYABLE)}
# The filter of GET /v1/jobs as a body; null means left out.
BODY: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "state": {
            "anyOf": [_STATE, {"type": "array", "items": _STATE, "minItems": 1}, {"type": "null"}],
            "default": "failed",
        },
        "task": _TEXT,
        "queue": _TEXT,
        "tags": {
            "type": ["object", "null"],
            "maxProperties": 50,
            "propertyNames": {"minLength": 1, "maxLength": 64},
            "additionalProperties": {"type": "string", "maxLength": 256},
        },
        "since": {**_TIME, "description": "submitted at this time or later"},
        "until": {**_TIME, "description": "submitted before this time"},
        "q": {
            **_TEXT,
            "description": "a text within id, task, tags or the error's type and message, in any case",
        },
        "ids": {
            "type": ["array", "null"],
            "maxItems": IDS,
            "items": {"type": "string", "maxLength": 64, "pattern": "^[0-9A-Za-z]+$"},
            "description": "of these jobs only",
        },
        "limit": {"type": ["integer", "null"], "minimum": 1, "maximum": MOST, "default": MOST},
        "cursor": {"type": ["string", "null"], "description": "`next_cursor` of the call before"},
        "dry_run": {"type": ["boolean", "null"], "default": False, "description": "count only"},
    },
}
_validator = Draft202012Validator(BODY)


async def replay_job(request: Request) -> Response:
    """POST /v1/jobs/{id}/replay."""
    state, headers = served(request), request.headers
    key, wait = idempotency_key(headers), preferred_wait(headers)
    record = await known(state, request.path_params["id"])
    if record.state not in REPLAYABLE:
        raise Conflict(
            f"the job is {record.state.value}: only failed and cancelled jobs are replayed"
        )
    material = (await _materials(state, [record.id])).get(record.id)
    if material is None:
        raise NotFound("job", record.id)
    submission = await state["submissions"].replay(
        record, material, key=key, traceparent=traceparent(headers)
    )
    return await accept(state, submission, wait)


async def _materials(state: Served, ids: Sequence[str]) -> dict[str, ReplayInput]:
    """What is needed of these jobs: from Redis, and from the ledger of those whose records have expired."""
    found = await steadily(lambda: state["queue"].replay_inputs(ids, tenant=state["tenant"]))
    materials = {id: one for id, one in zip(ids, found, strict=True) if one is not None}
    rest = [id for id in ids if id not in materials]
    return (
        {**materials, **(await state["ledger"].replay_inputs(rest, tenant=state["tenant"]))}
        if rest
        else materials
    )


# ----------------------------------------------------------------------------------- all that match


class _Asked(NamedTuple):
    """What a body asks for; `ids`: of these jobs only, the newest first."""

    wanted: JobFilter
    ids: list[str] | None
    limit: int
    before: str | None
    dry: bool


class _Answer(msgspec.Struct):
    """What a call has done up to now."""

    dry_run: bool
    matched: int = 0
    replayed: int = 0
    already_replayed: int = 0
    refused: int = 0
    ledger_lag: float = 0.0
    items: list[dict[str, Any]] = []
    next_cursor: str | None = None


async def replay_jobs(request: Request) -> Response:
    """POST /v1/jobs/replay: in portions, each of which may be repeated, until all are done or a bound is met.

    A job is replayed under an idempotency key of its own, and not at all once the ledger has a
    replay of it: of two calls, also at once, or of one whose answer was lost, one alone makes the
    new job.
    """
    state = served(request)
    content_type(request)
    asked = _asked(await read_body(request, state["settings"].max_body), state["tenant"])
    answer, before = _Answer(asked.dry), asked.before
    trace, end = traceparent(request.headers), time.monotonic() + LONGEST
    lag = await steadily(state["queue"].events.lag)
    answer.ledger_lag = lag.seconds if lag is not None else 0.0
    fresh = await recent(state)
    try:
        while True:
            left = asked.limit - answer.matched
            found = await _page(state, asked, before, min(PAGE, left), fresh)
            for start in range(0, len(found.records), PORTION):
                portion = found.records[start : start + PORTION]
                await _replay(state, portion, fresh, answer, trace)
                before = portion[-1].id
            before = found.next
            if before is None or answer.matched >= asked.limit or time.monotonic() > end:
                break
    except Unavailable:
        if not answer.matched:
            raise
        # What is done is told, and where to go on.
    answer.next_cursor = cursor_of(before)
    return Response(
        msgspec.json.encode(answer),
        200,
        {"Cache-Control": "no-store"},
        media_type="application/json",
    )


async def _page(
    state: Served, asked: _Asked, before: str | None, limit: int, fresh: Mapping[str, Record]
) -> Found:
    if asked.ids is None:
        return await look(state, asked.wanted, limit, before, fresh)
    ids = [id for id in asked.ids if before is None or id < before]
    these = ids[:limit]
    records = await steadily(lambda: state["queue"].get_many(these, tenant=state["tenant"]))
    for at, id in enumerate(these):
        if records[at] is None:
            records[at] = await state["ledger"].get(id, tenant=state["tenant"])
    fitting = [one for one in records if one is not None and asked.wanted.matches(one)]
    return Found(fitting, these[-1] if len(these) < len(ids) else None)


async def _replay(
    state: Served,
    records: Sequence[Record],
    fresh: Mapping[str, Record],
    answer: _Answer,
    trace: str | None,
) -> None:
    """One portion; counted only when it is done."""
    ids = [one.id for one in records]
    have = {one.options.replay_of for one in fresh.values()} | await state["ledger"].replayed(
        ids, tenant=state["tenant"]
    )
    todo = [one for one in records if one.id not in have]
    if answer.dry_run:
        answer.matched += len(records)
        answer.already_replayed += len(records) - len(todo)
        return
    made = await _made(state, todo, trace)
    jobs = [one for _, one in made if isinstance(one, Submission)]
    submitted = iter(await steadily(lambda: state["queue"].submit_many(jobs)) if jobs else [])
    answer.matched += len(records)
    answer.already_replayed += len(records) - len(todo)
    for record, one in made:
        done = next(submitted) if isinstance(one, Submission) else one
        if isinstance(done, TandemError):
            answer.refused += 1
            answer.items.append({"replay_of": record.id, "error": of_error(done).members()})
        elif done.replayed:
            answer.already_replayed += 1
        else:
            answer.replayed += 1
            answer.items.append({"id": done.id, "replay_of": record.id})


async def _made(
    state: Served, records: Sequence[Record], trace: str | None
) -> list[tuple[Record, Submission | TandemError]]:
    """The new jobs, or why there is none. Raises Unavailable."""
    materials = await _materials(state, [one.id for one in records])
    made: list[tuple[Record, Submission | TandemError]] = []
    for one in records:
        try:
            if one.id not in materials:
                raise NotFound("job", one.id)  # it is being forgotten
            submission = await state["submissions"].replay(
                one, materials[one.id], key=replay_key(one), traceparent=trace
            )
        except Unavailable:
            raise
        except TandemError as error:
            made.append((one, error))
        else:
            made.append((one, submission))
    return made


def _asked(body: bytes, tenant: str) -> _Asked:
    """Raises Invalid with every wrong field, and Malformed."""
    value = decode(body)
    if not isinstance(value, dict):
        raise Invalid([("", "must be a JSON object")])
    refuse_depth(value, body)
    if errors := explain(_validator.iter_errors(value), BODY):
        raise Invalid(errors)
    given = {name: one for name, one in value.items() if one is not None}
    wrong: list[tuple[str, str]] = []
    since, until = (time_of(given.get(name), name, wrong) for name in ("since", "until"))
    if wrong:
        raise Invalid(wrong)
    states = given.get("state", State.FAILED)
    wanted = JobFilter(
        tenant=tenant,
        states=frozenset(map(State, [states] if isinstance(states, str) else states)),
        task=_clean(given, "task"),
        queue=_clean(given, "queue"),
        tags=tuple(given.get("tags", {}).items()),
        since=since,
        until=until,
        q=(_clean(given, "q") or "").strip().casefold() or None,
    )
    ids = sorted(set(given["ids"]), reverse=True) if "ids" in given else None
    before = id_before(given.get("cursor"))
    return _Asked(wanted, ids, int(given.get("limit", MOST)), before, given.get("dry_run", False))


def _clean(given: Mapping[str, Any], name: str) -> str | None:
    return storable_text(given[name]) if name in given else None


ROUTES: list[Any] = [
    Route("/v1/jobs/replay", Plain(replay_jobs), methods=["POST"]),
    Route(f"{JOB}/replay", Plain(replay_job), methods=["POST"]),
]
