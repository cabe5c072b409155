"""One job over HTTP: submit, show, wait, result, cancel, delete."""

import re
from typing import Annotated, Any

import msgspec
from fastapi import Path, Request, Response

from tandem_api.http.body import JSON, JsonBytes, content_type, read_body
from tandem_api.http.caching import NO_CACHE
from tandem_api.http.parameters import (
    MAX_WAIT_SECONDS,
    WAIT_PATTERN,
    flag,
    headers_of,
    idempotency_key,
    matches,
    preferred_wait,
    traceparent,
    wait_parameter,
)
from tandem_api.http.problems import NO_RESULT, RETRY_AFTER_SECONDS, Problem
from tandem_api.http.routing import JOB, PlainRoute
from tandem_api.jobs.lookup import find_in_ledger, find_job, shown, wait_until
from tandem_api.openapi.describe import (
    BODY_PROBLEMS,
    JOB_ID,
    SUBMIT_HEADERS,
    SUBMITTED,
    content,
    job_response,
    parameter,
    problems,
    raw_router,
    ref,
    response,
)
from tandem_api.redis_retry import retry_briefly
from tandem_api.state import RequestState, StateDep, state_of
from tandem_shared.errors import Conflict, Unavailable
from tandem_shared.files.names import job_folder
from tandem_shared.jobs.record import Record, Submission
from tandem_shared.jobs.states import State
from tandem_shared.jobs.view import Failure
from tandem_shared.queue.messages import Submitted

# The most frequent requests bypass FastAPI, see PlainRoute.
plain = raw_router("jobs", route_class=PlainRoute)
router = raw_router("jobs")

JobId = Annotated[str, Path(description="The job's id")]
_failure = msgspec.json.Decoder(Failure)


@plain.post(
    "/v1/jobs",
    responses={**SUBMITTED, **BODY_PROBLEMS},
    openapi_extra={
        "parameters": SUBMIT_HEADERS,
        "requestBody": {"required": True, "content": content(ref("JobRequest"), JSON)},
    },
)
async def submit_job(request: Request) -> Response:
    """Submit one job.

    A repeat with the same Idempotency-Key returns the first job, and runs nothing twice.
    """
    state = state_of(request)
    content_type(request)
    key, wait = idempotency_key(request), preferred_wait(request)
    body = await read_body(request, state["settings"].max_body)
    submission = await state["submissions"].read(
        body, tenant=state["tenant"], key=key, traceparent=traceparent(request)
    )
    return await submit(state, submission, wait)


async def submit(state: RequestState, submission: Submission, wait: int | None) -> Response:
    """Enqueues a job; waits for its end for up to `wait` seconds if the client prefers that."""
    submitted, record = await _enqueue(state, submission)
    if wait and not record.done:
        record = await _wait_for_end(state, record, wait)
    status = 200 if wait is not None and record.done else 202
    headers = {"Location": f"/v1/jobs/{record.id}"}
    if status == 202:
        headers["Retry-After"] = RETRY_AFTER_SECONDS
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait}"
    if submitted.replayed:
        headers["Idempotent-Replayed"] = "true"
    return JsonBytes(shown(state, await state["queue"].waiting.explain(record)), status, headers)


async def _enqueue(state: RequestState, submission: Submission) -> tuple[Submitted, Record]:
    queue = state["queue"]
    for _ in range(2):
        submitted = await retry_briefly(queue.submit, submission)
        if not submitted.replayed and submitted.state in (State.QUEUED, State.SCHEDULED):
            return submitted, _new_record(submission, submitted)
        record = await retry_briefly(queue.get, submitted.id, tenant=submission.tenant)
        if record is not None:
            return submitted, record
        # The first job's record has expired in between, and the key with it.
    raise Unavailable("the first job with this idempotency key is expiring: send the request again")


def _new_record(submission: Submission, submitted: Submitted) -> Record:
    """The record that Redis has now, without reading it."""
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


async def _wait_for_end(state: RequestState, record: Record, seconds: float) -> Record:
    """The final job, or the job as it is when the time is up."""
    try:
        found = await wait_until(lambda now: now.done, state, record.id, seconds)
    except Unavailable:
        return record  # the job was accepted, so this must not become a 503
    return found or record


