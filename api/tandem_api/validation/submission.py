"""From a request's JSON to a Submission: checked by one compiled validator for each task, defaults filled in."""

import time
from typing import Any, NamedTuple

import msgspec
import structlog
from jsonschema_rs import Draft202012Validator, ReferencingError, ValidationError

from tandem_api.http.body import decode, refuse_depth
from tandem_api.validation.catalogue import Catalogue
from tandem_api.validation.messages import Explained, explain
from tandem_shared.catalogue import CatalogueEntry
from tandem_shared.errors import Invalid
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Record, Submission
from tandem_shared.jobs.replay import ReplayInput, replay
from tandem_shared.jobs.states import PRIORITIES
from tandem_shared.retry import RETRY_SCHEMA
from tandem_shared.settings import QUEUE_NAME_PATTERN
from tandem_shared.times import DURATION_SCHEMA, parse_duration, parse_rfc3339

LONGEST_TIMEOUT = 86_400.0  # seconds
LONGEST_DELAY = 3650 * 86_400.0  # of any other duration: what is later than that is a mistake
FEW_ERRORS = 16 << 10  # bytes of a body up to which all errors are collected and not only the first
KEY_BYTES = 255  # of an idempotency key
TASK_CHARACTERS = 200

log = structlog.get_logger()


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]}


# What is known to come, and is refused in plain words until then.
_NOT_YET = {"callback": "callbacks are not available yet"}
# Every option may be left out, and null means left out.
OPTIONS: dict[str, Any] = _or_null(
    {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "queue": _or_null({"type": "string", "pattern": QUEUE_NAME_PATTERN}),
            "priority": _or_null({"enum": list(PRIORITIES)}),
            "delay": _or_null(DURATION_SCHEMA),
            "run_at": _or_null({"type": "string", "format": "date-time"}),
            "timeout": _or_null(DURATION_SCHEMA),
            "expires_in": _or_null(DURATION_SCHEMA),
            "retry": _or_null(RETRY_SCHEMA),
            "concurrency_key": _or_null({"type": "string", "minLength": 1, "maxLength": 255}),
            "concurrency_limit": _or_null({"type": "integer", "minimum": 1, "maximum": 10_000}),
            "tags": _or_null(
                {
                    "type": "object",
                    "maxProperties": 50,
                    "propertyNames": {"minLength": 1, "maxLength": 64},
                    "additionalProperties": {"type": "string", "maxLength": 256},
                }
            ),
            **{name: {"type": "null", "description": text} for name, text in _NOT_YET.items()},
        },
    }
)
KEY: dict[str, Any] = {"type": ["string", "null"], "minLength": 1, "maxLength": KEY_BYTES}
DURATIONS = ("delay", "timeout", "expires_in")
RETRY_DURATIONS = ("base", "cap")


class Envelope(msgspec.Struct):
    """Where the payload stands in a body, as bytes."""

    payload: msgspec.Raw = msgspec.Raw(b"{}")


class Compiled(NamedTuple):
    """What is made of an entry once."""

    entry: CatalogueEntry
    schema: dict[str, Any]  # of a whole job
    validator: Draft202012Validator
    options: JobOptions  # of a job that gives none


_envelope = msgspec.json.Decoder(Envelope)


def schema_of(entry: CatalogueEntry, payload: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a whole job of this task; `payload` is the schema of its payload, or a reference to it."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["task", "payload"],
        "properties": {"task": {"const": entry.name}, "payload": payload, "options": OPTIONS},
    }


