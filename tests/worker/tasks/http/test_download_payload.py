"""What `http.download` takes: its schema and its model refuse and accept the same."""

from typing import Any

import jsonschema_rs
import pytest
from pydantic import ValidationError

from tandem_worker.task import task_of
from tandem_worker.tasks.http.download import download as http_download

TASK = task_of(http_download)
SCHEMA = jsonschema_rs.validator_for(TASK.entry.payload_schema)
URL = "https://example.org/"
REFUSED: list[dict[str, Any]] = [
    {},
    {"url": "ftp://example.org/"},
    {"url": URL, "unknown": 1},
    {"url": URL, "name": ""},
    {"url": URL, "name": "/etc/passwd"},
    {"url": URL, "name": "a/../b"},
    {"url": URL, "name": ".."},
    {"url": URL, "name": "a//b"},
    {"url": URL, "name": "a/"},
    {"url": URL, "name": "a\\b"},
    {"url": URL, "name": "a\u0000"},
    {"url": URL, "sha256": "abc"},
    {"url": URL, "max_bytes": -1},
    {"url": URL, "max_bytes": 1 << 50},
    {"url": URL, "headers": {"Host": "x"}},
    {"url": URL, "headers": {"range": "bytes=0-"}},
    {"url": URL, "headers": {"If-Range": '"x"'}},
]


@pytest.mark.parametrize("payload", REFUSED)
def test_the_schema_and_the_worker_refuse_the_same(payload: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid(payload)
    with pytest.raises(ValidationError):
        TASK.signature.payload.validate_python(payload)


@pytest.mark.parametrize(
    "payload",
    [
        {
            "url": URL,
            "name": "a/b..c/.d",
            "headers": {"Authorization": "x"},
            "sha256": "aB" * 32,
            "max_bytes": 0,
        },
        {"url": URL, "name": None, "headers": None, "sha256": None},
    ],
)
def test_the_schema_and_the_worker_accept_the_same(payload: dict[str, Any]) -> None:
    SCHEMA.validate(payload)
    TASK.signature.payload.validate_python(payload)
