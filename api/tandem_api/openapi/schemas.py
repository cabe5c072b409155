"""The schemas of OpenAPI for what our own routes take and give."""

from typing import Any

_STATES = [
    "waiting",
    "scheduled",
    "queued",
    "running",
    "retrying",
    "succeeded",
    "failed",
    "cancelled",
]
_TIME = {"type": "string", "format": "date-time"}
_TIME_OR_NULL = {"type": ["string", "null"], "format": "date-time"}
_COUNT = {"type": "integer", "minimum": 0}
_STRINGS = {"type": "array", "items": {"type": "string"}}


def ref(name: str, kind: str = "schemas") -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def fields_of(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [name for name in properties if name not in optional],
        "properties": properties,
    }


def list_of(item: dict[str, Any]) -> dict[str, Any]:
    return fields_of({"items": {"type": "array", "items": item}})


_ERROR = fields_of(
    {
        "type": {
            "type": "string",
            "description": "`exception:<Class>`, `timeout`, `worker_lost`, `invalid_payload`, `unknown_task`, "
            "`expired`, `dependency_failed` or a task's own word",
        },
        "message": {"type": "string"},
        "retryable": {"type": "boolean"},
        "attempt": _COUNT,
        "next_attempt_at": _TIME_OR_NULL,
    }
)
_FILE = fields_of(
    {
        "name": {"type": "string"},
        "size": _COUNT,
        "sha256": {"type": "string"},
        "content_type": {"type": "string"},
    }
    | {"url": {"type": "string"}}
)
_ATTEMPT = fields_of(
    {
        "attempt": _COUNT,
        "started_at": _TIME,
        "finished_at": _TIME_OR_NULL,
        "outcome": {
            "enum": ["succeeded", "failed", "timeout", "cancelled", "worker_lost", "released", None]
        },
        "worker": {"type": "string"},
    }
)
_LINKS = fields_of(
    {"self": {"type": "string"}, "stream": {"type": "string"}, "result": {"type": "string"}}
)

SCHEMAS: dict[str, Any] = {
    "Job": fields_of(
        {
            "id": {"type": "string", "description": "opaque, URL-safe, sorts by submission"},
            "task": {"type": "string"},
            "state": {"enum": _STATES},
            "done": {"type": "boolean"},
            "queue": {"type": "string"},
            "priority": {"enum": ["high", "normal", "low"]},
            "attempt": _COUNT,
            "max_attempts": _COUNT,
            "submitted_at": _TIME,
            "scheduled_for": _TIME_OR_NULL,
            "started_at": _TIME_OR_NULL,
            "finished_at": _TIME_OR_NULL,
            "timeout": {"type": "number", "description": "seconds"},
            "progress": {"type": ["object", "null"]},
            "result": {"description": "set only in `succeeded`"},
            "error": {"anyOf": [_ERROR, {"type": "null"}]},
            "cancel_requested": {"type": "boolean"},
            "tags": {"type": "object", "additionalProperties": {"type": "string"}},
            "files": {"type": "array", "items": _FILE},
            "attempts": {"type": "array", "items": _ATTEMPT},
            "links": _LINKS,
            "replay_of": {"type": "string"},
            "payload": {"description": "only with ?payload=true"},
        },
        "replay_of",
        "payload",
    ),
    "Problem": fields_of(
        {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "instance": {"type": "string"},
            "errors": {
                "type": "array",
                "items": fields_of(
                    {
                        "pointer": {"type": "string", "description": "JSON pointer"},
                        "detail": {"type": "string"},
                    }
                ),
            },
        },
        "instance",
        "errors",
    ),
    "BulkAnswer": {
        "oneOf": [fields_of({"id": {"type": "string"}}), fields_of({"error": ref("Problem")})]
    },
    "Replays": fields_of(
        {
            "dry_run": {"type": "boolean"},
            "matched": _COUNT,
            "replayed": _COUNT,
            "already_replayed": {
                **_COUNT,
                "description": "of the matched ones, those that have a replay",
            },
            "refused": {
                **_COUNT,
                "description": "those that their task, as it is now, does not take",
            },
            "ledger_lag": {
                "type": "number",
                "description": "seconds; of what changed since, some may be missing",
            },
            "items": {
                "type": "array",
                "items": fields_of(
                    {
                        "replay_of": {"type": "string"},
                        "id": {"type": "string"},
                        "error": ref("Problem"),
                    },
                    "id",
                    "error",
                ),
                "description": "of the replayed ones their new ids, of the refused ones why",
            },
            "next_cursor": {
                "type": ["string", "null"],
                "description": "for the next call; null: that was all",
            },
        }
    ),
    "Entry": fields_of(
        {
            "id": {"type": "string", "description": "for `after` and Last-Event-ID"},
            "type": {"enum": ["state", "progress", "log", "output", "end"]},
            "attempt": _COUNT,
            "at": _TIME,
            "data": {},
        }
    ),
    "Task": fields_of(
        {
            "name": {"type": "string"},
            "summary": {"type": "string"},
            "queue": {"type": "string"},
            "payload_schema": {"type": "object"},
            "result_schema": {"type": "object"},
            "defaults": {"type": "object"},
            "example": {},
        }
    ),
    "Queue": fields_of(
        {
            "name": {"type": "string"},
            "paused": {"type": "boolean"},
            **dict.fromkeys(("waiting", "scheduled", "queued", "running", "retrying"), _COUNT),
            "oldest_age": {"type": ["number", "null"], "description": "seconds"},
        }
    ),
    "Worker": fields_of(
        {
            "id": {"type": "string"},
            "host": {"type": "string"},
            "pid": _COUNT,
            "queues": _STRINGS,
            "concurrency": _COUNT,
            "running": {**_STRINGS, "description": "job ids"},
            "started_at": _TIME,
            "last_seen": _TIME,
            "version": {"type": "string"},
            "draining": {"type": "boolean"},
        }
    ),
    "JobList": fields_of(
        {
            "items": {"type": "array", "items": ref("Job")},
            "next_cursor": {"type": ["string", "null"]},
        },
    ),
    "Health": fields_of(
        {
            "status": {"const": "ok"},
            "checks": {"type": "object"},
            "ledger": {"type": ["object", "null"]},
        },
        "checks",
        "ledger",
    ),
}
