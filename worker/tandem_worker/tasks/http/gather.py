"""HTTP tasks: `http.request`, `http.download`, `http.gather`, `http.race`, `http.webhook`."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal, NotRequired, cast

import msgspec
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypedDict

from tandem_shared.errors import TandemError
from tandem_shared.times import DURATION_SCHEMA, Seconds
from tandem_worker.encoding import encode
from tandem_worker.errors import Permanent, TaskError
from tandem_worker.failures import Fault, fault
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.reports import item_body
from tandem_worker.task import task
from tandem_worker.tasks.http.request import HttpRequest, HttpResult, Room, call

MOST_REQUESTS = 10_000
MOST_RUNNERS = 100
EACH = 30.0  # seconds for one of several requests
# the same in a race: below the job's own 30 s, so that it ends by its requests and not by its
# timeout
RACING = 20.0
MESSAGES = 10  # that the failure of a whole race repeats

Timeout = Annotated[
    Seconds,
    Field(gt=0, le=86400),
    WithJsonSchema(
        {
            "anyOf": [
                {**DURATION_SCHEMA["anyOf"][0], "exclusiveMinimum": 0, "maximum": 86400},
                DURATION_SCHEMA["anyOf"][1],
            ]
        }
    ),
]


# ----------------------------------------------------------------------------------------- download


# ------------------------------------------------------------------------------------- gather, race


class HttpGather(BaseModel):
    """What `http.gather` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: Annotated[
        list[HttpRequest], Field(max_length=MOST_REQUESTS, description="payloads of http.request")
    ]
    concurrency: Annotated[
        int, Field(ge=1, le=MOST_RUNNERS, description="requests under way at once")
    ] = 10
    timeout: Annotated[Timeout, Field(description="of each request")] = EACH
    on_error: Annotated[
        Literal["collect", "fail"],
        Field(description="collect failures among the results, or fail with the first"),
    ] = "collect"


class HttpProblem(TypedDict):
    """Why a request failed, as a job's `error` says it."""

    type: str
    message: str
    retryable: bool


class HttpGatheredItem(TypedDict):
    """One of `http.gather`: what `http.request` gives, or `error`."""

    ok: bool
    index: int
    error: NotRequired[HttpProblem]
    status: NotRequired[int]
    headers: NotRequired[dict[str, str]]
    url: NotRequired[str]
    elapsed_ms: NotRequired[float]
    json: NotRequired[Any]
    text: NotRequired[str]
    base64: NotRequired[str]


class HttpGathered(TypedDict):
    """What `http.gather` gives, in the order of the requests."""

    results: list[HttpGatheredItem]


@task(
    "http.gather",
    timeout="10m",
    example={
        "requests": [{"url": "https://example.org/a"}, {"url": "https://example.org/b"}],
        "concurrency": 10,
        "on_error": "collect",
    },
)
async def gather(job: Job, payload: HttpGather) -> HttpGathered:
    """Make many requests, some at a time. Each result is streamed as it lands; none is tried twice."""
    total = len(payload.requests)
    bodies, results = Room("the responses"), Room("the results")
    waiting = iter(enumerate(payload.requests))
    landed: list[bytes] = [b""] * total
    done = 0

    async def run() -> None:
        nonlocal done
        for index, one in waiting:
            try:
                item = item_body(
                    {
                        "ok": True,
                        "index": index,
                        **await call(job, one, timeout=payload.timeout, room=bodies),
                    }
                )
            except (TaskError, TandemError) as error:
                what = fault(error)
                if bodies.full or payload.on_error == "fail":
                    raise Permanent(what.type, f"request {index}: {what.message}") from error
                item = encode({"ok": False, "index": index, "error": _problem(what)})
            results.take(len(item))
            landed[index] = item
            done += 1
            await job.emit(msgspec.Raw(item))
            await job.progress(done, total)

    await job.progress(0, total)
    await _together(run, min(payload.concurrency, total))
    # What was encoded once need not be decoded to be encoded again.
    return cast("HttpGathered", msgspec.Raw(b'{"results":[' + b",".join(landed) + b"]}"))


def _problem(what: Fault) -> HttpProblem:
    return {"type": what.type, "message": what.message, "retryable": what.retryable}


async def _together(run: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """`count` runners; the first one that fails ends the others, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(run())
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None


class HttpRace(BaseModel):
    """What `http.race` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: Annotated[
        list[HttpRequest],
        Field(min_length=1, max_length=MOST_RUNNERS, description="payloads of http.request"),
    ]
    timeout: Annotated[Timeout, Field(description="of each request")] = RACING


class HttpRaced(HttpResult):
    """What `http.race` gives: the first success and its place among the requests."""

    index: int


@task(
    "http.race",
    example={"requests": [{"url": "https://a.example.org/"}, {"url": "https://b.example.org/"}]},
)
async def race(job: Job, payload: HttpRace) -> HttpRaced:
    """Make some requests at once and keep the first success; the others are cancelled. None is tried twice."""
    room = Room("the responses")
    total = len(payload.requests)
    failures: dict[int, Fault] = {}
    running = {
        asyncio.create_task(call(job, one, timeout=payload.timeout, room=room)): index
        for index, one in enumerate(payload.requests)
    }
    try:
        pending = set(running)
        await job.progress(0, total)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for one in sorted(done, key=running.__getitem__):
                error = one.exception()
                if error is None:
                    return {**one.result(), "index": running[one]}
                if room.full or not isinstance(error, TaskError | TandemError):
                    raise error
                failures[running[one]] = fault(error)
            await job.progress(len(failures), total)
    finally:
        for one in running:
            one.cancel()
        # Cancelled, each closes its connection.
        await asyncio.gather(*running, return_exceptions=True)
    shown = "; ".join(
        f"request {index}: {failures[index].message}" for index in sorted(failures)[:MESSAGES]
    )
    raise Permanent("all_failed", f"none of {total} requests succeeded: {shown}")


# ------------------------------------------------------------------------------------------ webhook
