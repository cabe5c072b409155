"""GET /v1/jobs: rows of the ledger, merged with newer records from Redis.

The latest changes are in the event stream until the ledger has them. Jobs named there are read from
Redis, all others from the ledger. So a job is listed as soon as it is accepted, in its current
state, and no request waits for the ledger.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
from fastapi import Request, Response
from jsonschema_rs import Draft202012Validator

from tandem_api.http.body import JSON, JsonBytes
from tandem_api.http.caching import NO_CACHE
from tandem_api.http.parameters import parameter_errors
from tandem_api.jobs.lookup import shown
from tandem_api.openapi.describe import (
    TIME,
    content,
    list_parameter,
    parameter,
    problems,
    raw_router,
    ref,
    response,
)
from tandem_api.redis_retry import retry_briefly
from tandem_api.state import RequestState, StateDep
from tandem_api.validation.filter import CURSOR_SCHEMA, SEARCHED
from tandem_api.validation.messages import FieldError, explain
from tandem_api.validation.schema import MAX_TAGS, TAGS_SCHEMA
from tandem_shared.errors import Invalid, Malformed
from tandem_shared.jobs.ids import is_id
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.states import FINAL, State
from tandem_shared.ledger.query import JobFilter
from tandem_shared.ledger.rows import MAX_TAG_VALUE_CHARS, storable_text
from tandem_shared.times import parse_rfc3339

DEFAULT_PAGE_JOBS, MAX_PAGE_JOBS = 50, 200
MAX_PAGE_BYTES = 1 << 20  # about: a single larger job still passes
MAX_RECENT_BYTES = 4 << 20
MAX_RECENT_JOBS = 1000  # that are read from Redis because the ledger may not have them yet
MAX_TEXT_CHARS = 200  # of `q`
MAX_VALUE_CHARS = 2 * MAX_TEXT_CHARS  # of any parameter but `state`
TAG = "tag."

_LIMIT = {
    "type": "integer",
    "minimum": 1,
    "maximum": MAX_PAGE_JOBS,
    "default": DEFAULT_PAGE_JOBS,
}
# Each property is a parameter by itself, as style `form` with `explode` says.
_TAGS = {
    "type": "object",
    "propertyNames": {"pattern": r"^tag\.."},
    "maxProperties": MAX_TAGS,
    "additionalProperties": {"type": "string", "maxLength": MAX_TAG_VALUE_CHARS},
}
_PARAMETERS = [
    list_parameter("state", "One of these states, separated by commas", [*State]),
    parameter("task", "query", "The task's name"),
    parameter("queue", "query", "The queue's name"),
    parameter("tags", "query", "Tags: `tag.customer=17`", _TAGS),
    parameter("since", "query", "Submitted at this time or later", TIME),
    parameter("until", "query", "Submitted before this time", TIME),
    parameter("q", "query", SEARCHED),
    parameter("limit", "query", "Jobs in a page", _LIMIT),
    parameter("cursor", "query", "`next_cursor` of the page before", CURSOR_SCHEMA),
]
_SINGLE = {one["name"] for one in _PARAMETERS} - {"state", "tags"}
_tags = Draft202012Validator(TAGS_SCHEMA)

router = raw_router("jobs")


@router.get(
    "/v1/jobs",
    responses={
        200: response("A page", content(ref("JobList"), JSON), Link='the next page, `rel="next"`'),
        **problems(400, 422),
    },
    openapi_extra={"parameters": _PARAMETERS},
)
async def list_jobs(request: Request, state: StateDep) -> Response:
    """List and search jobs, newest first.

    A page is stable while new jobs arrive. A page with `next_cursor` may be empty.
    """
    query = _query(request, state["tenant"])
    wanted = await _with_open_queues(state, query.wanted)
    recent = await recent_jobs(state)
    page = await find_jobs(state, wanted, query.limit, query.before, recent)
    page = await _current(state, page, recent, wanted)
    cursor = page.next
    headers = dict(NO_CACHE)
    if cursor is not None:
        given = [pair for pair in request.query_params.multi_items() if pair[0] != "cursor"]
        headers["Link"] = f'</v1/jobs?{urlencode([*given, ("cursor", cursor)])}>; rel="next"'
    items = [msgspec.Raw(shown(state, record)) for record in page.records]
    body = msgspec.json.encode({"items": items, "next_cursor": cursor})
    return JsonBytes(body, 200, headers)


class MergedPage(NamedTuple):
    """Jobs, newest first; the list continues below the id `next`."""

    records: list[Record]
    next: str | None


async def find_jobs(
    state: RequestState,
    wanted: JobFilter,
    limit: int,
    before: str | None,
    recent: Mapping[str, Record],
) -> MergedPage:
    """Up to `limit` jobs with ids below `before`; fewer do not mean that the list ends.

    `recent` must have been read before: a job that the ledger gets meanwhile is then in both,
    instead of in neither.
    """
    page = await state["ledger"].find(wanted, before=before, limit=limit)
    records = [record for record in page.records if record.id not in recent]
    end = page.next
    records += [
        record
        for record in recent.values()
        if wanted.matches(record)
        and (before is None or record.id < before)
        and (end is None or record.id >= end)
    ]
    records.sort(key=lambda record: record.id, reverse=True)
    if len(records) > limit:
        records = records[:limit]
        end = records[-1].id
    return MergedPage(records, end)


async def recent_jobs(state: RequestState) -> Mapping[str, Record]:
    """The heads of the jobs that changed last; the ledger may lack them, or have them as before."""
    queue = state["queue"]
    ids = await retry_briefly(queue.events.recent_jobs, MAX_RECENT_JOBS)
    found = await retry_briefly(
        queue.get_heads, ids, tenant=state["tenant"], max_bytes=MAX_RECENT_BYTES
    )
    serving = await retry_briefly(queue.waiting.serving)
    return {record.id: serving.shown(record) for record in found if record is not None}


async def _with_open_queues(state: RequestState, wanted: JobFilter) -> JobFilter:
    """The filter that tells jobs that are queued from those of a queue that is held, if it must."""
    if len(wanted.states & {State.QUEUED, State.WAITING}) != 1:
        return wanted
    queue = state["queue"]
    serving = await retry_briefly(queue.waiting.serving)
    if State.WAITING in wanted.states:
        names = None if wanted.queue is None else [wanted.queue]
        stats = await retry_briefly(queue.stats, names)
        if not any(one.waiting and serving.holds(one.name) for one in stats):
            return wanted
    return msgspec.structs.replace(wanted, open_queues=serving.open_queues)


async def _current(
    state: RequestState,
    page: MergedPage,
    recent: Mapping[str, Record],
    wanted: JobFilter,
) -> MergedPage:
    """The page with whole records in place of heads, and the current progress of unfinished jobs.

    It ends early where the records of Redis have MAX_PAGE_BYTES.
    """
    ids = [one.id for one in page.records if one.id in recent or one.state not in FINAL]
    if not ids:
        return page
    found = await retry_briefly(
        state["queue"].get_many, ids, tenant=state["tenant"], max_bytes=MAX_PAGE_BYTES
    )
    shown = await state["queue"].waiting.explain_all([one for one in found if one is not None])
    newer = {one.id: one for one in shown if wanted.matches(one)}
    records = [
        newer.get(one.id, one)
        for one in page.records
        if one.id in newer or one.id not in recent  # else it is not in the list any more
    ]
    records = await state["queue"].waiting.explain_all(records)
    if len(found) == len(ids):
        return MergedPage(records, page.next)
    last = ids[len(found) - 1]
    return MergedPage([one for one in records if one.id >= last], last)


class ListQuery(NamedTuple):
    """The request: jobs that match, at most `limit`, with ids below `before`."""

    wanted: JobFilter
    limit: int
    before: str | None


def _query(request: Request, tenant: str) -> ListQuery:
    """Raises Invalid with every parameter that is wrong, and Malformed."""
    errors = parameter_errors(request, _SINGLE, {"state"}, TAG)
    query = request.query_params
    errors += [
        (f"/{name}", f"must have at most {MAX_VALUE_CHARS} characters")
        for name in _SINGLE
        if len(query.get(name, "")) > MAX_VALUE_CHARS
    ]
    states = frozenset(word.strip() for text in query.getlist("state") for word in text.split(","))
    if not states <= frozenset(State):
        errors.append(("/state", f"must be some of {', '.join(State)}, separated by commas"))
    text = query.get("limit", str(DEFAULT_PAGE_JOBS))
    limit = int(text) if text.isascii() and text.isdecimal() and len(text) < 5 else 0
    if not 1 <= limit <= MAX_PAGE_JOBS:
        errors.append(("/limit", f"must be a number from 1 to {MAX_PAGE_JOBS}"))
    if len(query.get("q", "")) > MAX_TEXT_CHARS:
        errors.append(("/q", f"must have at most {MAX_TEXT_CHARS} characters"))
    tags = {name[len(TAG) :]: query[name] for name in query if name.startswith(TAG) and name != TAG}
    for place, text in explain(_tags.iter_errors(tags), TAGS_SCHEMA):
        errors.append((f"/{TAG}{place[1:]}" if place else "/tag", text))
    wanted = job_filter(tenant, query, states, tags.items(), errors)
    return ListQuery(wanted, limit, position_of(query.get("cursor")))


def job_filter(
    tenant: str,
    given: Mapping[str, Any],
    states: Iterable[str],
    tags: Iterable[tuple[str, str]],
    errors: list[FieldError],
) -> JobFilter:
    """The filter by `task`, `queue`, `since`, `until`, `q`. Raises Invalid if there are errors."""
    since, until = (_stamp(given.get(name), name, errors) for name in ("since", "until"))
    if errors:
        raise Invalid(errors)
    task, queue, q = (
        storable_text(given[name]) if name in given else None for name in ("task", "queue", "q")
    )
    return JobFilter(
        tenant=tenant,
        states=frozenset(map(State, states)),
        task=task,
        queue=queue,
        tags=tuple(tags),
        since=since,
        until=until,
        q=(q or "").strip().casefold() or None,
    )


def _stamp(text: str | None, name: str, errors: list[FieldError]) -> int | None:
    """µs since the epoch of an RFC 3339 time; appends to `errors` if it is not one."""
    if text is None:
        return None
    if len(text) > 11 and text[-6] == " ":
        text = f"{text[:-6]}+{text[-5:]}"  # a + in a query string is decoded as a space
    seconds = parse_rfc3339(text)
    if seconds is None:
        errors.append((f"/{name}", "must be an RFC 3339 time, such as 2026-01-31T12:00:00Z"))
        return None
    return round(seconds * 1e6)


def position_of(cursor: str | None) -> str | None:
    """The id below which a list continues. Raises Malformed."""
    # To clients a cursor is opaque; it is the last id of the page before.
    if cursor is not None and not is_id(cursor):
        raise Malformed("cursor: is not valid; send the next_cursor of a page unchanged")
    return cursor
