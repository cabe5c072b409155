"""A schema that refuses with `not` is explained in words, without schema fragments."""

from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

from tandem_api.validation.messages import explain
from tandem_worker.loader import load_tasks

X = {"required": ["x"]}


def explained(schema: Any, value: Any) -> list[tuple[str, str]]:
    return explain(Draft202012Validator(schema).iter_errors(value), schema)


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"not": {**X, "description": "has no x in it"}}, {"x": 1}, ("", "has no x in it")),
        ({"allOf": [{"not": X, "description": "has no x"}]}, {"x": 1}, ("", "has no x")),
        (
            {"not": X, "type": "object", "description": "A thing."},
            {"x": 1},
            ("/x", "is not allowed"),
        ),
        ({"not": X}, {"x": 1}, ("/x", "is not allowed")),
        (
            {"not": {"required": ["a", "b/c"]}},
            {"a": 1, "b/c": 2},
            ("/b~1c", "is not allowed together with a"),
        ),
        ({"properties": {"a": {"not": X}}}, {"a": {"x": 1}}, ("/a/x", "is not allowed")),
        (
            {"not": {"maxProperties": 3}},
            {"x": 1},
            ("", "has a combination of fields that is not allowed"),
        ),
        ({"not": {"minLength": 3}}, "abc", ("", "is not allowed")),
        ({"not": True}, 1, ("", "is not allowed")),
        ({"not": {"const": 7}}, 7, ("", "must not be 7")),
        ({"not": {"enum": [7, 8]}}, 7, ("", "must not be one of 7, 8")),
        ({"not": {"type": "string"}}, "x", ("", "must not be a string")),
        ({"not": {"type": ["string", "null"]}}, "x", ("", "must not be a string")),
        ({"not": {"pattern": "^a"}}, "ab", ("", "must not match ^a")),
        ({"propertyNames": {"not": {"const": "x"}}}, {"x": 1}, ("/x", "must not be x")),
        (
            {"propertyNames": {"minLength": 2}},
            {"x": 1},
            ("", "has a field whose name must have at least 2 characters"),
        ),
        (
            {"allOf": [{"not": {"not": {"properties": {"x": {"type": "null"}}}}}]},
            {"x": 1},
            ("", "has a combination of fields that is not allowed"),
        ),
    ],
    ids=str,
)
def test_a_forbidden_shape_is_named(schema: Any, value: Any, expected: tuple[str, str]) -> None:
    assert explained(schema, value) == [expected]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"json": 1, "body": "x"}, ("", "give one of json, body and body_file")),
        (
            {"json": 1, "body": "x", "body_file": {"file": "f"}},
            ("", "give one of json, body and body_file"),
        ),
        (
            {"headers": {"Accept": "*/*", "Host": "x"}},
            ("/headers/Host", "cannot be set: it is for connections, proxies or metadata services"),
        ),
    ],
)
def test_http_request_is_refused_in_the_words_of_the_worker(
    more: dict[str, Any], expected: tuple[str, str]
) -> None:
    schema = load_tasks([])["http.request"].entry.payload_schema
    assert explained(schema, {"url": "https://example.org/", **more}) == [expected]
