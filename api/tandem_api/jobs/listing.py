"""GET /v1/jobs: the ledger's rows, and over them what Redis knows better, so that nobody has to wait for a projection.

The jobs that changed last stand in the event stream until the ledger has them. They are read first,
by their records; the ledger's rows follow, without those jobs. So a job is in the list as soon as
its 202 is, in the state that it has.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tandem_api.http.retry import steadily
from tandem_api.http.routing import Plain
from tandem_api.state import Served, served
from tandem_shared.errors import Invalid, Malformed
from tandem_shared.jobs.ids import ID_CHARS, id_time
from tandem_shared.jobs.record import Record, job_json
from tandem_shared.jobs.states import FINAL, State
from tandem_shared.ledger.query import JobFilter
from tandem_shared.times import parse_rfc3339

USUAL, MOST = 50, 200  # items of a page
RECENT = 1000  # jobs that are read from Redis, at most, because the ledger may not have them
LONGEST = 200  # characters of a `q`, and of any other value
TAG = "tag."

# As OpenAPI has them: name, what it means, its schema unless it is a string.
_TIME_SCHEMA = {"type": "string", "format": "date-time"}
PARAMETERS: list[Any] = [
    ("state", "One of these states, separated by commas"),
    ("task", "The task's name"),
    ("queue", "The queue's name"),
    (
        "tag",
        "Tags: `tag.customer=17`",
        {"type": "object", "additionalProperties": {"type": "string"}},
    ),
    ("since", "Submitted at this time or later", _TIME_SCHEMA),
    ("until", "Submitted before this time", _TIME_SCHEMA),
    ("q", "A text within id, task, tags or the last error's type and message, in any case"),
    (
        "limit",
        "Jobs in a page",
        {"type": "integer", "minimum": 1, "maximum": MOST, "default": USUAL},
    ),
    ("cursor", "`next_cursor` of the page before"),
]
_SINGLE = ("task", "queue", "since", "until", "q", "limit", "cursor")


async def list_jobs(request: Request) -> Response:
    """GET /v1/jobs."""
    state = served(request)
    wanted, limit, before = _asked(request, state["tenant"])
    fresh = await recent(state)
    found = await look(state, wanted, limit, before, fresh)
    items = [
        msgspec.Raw(job_json(one)) for one in await _current(state, found.records, fresh, wanted)
    ]
    cursor = cursor_of(found.next)
    headers = {"Cache-Control": "private, no-cache"}
    if cursor is not None:
        query = [pair for pair in request.query_params.multi_items() if pair[0] != "cursor"]
        headers["Link"] = f'</v1/jobs?{urlencode([*query, ("cursor", cursor)])}>; rel="next"'
    body = msgspec.json.encode({"items": items, "next_cursor": cursor})
    return Response(body, 200, headers, media_type="application/json")


class Found(NamedTuple):
    """Jobs, the newest first; `next`: the id below which the list goes on."""

    records: list[Record]
    next: str | None


async def look(
    state: Served, wanted: JobFilter, limit: int, before: str | None, fresh: Mapping[str, Record]
) -> Found:
    """Up to `limit` jobs with an id below `before`; fewer, even none, do not say that it is the end.

    `fresh` was read before: what the ledger got between the two is then in both, and not in
    neither.
    """
    page = await state["ledger"].find(wanted, before=before, limit=limit)
    records = [one for one in page.records if one.id not in fresh]
    end = page.next
    records += [
        one
        for one in fresh.values()
        if wanted.matches(one)
        and (before is None or one.id < before)
        and (end is None or one.id >= end)
    ]
    records.sort(key=lambda one: one.id, reverse=True)
    if len(records) > limit:
        records = records[:limit]
        end = records[-1].id
    return Found(records, end)


async def recent(state: Served) -> Mapping[str, Record]:
    """The jobs that changed last, and that the ledger may not have as they are."""
    queue = state["queue"]
    ids = await steadily(lambda: queue.events.recent_jobs(RECENT))
    found = await steadily(lambda: queue.get_many(ids, tenant=state["tenant"]))
    return {one.id: one for one in found if one is not None}


async def _current(
    state: Served, records: list[Record], fresh: Mapping[str, Record], wanted: JobFilter
) -> list[Record]:
    """The same with what is no event: the progress of those that are not final."""
    ids = [one.id for one in records if one.state not in FINAL and one.id not in fresh]
    if not ids:
        return records
    found = await steadily(lambda: state["queue"].get_many(ids, tenant=state["tenant"]))
    newer = {one.id: one for one in found if one is not None and wanted.matches(one)}
    return [newer.get(one.id, one) for one in records]


# ------------------------------------------------------------------------------------- the question


def _asked(request: Request, tenant: str) -> tuple[JobFilter, int, str | None]:
    """The filter, the limit, and the id below which to begin. Raises Invalid with every wrong one, and Malformed."""
    errors: list[tuple[str, str]] = []
    query = request.query_params
    for name in query:
        if name not in (*_SINGLE, "state") and not (name.startswith(TAG) and len(name) > len(TAG)):
            errors.append((f"/{name[:LONGEST]}", "is not a known parameter"))
        elif name != "state" and len(query.getlist(name)) > 1:
            errors.append((f"/{name[:LONGEST]}", "may be given once"))
        elif name != "state" and len(query[name]) > 2 * LONGEST:
            errors.append((f"/{name[:LONGEST]}", "is too long"))
    states = frozenset(word.strip() for text in query.getlist("state") for word in text.split(","))
    if not states <= frozenset(State):
        errors.append(("/state", f"must be some of {', '.join(State)}, separated by commas"))
    limit = USUAL
    if (text := query.get("limit")) is not None:
        limit = int(text) if text.isascii() and text.isdecimal() and len(text) < 5 else 0
        if not 1 <= limit <= MOST:
            errors.append(("/limit", f"must be a number from 1 to {MOST}"))
    since, until = (time_of(query.get(name), name, errors) for name in ("since", "until"))
    q = query.get("q", "").strip()
    if len(q) > LONGEST:
        errors.append(("/q", f"must have at most {LONGEST} characters"))
    if errors:
        raise Invalid(errors)
    wanted = JobFilter(
        tenant=tenant,
        states=frozenset(State(word) for word in states),
        task=query.get("task"),
        queue=query.get("queue"),
        tags=tuple((name[len(TAG) :], query[name]) for name in query if name.startswith(TAG)),
        since=since,
        until=until,
        q=q.casefold() or None,
    )
    return wanted, limit, id_before(query.get("cursor"))


def time_of(text: str | None, name: str, errors: list[tuple[str, str]]) -> int | None:
    """µs since the epoch of an RFC 3339 time."""
    if text is None:
        return None
    if len(text) > 11 and text[-6] == " ":
        text = f"{text[:-6]}+{text[-5:]}"  # the plus of an offset, as a form decodes it
    moment = parse_rfc3339(text)
    if moment is not None:
        return round(moment * 1e6)
    errors.append((f"/{name}", "must be a time as of RFC 3339, like 2026-01-31T12:00:00Z"))
    return None


def cursor_of(id: str | None) -> str | None:
    """What leads a client to the ids below this one."""
    return None if id is None else base64.urlsafe_b64encode(id.encode()).decode().rstrip("=")


def id_before(cursor: str | None) -> str | None:
    """The id that a cursor was made of. Raises Malformed for one that is none."""
    if cursor is None:
        return None
    try:
        id = base64.b64decode(
            cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True
        ).decode("ascii")
    except (ValueError, binascii.Error):
        id = ""
    if len(id) != ID_CHARS or id_time(id) is None:
        raise Malformed("cursor: give the next_cursor of a page as it stands")
    return id


ROUTES: list[Any] = [Route("/v1/jobs", Plain(list_jobs), methods=["GET"])]
