"""Turns a request's JSON into a Submission, with one compiled validator per task."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec
import structlog
from jsonschema_rs import Draft202012Validator, ReferencingError, ValidationError

from tandem_api.http.body import decode, decode_object
from tandem_api.http.parameters import MAX_KEY_BYTES
from tandem_api.validation.catalogue import Catalogue
from tandem_api.validation.messages import FieldError, explain
from tandem_api.validation.schema import KEY_SCHEMA, NOT_AVAILABLE, OPTIONS_SCHEMA, job_schema
from tandem_shared.catalogue import CatalogueEntry
from tandem_shared.errors import Invalid
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Record, Submission
from tandem_shared.jobs.replay import ReplayInput, replay
from tandem_shared.times import Now, parse_duration, parse_rfc3339

MAX_TIMEOUT_SECONDS = 86_400.0
MAX_DELAY_SECONDS = 3650 * 86_400.0  # of any other duration: a longer one is a mistake
MAX_TASK_CHARS = 200
MAX_MESSAGE_CHARS = 300  # of what is wrong with a duration
# Of a body with more values only the first error is reported. The validator collects all of them,
# each takes 60 µs, and that would block the event loop.
ALL_ERRORS_VALUES = 600
DURATIONS = ("delay", "timeout", "expires_in")
RETRY_DURATIONS = ("base", "cap")

log = structlog.get_logger()


class Envelope(msgspec.Struct):
    """Cuts the payload out of a body, as bytes."""

    payload: msgspec.Raw = msgspec.Raw(b"{}")


class CompiledTask(NamedTuple):
    """A catalogue entry with everything that is derived from it once."""

    entry: CatalogueEntry
    schema: dict[str, Any]  # of a whole job
    validator: Draft202012Validator
    options: JobOptions  # of a job that sets none


_envelope = msgspec.json.Decoder(Envelope)


def _compile(entry: CatalogueEntry) -> CompiledTask:
    # With an `$id`, `#/$defs/…` in the payload's schema refers to that schema, not to the whole.
    payload = {"$id": f"urn:tandem:{entry.name}:{entry.version}", **entry.payload_schema}
    schema = job_schema(entry, payload)
    schema["properties"] |= {"idempotency_key": KEY_SCHEMA}
    try:
        validator = Draft202012Validator(schema, offline=True)
    except (ValidationError, ReferencingError, ValueError) as error:
        # The worker validates payloads too: an invalid one fails there, only later.
        log.warning(
            "a task's payload schema cannot be used", task=entry.name, error=str(error)[:500]
        )
        validator = Draft202012Validator(
            {**schema, "properties": {**schema["properties"], "payload": True}}
        )
    timeout, policy = float(entry.defaults.get("timeout", 30)), entry.defaults.get("retry") or {}
    return CompiledTask(entry, schema, validator, JobOptions(timeout=timeout, retry=policy))


class Submissions:
    """Validates bodies against the catalogue and turns them into Submissions."""

    def __init__(self, catalogue: Catalogue, now: Now, queues: Sequence[str] = ("*",)) -> None:
        self._catalogue, self._now, self._queues = catalogue, now, queues
        self._compiled: dict[str, CompiledTask] = {}

    async def read(
        self,
        body: bytes,
        *,
        tenant: str,
        key: str | None = None,
        traceparent: str | None = None,
        item: bool = False,
    ) -> Submission:
        """The job in a body; an `item` of a bulk may carry an idempotency key.

        Raises Malformed, Invalid, UnknownTask and Unavailable.
        """
        value = decode_object(body)
        compiled = await self._task(value)
        value.setdefault("payload", {})
        if "idempotency_key" in value and not item:
            raise Invalid(
                [("/idempotency_key", "is not a known field: send the header Idempotency-Key")]
            )
        _validate(compiled, value, body)
        if item:
            key = value.get("idempotency_key")
            if key is not None and len(key.encode()) > MAX_KEY_BYTES:
                raise Invalid([("/idempotency_key", f"must have at most {MAX_KEY_BYTES} bytes")])
        entry, options = compiled.entry, compiled.options
        if traceparent is not None:
            options = msgspec.structs.replace(options, traceparent=traceparent)
        submission = Submission(
            id=new_id(self._now()),
            task=entry.name,
            payload=bytes(_envelope.decode(body).payload),
            options=options,
            version=entry.version,
            tenant=tenant,
            queue=entry.queue,
            priority=entry.defaults.get("priority", "normal"),
            idempotency_key=key,
        )
        given = value.get("options")
        if not given:
            return submission
        queue = given.get("queue")
        if queue is not None and not any(fnmatchcase(queue, one) for one in self._queues):
            raise Invalid([("/options/queue", "is not a queue that this service has")])
        return _with_options(submission, given, self._now())

    async def replay(
        self,
        record: Record,
        material: ReplayInput,
        *,
        key: str | None = None,
        traceparent: str | None = None,
    ) -> Submission:
        """The same job for its task's current version. Raises Invalid, UnknownTask, Unavailable."""
        value = {"task": record.task, "payload": decode(material.payload)}
        compiled = await self._task(value)
        _validate(compiled, value, material.payload)
        return replay(
            record,
            material,
            now=self._now(),
            version=compiled.entry.version,
            key=key,
            traceparent=traceparent,
        )

    async def _task(self, value: dict[str, Any]) -> CompiledTask:
        task = value.get("task")
        if not isinstance(task, str):
            raise Invalid([("/task", "must be a string" if "task" in value else "is required")])
        if len(task) > MAX_TASK_CHARS:
            raise Invalid([("/task", f"must have at most {MAX_TASK_CHARS} characters")])
        entry = self._catalogue.entries.get(task) or await self._catalogue.find(task)
        compiled = self._compiled.get(task)
        if compiled is None or compiled.entry is not entry:
            if len(self._compiled) > len(self._catalogue.entries):
                self._compiled.clear()  # drops tasks that have left the catalogue
            compiled = self._compiled[task] = _compile(entry)
        return compiled