def _compile(entry: CatalogueEntry) -> Compiled:
    # With an id of its own, `#/$defs/…` inside means the payload's schema and not the whole.
    payload = {"$id": f"urn:tandem:{entry.name}:{entry.version}", **entry.payload_schema}
    schema = schema_of(entry, payload)
    schema["properties"] |= {"idempotency_key": KEY}
    try:
        validator = Draft202012Validator(schema, offline=True)
    except (ValidationError, ReferencingError, ValueError) as error:
        # The worker checks each payload again, so nothing wrong runs; only the answer comes later.
        log.warning(
            "a task's payload schema cannot be used", task=entry.name, error=str(error)[:500]
        )
        validator = Draft202012Validator(
            {**schema, "properties": {**schema["properties"], "payload": True}}
        )
    timeout, policy = float(entry.defaults.get("timeout", 30)), entry.defaults.get("retry") or {}
    return Compiled(entry, schema, validator, JobOptions(timeout=timeout, retry=policy))


class Submissions:
    """Makes Submissions of bodies, by what the catalogue says."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._compiled: dict[str, Compiled] = {}

    async def read(
        self,
        body: bytes,
        *,
        tenant: str,
        key: str | None = None,
        traceparent: str | None = None,
        item: bool = False,
    ) -> Submission:
        """The job in a body. `item`: of a bulk, which may carry an idempotency key.

        Raises Invalid, UnknownTask, Unavailable, and Malformed for what is no JSON.
        """
        value = decode(body)
        if not isinstance(value, dict):
            raise Invalid([("", "must be a JSON object")])
        refuse_depth(value, body)
        compiled = await self._compiled_for(value)
        value.setdefault("payload", {})
        if "idempotency_key" in value and not item:
            raise Invalid(
                [("/idempotency_key", "is not a known field: send the header Idempotency-Key")]
            )
        if not compiled.validator.is_valid(value):
            raise Invalid(_refusals(compiled, value, few=len(body) <= FEW_ERRORS))
        if item:
            key = value.get("idempotency_key")
            if key is not None and len(key.encode()) > KEY_BYTES:
                raise Invalid([("/idempotency_key", f"must have at most {KEY_BYTES} bytes")])
        payload = bytes(_envelope.decode(body).payload)
        return _submission(
            compiled,
            payload,
            value.get("options") or {},
            tenant=tenant,
            key=key,
            traceparent=traceparent,
        )

    async def replay(
        self,
        record: Record,
        material: ReplayInput,
        *,
        key: str | None = None,
        traceparent: str | None = None,
    ) -> Submission:
        """The same job again, if its task still takes it. Raises Invalid, UnknownTask and Unavailable."""
        value = {"task": record.task, "payload": decode(material.payload)}
        compiled = await self._compiled_for(value)
        if not compiled.validator.is_valid(value):
            raise Invalid(_refusals(compiled, value, few=len(material.payload) <= FEW_ERRORS))
        return replay(
            record, material, version=compiled.entry.version, key=key, traceparent=traceparent
        )

    async def _compiled_for(self, value: dict[str, Any]) -> Compiled:
        task = value.get("task")
        if not isinstance(task, str):
            raise Invalid([("/task", "must be a string" if "task" in value else "is required")])
        if len(task) > TASK_CHARACTERS:
            raise Invalid([("/task", f"must have at most {TASK_CHARACTERS} characters")])
        entry = self._catalogue.entries.get(task) or await self._catalogue.find(task)
        compiled = self._compiled.get(task)
        if compiled is None or compiled.entry is not entry:
            if len(self._compiled) > len(self._catalogue.entries):
                self._compiled.clear()  # tasks that are no longer in the catalogue
            compiled = self._compiled[task] = _compile(entry)
        return compiled


def _refusals(compiled: Compiled, value: dict[str, Any], *, few: bool) -> list[Explained]:
    # A place in the payload's schema is told from its own root behind a reference, else from the
    # whole's.
    schemas = (compiled.schema, compiled.entry.payload_schema)
    if few:
        errors = explain(compiled.validator.iter_errors(value), *schemas)
    else:
        # All errors of a large body would be a million, and hold everybody up.
        try:
            compiled.validator.validate(value)
            errors = []
        except ValidationError as error:
            errors = explain([error], *schemas)
    return [(at, _worded(at, text, value)) for at, text in errors] or [("", "is not valid")]


def _worded(at: str, text: str, value: dict[str, Any]) -> str:
    _, *parts = at.split("/")
    if len(parts) == 2 and parts[0] == "options" and parts[1] in _NOT_YET:
        return _NOT_YET[parts[1]]
    if (
        parts[:1] == ["options"]
        and parts[-1] in (*DURATIONS, *RETRY_DURATIONS)
        and text != "is not a known field"
    ):
        given: Any = value
        for part in parts:
            given = given[part]
        try:
            parse_duration(given)
        except (ValueError, TypeError) as error:
            return str(error)[:300]
    return text


def _submission(
    compiled: Compiled,
    payload: bytes,
    given: dict[str, Any],
    *,
    tenant: str,
    key: str | None,
    traceparent: str | None,
) -> Submission:
    entry, options = compiled.entry, compiled.options
    priority = entry.defaults.get("priority", "normal")
    if not given:
        if traceparent is not None:
            options = msgspec.structs.replace(options, traceparent=traceparent)
        return Submission(
            id=new_id(), task=entry.name, payload=payload, options=options, version=entry.version, tenant=tenant,
            queue=entry.queue, priority=priority, idempotency_key=key,
        )  # fmt: skip
    errors: list[Explained] = []
    times = {name: _duration(given, name, errors) for name in DURATIONS}
    policy = {
        name: value for name, value in (given.get("retry") or {}).items() if value is not None
    }
    for name in RETRY_DURATIONS:
        if name in policy:
            policy[name] = _duration(policy, name, errors, "/options/retry")
    if "max_attempts" in policy:
        policy["max_attempts"] = int(policy["max_attempts"])
    run_at = _run_at(given, errors)
    concurrency_key, limit = given.get("concurrency_key"), given.get("concurrency_limit")
    if limit is not None and concurrency_key is None:
        errors.append(("/options/concurrency_limit", "needs a concurrency_key"))
    if errors:
        raise Invalid(errors)
    timeout = times["timeout"]
    return Submission(
        id=new_id(),
        task=entry.name,
        payload=payload,
        options=JobOptions(
            timeout=options.timeout if timeout is None else timeout,
            retry={**options.retry, **policy},
            tags=given.get("tags") or {},
            traceparent=traceparent,
            expires_in=times["expires_in"],
        ),
        version=entry.version,
        tenant=tenant,
        queue=given.get("queue") or entry.queue,
        priority=given.get("priority") or priority,
        delay=times["delay"],
        run_at=run_at,
        expires_in=times["expires_in"],
        concurrency_key=concurrency_key,
        concurrency_limit=int(limit) if limit is not None else 1,
        idempotency_key=key,
    )


def _duration(
    given: dict[str, Any], name: str, errors: list[Explained], place: str = "/options"
) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    at = f"{place}/{name}"
    try:
        length = parse_duration(value)
    except ValueError as error:  # a number with more digits than a schema can limit
        errors.append((at, str(error)[:300]))
        return None
    if name == "timeout" and not 0 < length <= LONGEST_TIMEOUT:
        errors.append((at, "must be more than 0 and at most 24h"))
    elif length > LONGEST_DELAY:
        errors.append((at, "must be at most 3650d"))
    return length


def _run_at(given: dict[str, Any], errors: list[Explained]) -> float | None:
    text = given.get("run_at")
    if text is None:
        return None
    at = "/options/run_at"
    if given.get("delay") is not None:
        errors.append((at, "give either delay or run_at"))
    moment = parse_rfc3339(text)
    if moment is None:
        errors.append((at, "must be a time of RFC 3339 with its zone, as 2030-01-31T09:30:00Z"))
    elif moment > time.time() + LONGEST_DELAY:
        errors.append((at, "must be within 3650d from now"))
    return moment
