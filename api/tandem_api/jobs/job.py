"""One job over HTTP: submitted, looked at, waited for, its result, cancelled, forgotten."""

import re
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tandem_api.http.body import content_type, read_body
from tandem_api.http.headers import (
    flag,
    idempotency_key,
    matches,
    preferred_wait,
    traceparent,
    waited,
)
from tandem_api.http.problems import RETRY_AFTER, Problem
from tandem_api.http.retry import steadily
from tandem_api.http.routing import JOB, Plain
from tandem_api.jobs.lookup import known, remembered, until
from tandem_api.state import Served, served
from tandem_shared.errors import Conflict, Unavailable
from tandem_shared.files.names import job_folder
from tandem_shared.jobs.record import Failure, Record, Submission, job_json
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Submitted

JSON = "application/json"
_PRIVATE = {"Cache-Control": "private, no-cache"}


class _FileView(msgspec.Struct):
    file: str


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    """A result that was too large for the record."""

    file: _FileView


_kept = msgspec.json.Decoder(_Kept)
_KEPT_NAME = re.compile(r"result(-[0-9]+)?\.json")  # see worker/tandem_worker/runtime/run.py
_failure = msgspec.json.Decoder(Failure)


# ------------------------------------------------------------------------------------------- submit


async def submit_job(request: Request) -> Response:
    """POST /v1/jobs."""
    state = served(request)
    content_type(request)
    headers = request.headers
    key, wait = idempotency_key(headers), preferred_wait(headers)
    body = await read_body(request, state["settings"].max_body)
    submission = await state["submissions"].read(
        body, tenant=state["tenant"], key=key, traceparent=traceparent(headers)
    )
    return await accept(state, submission, wait)


async def accept(state: Served, submission: Submission, wait: int | None) -> Response:
    """The answer to a submission, which is enqueued; `wait`: seconds that the client would like to."""
    submitted, record = await _enqueue(state, submission)
    if wait and not record.done:
        record = await _finished(state, record, wait)
    status = 200 if wait is not None and record.done else 202
    answer = {"Location": f"/v1/jobs/{record.id}"}
    if status == 202:
        answer["Retry-After"] = RETRY_AFTER
    if wait is not None:
        answer["Preference-Applied"] = f"wait={wait}"
    if submitted.replayed:
        answer["Idempotent-Replayed"] = "true"
    return Response(job_json(record), status, answer, media_type=JSON)


async def _enqueue(state: Served, submission: Submission) -> tuple[Submitted, Record]:
    queue = state["queue"]
    for _ in range(2):
        submitted = await steadily(lambda: queue.submit(submission))
        if not submitted.replayed and submitted.state in (State.QUEUED, State.SCHEDULED):
            return submitted, entered(submission, submitted)
        record = await steadily(partial(queue.get, submitted.id, tenant=submission.tenant))
        if record is not None:
            return submitted, record
        # The first job's record expired between the two; so did its key.
    raise Unavailable("the first job with this idempotency key is just being forgotten")


def entered(submission: Submission, submitted: Submitted) -> Record:
    """The record as it stands in Redis now, without reading it."""
    scheduled = submitted.state is State.SCHEDULED
    return Record(
        id=submitted.id,
        task=submission.task,
        tenant=submission.tenant,
        queue=submission.queue,
        priority=submission.priority,
        state=submitted.state,
        stamp=submitted.stamp,
        max_attempts=submission.max_attempts,
        submitted=submitted.stamp,
        scheduled_for=submitted.due / 1000 if scheduled else None,
        due=submitted.due,
        options=submission.options,
    )


async def _finished(state: Served, record: Record, seconds: float) -> Record:
    """The job when it is final, else as it is when the time is up."""
    try:
        found = await until(
            lambda one: one.done,
            record.id,
            tenant=record.tenant,
            queue=state["queue"],
            drain=state["drain"],
            seconds=seconds,
        )
    except Unavailable:
        return record  # it is accepted: that must be said, whatever happens to Redis now
    return found or record


# --------------------------------------------------------------------------------------------- look


