"""The JSON Schema of a submitted job: what the API validates with, and what /openapi.json shows."""

from typing import Any

from tandem_api.http.parameters import MAX_KEY_BYTES
from tandem_shared.catalogue import CatalogueEntry
from tandem_shared.jobs.states import PRIORITIES
from tandem_shared.ledger.rows import MAX_TAG_NAME_CHARS, MAX_TAG_VALUE_CHARS
from tandem_shared.retry_policy import RETRY_SCHEMA
from tandem_shared.settings import QUEUE_NAME_PATTERN
from tandem_shared.times import DURATION_SCHEMA


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]}


MAX_TAGS = 50  # of one job, and of a filter
# Options that the contract reserves, and the error that a client gets for each.
NOT_AVAILABLE = {"callback": "callbacks are not available yet"}
TAGS_SCHEMA = _or_null(
    {
        "type": "object",
        "maxProperties": MAX_TAGS,
        "propertyNames": {"minLength": 1, "maxLength": MAX_TAG_NAME_CHARS},
        "additionalProperties": {"type": "string", "maxLength": MAX_TAG_VALUE_CHARS},
    }
)
# Every option may be left out, and null means left out.
OPTIONS_SCHEMA = _or_null(
    {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "queue": _or_null(
                {
                    "type": "string",
                    "pattern": QUEUE_NAME_PATTERN,
                    "errorMessage": "must be up to 64 letters, digits, '.', '_' and '-'",
                }
            ),
            "priority": _or_null({"enum": list(PRIORITIES)}),
            "run_at": _or_null({"type": "string", "format": "date-time"}),
            **dict.fromkeys(("delay", "timeout", "expires_in"), _or_null(DURATION_SCHEMA)),
            "retry": _or_null(RETRY_SCHEMA),
            "concurrency_key": _or_null({"type": "string", "minLength": 1, "maxLength": 255}),
            "concurrency_limit": _or_null({"type": "integer", "minimum": 1, "maximum": 10_000}),
            "tags": TAGS_SCHEMA,
            **{name: {"type": "null", "description": text} for name, text in NOT_AVAILABLE.items()},
        },
    }
)
KEY_SCHEMA = _or_null({"type": "string", "minLength": 1, "maxLength": MAX_KEY_BYTES})


def job_schema(entry: CatalogueEntry, payload: dict[str, Any]) -> dict[str, Any]:
    """The schema of a job of this task; `payload` is its payload's schema, or a reference to it."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["task", "payload"],
        "properties": {
            "task": {"const": entry.name},
            "payload": payload,
            "options": OPTIONS_SCHEMA,
        },
    }