def _validate(compiled: CompiledTask, value: dict[str, Any], body: bytes) -> None:
    """Raises Invalid; `body` is the value as JSON."""
    if compiled.validator.is_valid(value):
        return
    found: Iterable[ValidationError] = ()
    if sum(map(body.count, (b",", b"[", b"{"))) <= ALL_ERRORS_VALUES:
        found = compiled.validator.iter_errors(value)
    else:
        try:
            compiled.validator.validate(value)
        except ValidationError as error:
            found = (error,)
    # jsonschema-rs reports schema paths relative to the payload's schema once it has followed a
    # $ref, otherwise relative to the job's.
    errors = explain(found, compiled.schema, compiled.entry.payload_schema)
    raise Invalid(
        [(at, _reworded(at, text, value)) for at, text in errors] or [("", "is not valid")]
    )


def _reworded(pointer: str, text: str, value: dict[str, Any]) -> str:
    """The sentence, replaced where we can say more than the schema."""
    _, *parts = pointer.split("/")
    if len(parts) == 1 and parts[0] in OPTIONS_SCHEMA["properties"]:
        return f'belongs into options: {{"options": {{"{parts[0]}": …}}}}'
    if parts[:1] != ["options"]:
        return text
    if len(parts) == 2 and parts[1] in NOT_AVAILABLE:
        return NOT_AVAILABLE[parts[1]]
    if parts[-1] in (*DURATIONS, *RETRY_DURATIONS) and not text.startswith("is not a known field"):
        given: Any = value
        for part in parts:
            given = given[part]
        try:
            parse_duration(given)
        except (ValueError, TypeError) as error:
            return str(error)[:MAX_MESSAGE_CHARS]
    return text


def _with_options(submission: Submission, given: dict[str, Any], now: float) -> Submission:
    """The submission with what its options override. Raises Invalid."""
    errors: list[FieldError] = []
    options = submission.options
    times = {name: _duration(given, name, errors) for name in DURATIONS}
    policy = {
        name: value for name, value in (given.get("retry") or {}).items() if value is not None
    }
    for name in RETRY_DURATIONS:
        if name in policy:
            policy[name] = _duration(policy, name, errors, "/options/retry")
    if "max_attempts" in policy:
        policy["max_attempts"] = int(policy["max_attempts"])  # 3.0 is an integer in JSON Schema
    run_at = _run_at(given, now, errors)
    concurrency_key, limit = given.get("concurrency_key"), given.get("concurrency_limit")
    if limit is not None and concurrency_key is None:
        errors.append(("/options/concurrency_limit", "needs a concurrency_key"))
    if errors:
        raise Invalid(errors)
    timeout = times["timeout"]
    return msgspec.structs.replace(
        submission,
        options=msgspec.structs.replace(
            options,
            timeout=options.timeout if timeout is None else timeout,
            retry={**options.retry, **policy},
            tags=given.get("tags") or {},
            expires_in=times["expires_in"],
        ),
        queue=given.get("queue") or submission.queue,
        priority=given.get("priority") or submission.priority,
        delay=times["delay"],
        run_at=run_at,
        expires_in=times["expires_in"],
        concurrency_key=concurrency_key,
        concurrency_limit=int(limit or 1),
    )


def _duration(
    given: dict[str, Any], name: str, errors: list[FieldError], parent: str = "/options"
) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    pointer = f"{parent}/{name}"
    try:
        seconds = parse_duration(value)
    except ValueError as error:  # a number with more digits than a schema can limit
        errors.append((pointer, str(error)[:MAX_MESSAGE_CHARS]))
        return None
    if name == "timeout" and not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        errors.append((pointer, "must be more than 0 and at most 24h"))
    elif seconds > MAX_DELAY_SECONDS:
        errors.append((pointer, "must be at most 3650d"))
    return seconds


def _run_at(given: dict[str, Any], now: float, errors: list[FieldError]) -> float | None:
    text = given.get("run_at")
    if text is None:
        return None
    pointer = "/options/run_at"
    if given.get("delay") is not None:
        errors.append((pointer, "give either delay or run_at"))
    seconds = parse_rfc3339(text)
    if seconds is None:
        errors.append((pointer, "must be an RFC 3339 time, such as 2030-01-31T09:30:00Z"))
    elif seconds > now + MAX_DELAY_SECONDS:
        errors.append((pointer, "must be within 3650d from now"))
    return seconds