@plain.get(
    JOB,
    responses={
        200: job_response("The job", ETag="its version", Cache_Control="private"),
        304: response("The job still has the ETag of If-None-Match"),
        **problems(400, 404),
    },
    openapi_extra={
        "parameters": [
            JOB_ID,
            parameter(
                "wait",
                "query",
                f"Long-poll: `25s` or a number of seconds, at most {MAX_WAIT_SECONDS:g}",
                {"type": "string", "pattern": WAIT_PATTERN},
            ),
            parameter("payload", "query", "Add the payload", {"type": "boolean", "default": False}),
            parameter("If-None-Match", "header", "The ETag that the client has"),
        ]
    },
)
async def show_job(request: Request) -> Response:
    """Show a job, or wait for it.

    With `wait`, the answer comes once the job is final or, with If-None-Match, once it has changed.
    """
    state = state_of(request)
    id = request.path_params["id"]
    wait, with_payload = wait_parameter(request), flag(request, "payload")
    record = await find_job(state, id)
    conditional = "if-none-match" in headers_of(request)
    if wait and not record.done:

        def is_awaited(now: Record) -> bool:
            return not matches(request, now.etag) if conditional else now.done

        if not is_awaited(record):
            found = await wait_until(is_awaited, state, id, wait)
            record = found or await find_in_ledger(state, id)
    headers = {**NO_CACHE, "ETag": record.etag}
    if conditional and matches(request, record.etag):
        return Response(status_code=304, headers=headers)
    payload = None
    if with_payload:
        payload = await retry_briefly(state["queue"].payload, id, tenant=state["tenant"])
        if payload is None:
            payload = await state["ledger"].payload(id, tenant=state["tenant"])
    record = await state["queue"].waiting.explain(record)
    return JsonBytes(shown(state, record, payload), 200, headers)


@plain.get(
    f"{JOB}/result",
    responses={
        200: response("The bare result", content({}, JSON)),
        202: job_response("Not final yet", Retry_After="seconds"),
        303: response("The result is kept as a file", Location="the file"),
        **problems(404, _409="The job failed or was cancelled"),
    },
    openapi_extra={"parameters": [JOB_ID]},
)
async def show_result(request: Request) -> Response:
    """Show the result alone.

    A result of more than 256 KiB is kept as a file, to which the answer redirects.
    """
    state = state_of(request)
    record = await find_job(state, request.path_params["id"])
    if not record.done:
        record = await state["queue"].waiting.explain(record)
        headers = {**NO_CACHE, "Retry-After": RETRY_AFTER_SECONDS}
        return JsonBytes(shown(state, record), 202, headers)
    if record.state is not State.SUCCEEDED:
        return _no_result(record).response(request.scope)
    result = record.result if record.result is not None else b"null"
    url = _result_url(record.id, result)
    if url is not None:
        return Response(None, 303, {**NO_CACHE, "Location": url})
    return JsonBytes(result, 200, {**NO_CACHE, "ETag": record.etag})


def _no_result(record: Record) -> Problem:
    more: dict[str, Any] = {}
    detail = "the job was cancelled" if record.state is State.CANCELLED else "the job failed"
    if record.error is not None and record.state is State.FAILED:
        failure = _failure.decode(record.error)
        more["error"] = msgspec.structs.asdict(failure)
        detail += f" ({failure.type}): {failure.message}"
    return Problem(
        status=409,
        type=f"job-{record.state.value}",
        title=NO_RESULT,
        detail=detail,
        more=more,
        headers=NO_CACHE,
    )


def _result_url(id: str, result: bytes) -> str | None:
    """The URL of a result that the worker has stored as a file; None for any other result."""
    # Exactly the file reference that worker/tandem_worker/runtime/run.py writes.
    pattern = rb'\{"file":\{"file":"%b/(result(?:-[0-9]+)?\.json)"[^{}]*\}\}' % id.encode()
    match = re.fullmatch(pattern, result)
    return None if match is None else f"/v1/jobs/{id}/files/{match[1].decode()}"


@router.post(
    f"{JOB}/cancel",
    status_code=202,
    responses={202: job_response("The job as it is now"), **problems(404)},
)
async def cancel_job(state: StateDep, id: JobId) -> Response:
    """Cancel a job, whatever its state.

    A job that has not started is cancelled at once. A running one is asked to stop, and cancelled
    within seconds. A final one stays as it is.
    """
    record = await retry_briefly(state["queue"].cancel, id, tenant=state["tenant"])
    if record is None:
        record = await find_in_ledger(state, id)  # final, and only the ledger knows it
    return JsonBytes(shown(state, record), 202, NO_CACHE)


@router.delete(
    JOB,
    status_code=204,
    responses={
        204: response("The job is deleted"),
        **problems(404, _409="The job is not final"),
    },
)
async def forget_job(state: StateDep, id: JobId) -> Response:
    """Delete a final job, with its result, its files and its stream."""
    record = await find_job(state, id)
    if not record.done:
        raise Conflict(f"the job is {record.state.value}: cancel it first")
    # Delete the record last, so that a DELETE that was interrupted can be repeated. The ledger
    # cannot bring the job back: the stamp of its tombstone is newer than any.
    await state["store"].delete_tree(job_folder(record.id))
    await state["ledger"].tombstone(record.id, now=state["queue"].clock.now())
    await retry_briefly(state["queue"].forget, record.id, tenant=state["tenant"])
    return Response(status_code=204)
