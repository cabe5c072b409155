"""`http.gather` and `http.race`."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal, NotRequired, cast

import msgspec
from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from tandem_shared.times import DURATION_SCHEMA, Seconds
from tandem_worker.encoding import encode
from tandem_worker.errors import Permanent
from tandem_worker.failures import Fault, to_fault
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.reports import item_body
from tandem_worker.task import task
from tandem_worker.tasks.http.request import HttpRequest, HttpResult, call
from tandem_worker.tasks.http.responses import ByteBudget, ResponseBody
from tandem_worker.tasks.payload import Payload

MAX_REQUESTS = 10_000
MAX_CONCURRENCY = 100
GATHER_TIMEOUT_SECONDS = 30.0  # for each request
# Below the job's own 30 s, so that a race ends with its requests' errors and not its timeout.
RACE_TIMEOUT_SECONDS = 20.0
MAX_MESSAGES = 10  # quoted in the error of a race without a winner

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


class HttpGather(Payload):
    """The payload of `http.gather`."""

    requests: Annotated[
        list[HttpRequest], Field(max_length=MAX_REQUESTS, description="payloads of http.request")
    ]
    concurrency: Annotated[
        int, Field(ge=1, le=MAX_CONCURRENCY, description="requests at the same time")
    ] = 10
    timeout: Annotated[Timeout, Field(description="of each request")] = GATHER_TIMEOUT_SECONDS
    on_error: Annotated[
        Literal["collect", "fail"],
        Field(description="collect errors among the results, or fail with the first"),
    ] = "collect"


class HttpProblem(TypedDict):
    """Why a request failed, in the form of a job's `error`."""

    type: str
    message: str
    retryable: bool


class HttpGatheredItem(ResponseBody):
    """One result of `http.gather`: that of `http.request`, or `error`."""

    ok: bool
    index: int
    error: NotRequired[HttpProblem]
    status: NotRequired[int]
    headers: NotRequired[dict[str, str]]
    url: NotRequired[str]
    elapsed_ms: NotRequired[float]


class HttpGathered(TypedDict):
    """The result of `http.gather`, in the order of the requests."""

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
    """Make many requests, several at a time, and stream their results. No request is repeated."""
    total = len(payload.requests)
    bodies, results = ByteBudget("the responses"), ByteBudget("the results")
    waiting = iter(enumerate(payload.requests))
    items: list[bytes] = [b""] * total
    done = 0

    async def run() -> None:
        nonlocal done
        for index, request in waiting:
            try:
                result = await call(job, request, timeout=payload.timeout, budget=bodies)
                item = item_body({"ok": True, "index": index, **result})
            except Exception as error:
                failure = to_fault(error)
                if bodies.exceeded or payload.on_error == "fail":
                    message = f"request {index}: {failure.message}"
                    raise Permanent(failure.type, message) from error
                item = encode({"ok": False, "index": index, "error": _problem(failure)})
            results.take(len(item))
            items[index] = item
            done += 1
            await job.emit(msgspec.Raw(item))
            await job.progress(done, total)

    await job.progress(0, total)
    await _run_together(run, min(payload.concurrency, total))
    # The items are JSON already: do not decode and encode them again.
    return cast("HttpGathered", msgspec.Raw(b'{"results":[' + b",".join(items) + b"]}"))


def _problem(failure: Fault) -> HttpProblem:
    return {"type": failure.type, "message": failure.message, "retryable": failure.retryable}


async def _run_together(run: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run `count` tasks; the first error cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(run())
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None


class HttpRace(Payload):
    """The payload of `http.race`."""

    requests: Annotated[
        list[HttpRequest],
        Field(min_length=1, max_length=MAX_CONCURRENCY, description="payloads of http.request"),
    ]
    timeout: Annotated[Timeout, Field(description="of each request")] = RACE_TIMEOUT_SECONDS


class HttpRaced(HttpResult):
    """The result of `http.race`: the first success, and the index of its request."""

    index: int


@task(
    "http.race",
    example={"requests": [{"url": "https://a.example.org/"}, {"url": "https://b.example.org/"}]},
)
async def race(job: Job, payload: HttpRace) -> HttpRaced:
    """Make several requests at once, return the first success and cancel the others.

    No request is repeated.
    """
    budget = ByteBudget("the responses")
    total = len(payload.requests)
    failures: dict[int, Fault] = {}
    running = {
        asyncio.create_task(call(job, request, timeout=payload.timeout, budget=budget)): index
        for index, request in enumerate(payload.requests)
    }
    try:
        pending = set(running)
        await job.progress(0, total)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for finished in sorted(done, key=running.__getitem__):
                error = finished.exception()
                if error is None:
                    return {**finished.result(), "index": running[finished]}
                if budget.exceeded:
                    raise error
                failures[running[finished]] = to_fault(error)
            await job.progress(len(failures), total)
    finally:
        for call_ in running:
            call_.cancel()
        # Each cancelled call closes its connection.
        await asyncio.gather(*running, return_exceptions=True)
    messages = [f"request {index}: {failures[index].message}" for index in sorted(failures)]
    shown = "; ".join(messages[:MAX_MESSAGES])
    raise Permanent("all_failed", f"none of {total} requests succeeded: {shown}")