async def show_job(request: Request) -> Response:
    """GET /v1/jobs/{id}."""
    state = served(request)
    id = request.path_params["id"]
    wait, with_payload = waited(request), flag(request, "payload")
    record = await known(state, id)
    conditional = "if-none-match" in request.headers
    if wait and not record.done:

        def enough(one: Record) -> bool:
            return not matches(request.headers, one.etag) if conditional else one.done

        if not enough(record):
            found = await until(
                enough,
                id,
                tenant=state["tenant"],
                queue=state["queue"],
                drain=state["drain"],
                seconds=wait,
            )
            record = found or await remembered(state, id)
    headers = {**_PRIVATE, "ETag": record.etag}
    if conditional and matches(request.headers, record.etag):
        return Response(status_code=304, headers=headers)
    payload = None
    if with_payload:
        payload = await steadily(lambda: state["queue"].payload(id, tenant=state["tenant"]))
        if payload is None:
            payload = await state["ledger"].payload(id, tenant=state["tenant"])
    return Response(job_json(record, payload=payload), 200, headers, media_type=JSON)


async def show_result(request: Request) -> Response:
    """GET /v1/jobs/{id}/result."""
    record = await known(served(request), request.path_params["id"])
    if not record.done:
        return Response(
            job_json(record), 202, {**_PRIVATE, "Retry-After": RETRY_AFTER}, media_type=JSON
        )
    if record.state is not State.SUCCEEDED:
        return _without_result(record).response(request.scope)
    result = record.result if record.result is not None else b"null"
    if (url := _file_url(record.id, result)) is not None:
        return Response(None, 303, {**_PRIVATE, "Location": url})
    return Response(result, 200, {**_PRIVATE, "ETag": record.etag}, media_type=JSON)


def _without_result(record: Record) -> Problem:
    more: dict[str, Any] = {}
    if record.error is not None and record.state is State.FAILED:
        failure = _failure.decode(record.error)
        more["error"] = msgspec.structs.asdict(failure)
        detail = f"the job failed ({failure.type}): {failure.message}"
    else:
        detail = (
            f"the job was {record.state.value}"
            if record.state is State.CANCELLED
            else "the job failed"
        )
    return Problem(
        status=409,
        type=f"job-{record.state.value}",
        title="The job has no result",
        detail=detail,
        more=more,
        headers=_PRIVATE,
    )


def _file_url(id: str, result: bytes) -> str | None:
    """Where the result is, if the worker kept it as a file of the job for its size: not what a task itself returned."""
    if not result.startswith(b'{"file":{'):
        return None
    try:
        job, _, name = _kept.decode(result).file.file.partition("/")
    except msgspec.ValidationError:
        return None
    return f"/v1/jobs/{id}/files/{name}" if job == id and _KEPT_NAME.fullmatch(name) else None


# ------------------------------------------------------------------------------------------- cancel


async def cancel_job(request: Request) -> Response:
    """POST /v1/jobs/{id}/cancel."""
    state = served(request)
    id = request.path_params["id"]
    record = await steadily(lambda: state["queue"].cancel(id, tenant=state["tenant"]))
    if record is None:
        record = await remembered(state, id)  # it is final, and stays as it is
    return Response(job_json(record), 202, _PRIVATE, media_type=JSON)


# ------------------------------------------------------------------------------------------- forget


async def forget_job(request: Request) -> Response:
    """DELETE /v1/jobs/{id}."""
    state = served(request)
    queue, tenant = state["queue"], state["tenant"]
    record = await known(state, request.path_params["id"])
    if not record.done:
        raise Conflict(f"the job is {record.state.value}: cancel it first")
    # Its record last: until then it is known, and whoever asks again goes on where this was cut
    # off. What the ledger reads of the record meanwhile is too late for the grave.
    await state["store"].delete_tree(job_folder(record.id))
    await state["ledger"].tombstone(record.id)
    await steadily(lambda: queue.forget(record.id, tenant=tenant))
    return Response(status_code=204)


ROUTES = [
    Route("/v1/jobs", Plain(submit_job), methods=["POST"]),
    Route(JOB, Plain(show_job), methods=["GET"]),
    Route(f"{JOB}/result", Plain(show_result), methods=["GET"]),
    Route(f"{JOB}/cancel", Plain(cancel_job), methods=["POST"]),
    Route(JOB, Plain(forget_job), methods=["DELETE"]),
]
