"""The JSON Schema of a filter of jobs in a body, as `POST /v1/jobs/replay` takes it."""

from typing import Any

from tandem_api.validation.schema import TAGS_SCHEMA
from tandem_shared.jobs.ids import ID_PATTERN
from tandem_shared.jobs.replay import REPLAYABLE

# Only for /openapi.json: an invalid cursor is malformed (400), while fields are invalid (422).
CURSOR_SCHEMA: dict[str, Any] = {"type": "string", "pattern": ID_PATTERN}
MAX_JOBS = 10_000  # of one call
MAX_IDS = 1000
SEARCHED = "a text in id, task, tags or the last error's type and message, ignoring case"

_TEXT: dict[str, Any] = {"type": ["string", "null"], "maxLength": 200}
_TIME: dict[str, Any] = {"type": ["string", "null"], "format": "date-time"}
_STATE: dict[str, Any] = {"enum": sorted(REPLAYABLE)}
# The filter of GET /v1/jobs as a body; null means left out.
FILTER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "state": {
            "anyOf": [_STATE, {"type": "array", "items": _STATE, "minItems": 1}, {"type": "null"}],
            "default": "failed",
        },
        "task": _TEXT,
        "queue": _TEXT,
        "tags": TAGS_SCHEMA,
        "since": {**_TIME, "description": "submitted at this time or later"},
        "until": {**_TIME, "description": "submitted before this time"},
        "q": {**_TEXT, "description": SEARCHED},
        "ids": {
            "type": ["array", "null"],
            "maxItems": MAX_IDS,
            "items": {"type": "string", "maxLength": 64, "pattern": "^[0-9A-Za-z]+$"},
            "description": "only these jobs",
        },
        "limit": {
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": MAX_JOBS,
            "default": MAX_JOBS,
        },
        "cursor": {"type": ["string", "null"], "description": "`next_cursor` of the call before"},
        "dry_run": {"type": ["boolean", "null"], "default": False, "description": "only count"},
    },
}
