"""/openapi.json as generators of clients read it: rules that each of them fails without."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tandem_api.openapi.tidy import ecma_pattern, tidy
from tandem_shared.catalogue import CatalogueEntry
from tandem_worker.loader import load_tasks
from tests.api.fake_worker import FakeWorker

NODE = shutil.which("node")
MAPS = ("properties", "patternProperties", "$defs")
DATA = ("example", "examples", "default", "enum", "const", "required", "value")
GREET = CatalogueEntry(
    name="greet",
    summary="Say hello.",
    payload_schema={"title": "Payload", "type": "object", "properties": {"title": {"title": "T"}}},
    result_schema={},
    defaults={},
    example={"title": "Doctor"},
)


@pytest.fixture
async def document(client: httpx2.AsyncClient, worker: FakeWorker) -> dict[str, Any]:
    """The document with all built-in tasks, and one of a user."""
    await worker.publish(*(one.entry for one in load_tasks(()).values()), GREET)
    found: dict[str, Any] = (await client.get("/openapi.json")).json()
    return found


def schemas(value: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema below a schema, with its place."""
    if not isinstance(value, dict):
        return
    yield place, value
    for key, inner in value.items():
        if key in MAPS:
            for name, one in inner.items():
                yield from schemas(one, f"{place}/{key}/{name}")
        elif key not in DATA:
            for number, one in enumerate(inner if isinstance(inner, list) else [inner]):
                yield from schemas(one, f"{place}/{key}/{number}")


def all_schemas(document: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of the document, with its place."""
    if isinstance(document, list):
        for number, one in enumerate(document):
            yield from all_schemas(one, f"{place}/{number}")
    elif isinstance(document, dict):
        for key, one in document.items():
            if key == "schema":
                yield from schemas(one, f"{place}/schema")
            elif key == "schemas":
                for name, schema in one.items():
                    yield from schemas(schema, f"{place}/{name}")
            elif key not in DATA:
                yield from all_schemas(one, f"{place}/{key}")


async def test_no_schema_has_what_generators_stumble_over(document: dict[str, Any]) -> None:
    wrong = []
    for place, schema in all_schemas(document):
        types = schema.get("type")
        names = types if isinstance(types, list) else [types]
        if "title" in schema:
            wrong.append((place, "a title names a class, and two may be equal"))
        if types == "null" and re.search(r"/properties/[^/]+$", place):
            wrong.append((place, "a field that is only null has no type in most languages"))
        if types is None and ("enum" in schema or "const" in schema):
            wrong.append((place, "an enum without a type"))
        large = "integer" in names and schema.get("maximum", 2**63) >= 2**31
        if large and schema.get("format") != "int64":
            wrong.append((place, "an integer that may exceed 32 bits"))
        if "array" in names and "items" not in schema:
            wrong.append((place, "an array without items"))
        if schema.get("default") is not None and ("anyOf" in schema or "oneOf" in schema):
            wrong.append((place, "a default of one alternative"))
        if '"' in schema.get("pattern", ""):
            wrong.append((place, "a quote in a pattern ends a literal"))
    assert wrong == []
    components = document["components"]["schemas"]
    assert components["Options"]["type"] == "object"
    assert "callback" not in components["Options"]["properties"]
    assert {"Job", "JobAttempt", "JobFile", "JobProgress", "JobLinks", "JobRequest"} <= set(
        components
    )
    assert not {name for name in components if f"New{name}" in components}, "Go: func NewX"
    streams = document["paths"]["/v1/jobs/{id}/stream"]["get"]["responses"]["200"]["content"]
    assert streams.pop("text/event-stream")["schema"] == {}, "each event, or the whole?"
    assert {one["schema"]["type"] for one in streams.values()} == {"string"}


@pytest.mark.skipif(NODE is None, reason="needs Node.js")
async def test_every_pattern_is_one_of_ecma_262(document: dict[str, Any]) -> None:
    patterns = {schema["pattern"] for _, schema in all_schemas(document) if "pattern" in schema}
    assert len(patterns) > 20
    script = (
        "const all = JSON.parse(require('fs').readFileSync(0));"
        "for (const p of all) { try { new RegExp(p, 'u') } catch (e) { console.log(e.message) } }"
    )
    done = subprocess.run(
        [str(NODE), "-e", script],
        input=json.dumps(sorted(patterns)),
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""


async def test_examples_are_found_by_the_name_of_their_task(document: dict[str, Any]) -> None:
    content = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    examples = content["examples"]
    assert next(iter(examples)) == "http.request"
    assert examples["greet"]["summary"] == "greet: Say hello."
    assert examples["greet"]["value"] == {"task": "greet", "payload": {"title": "Doctor"}}
    assert all(one["summary"].startswith(name) for name, one in examples.items())
    assert list(document["components"]["schemas"]["greet.payload"]["properties"]) == ["title"]


async def test_every_operation_has_a_sentence(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert " " in operation["summary"], (method, path)
            words = re.sub(r"(?=[A-Z])", " ", operation["operationId"]).title()
            assert operation["summary"] != words, (method, path)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"^[\w.\"-]+\@\Z", r"^[\w.\u0022-]+@$"),
        (r"\A(?P<name>a)\-[\-\]]", r"^(?<name>a)-[\-\]]"),
        (r"[^\"]\d\u0041\.\/", r"[^\u0022]\d\u0041\.\/"),
        ("\\", "\\"),
    ],
)
def test_patterns_of_python_become_patterns_of_ecma_262(pattern: str, expected: str) -> None:
    assert ecma_pattern(pattern) == expected


def test_data_is_not_taken_for_a_schema() -> None:
    schema = {
        "enum": [{"title": "x"}],
        "default": {"pattern": '"'},
        "properties": {"title": {"const": 1, "title": "Title"}, "pattern": {"type": "null"}},
    }
    assert tidy(schema) == {
        "type": "object",
        "enum": [{"title": "x"}],
        "default": {"pattern": '"'},
        "properties": {"title": {"const": 1, "type": "integer", "format": "int64"}},
    }
