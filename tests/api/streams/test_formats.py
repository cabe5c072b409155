"""Stream formats and the texts of schema errors, as pure functions."""

from typing import Any

import msgspec
import pytest
from jsonschema_rs import Draft202012Validator
from starlette.exceptions import HTTPException

from tandem_api.streams.formats import CsvFormat, Truncated, negotiate
from tandem_api.validation.messages import explain, pointer
from tandem_shared.streams.reader import Position, StreamEntry

OUTPUT = frozenset({"output"})


@pytest.mark.parametrize(
    ("accept", "types", "media_type"),
    [
        ("", OUTPUT, "text/event-stream"),
        ("*/*", OUTPUT, "text/event-stream"),
        ("text/csv", OUTPUT, "text/csv"),
        ("text/csv, text/event-stream;q=0.9", OUTPUT, "text/csv"),
        ("text/csv, text/event-stream;q=0.9", frozenset({"output", "log"}), "text/event-stream"),
        ("APPLICATION/JSONL", OUTPUT, "application/jsonl"),
        ("application/*;q=0.2, text/*;q=0.1", OUTPUT, "application/x-ndjson"),
        ("text/event-stream;q=0, */*", OUTPUT, "application/x-ndjson"),
        ("text/html, application/xhtml+xml, */*;q=0.8", OUTPUT, "text/event-stream"),
        ("application/jsonl;q=x, text/csv", OUTPUT, "text/csv"),
    ],
)
def test_the_preferred_format_wins(accept: str, types: frozenset[str], media_type: str) -> None:
    assert negotiate(accept, types).media_type.partition(";")[0] == media_type


@pytest.mark.parametrize("accept", ["image/png", "text/csv", "*/*;q=0", "application/json"])
def test_an_unsatisfiable_accept_header_selects_no_format(accept: str) -> None:
    with pytest.raises(HTTPException) as refused:
        negotiate(accept, frozenset({"output", "end"}))
    assert refused.value.status_code == 406


def item(value: Any, *, attempt: int = 1, type: str = "output") -> StreamEntry:
    data = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return StreamEntry(Position(1, 0), type, attempt, data)


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([{"a": 1, "b": None}, {"b": 2}, {"c": 3, "a": ""}], "a,b\r\n1,\r\n,2\r\n,\r\n"),
        ([1, "x", None, [1, 2]], 'value\r\n1\r\nx\r\n""\r\n"[1,2]"\r\n'),
        ([{"a": 'say "x"'}, {"a": "l\r\nm"}], 'a\r\n"say ""x"""\r\n"l\r\nm"\r\n'),
        ([{"a": True}, 5], 'a\r\ntrue\r\n""\r\n'),
        ([b'{"a":1.10,"b":123456789012345678901234}'], "a,b\r\n1.10,123456789012345678901234\r\n"),
        ([{"ü": "é"}], "ü\r\né\r\n"),
    ],
)
def test_items_are_rows_under_the_keys_of_the_first_item(items: list[Any], text: str) -> None:
    table = CsvFormat()
    assert b"".join(table.write_entry(item(one)) for one in items).decode() == text


def test_a_table_ends_complete_or_is_cut_off() -> None:
    assert CsvFormat().write_entry(item({"state": "succeeded"}, type="end")) == b""
    for state in ("failed", "cancelled"):
        with pytest.raises(Truncated):
            CsvFormat().write_entry(item({"state": state}, type="end"))
    table = CsvFormat()
    table.write_entry(item({"a": 1}))
    with pytest.raises(Truncated):
        table.write_entry(item({"a": 1}, attempt=2))


def test_a_returned_state_does_not_pass_for_the_final_state() -> None:
    failed = b'{"id":"x","state":"failed","result":{"state":"succeeded"}}'
    with pytest.raises(Truncated):
        CsvFormat().write_entry(item(failed, type="end"))


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "x", [("", "must be an integer")]),
        (
            {"anyOf": [{"type": "integer"}, {"type": "string"}]},
            [],
            [("", "must be an integer or a string")],
        ),
        (
            {
                "oneOf": [
                    {"type": "object", "required": ["a"]},
                    {"type": "object", "required": ["b", "c"]},
                ]
            },
            {"b": 1},
            [("/a", "is required")],
        ),
        (
            {
                "anyOf": [
                    {"type": "null"},
                    {"properties": {"a": {"properties": {"b": {"minimum": 3}}}}},
                ]
            },
            {"a": {"b": 1}},
            [("/a/b", "must be at least 3")],
        ),
        (
            {"oneOf": [{"minimum": 1}, {"minimum": 2}]},
            3,
            [("", "matches more than one of the alternatives")],
        ),
        ({"items": False}, [1], [("/0", "is not valid")]),
        ({"not": {}}, 1, [("", "is not allowed")]),
        ({"pattern": "^a+$"}, "b", [("", "must match ^a+$")]),
        ({"enum": ["a", 1, None]}, "b", [("", "must be one of a, 1")]),
        ({"const": "x" * 500}, 1, [("", f"must be {'x' * 100}…")]),
        ({"type": "null"}, 1, [("", "must be null")]),
        ({"uniqueItems": True}, [1, 1], [("", "must not have an item twice")]),
    ],
)
def test_a_schema_error_is_a_sentence_with_a_pointer(
    schema: dict[str, Any], value: Any, expected: Any
) -> None:
    found = explain(Draft202012Validator(schema).iter_errors(value))
    assert [(at, text[: len(expected[0][1])]) for at, text in found] == expected


def test_a_pointer_escapes_slashes_and_tildes() -> None:
    assert pointer(["a/b", 0, "c~d", "ü"]) == "/a~1b/0/c~0d/ü"
