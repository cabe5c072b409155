"""The catalogue's entries of the built-in tasks: names, timeouts, schemas and examples."""

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

from tandem_shared.catalogue import CatalogueEntry
from tandem_worker.loader import load_tasks

ENTRIES = {name: one.entry for name, one in load_tasks([]).items()}
NAMES = """
    http.request http.download http.gather http.race http.webhook
    sql.query sql.execute sql.export sql.import
    mongo.find mongo.aggregate mongo.insert mongo.update mongo.delete mongo.export mongo.import
    file.hash file.convert file.archive file.extract file.concat file.split email.send
""".split()
LONG = ("sql.", "mongo.", "file.", "http.download", "http.gather")

each = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


def test_all_built_in_tasks_are_in_the_catalogue() -> None:
    assert sorted(ENTRIES) == sorted(NAMES)


@each
def test_the_timeout_is_ten_minutes_for_long_tasks_and_thirty_seconds_for_others(
    entry: CatalogueEntry,
) -> None:
    assert entry.defaults["timeout"] == (600 if entry.name.startswith(LONG) else 30)


@each
def test_every_example_fits_its_schema(entry: CatalogueEntry) -> None:
    Draft202012Validator(entry.payload_schema).validate(entry.example)


@each
def test_a_default_may_be_written_out(entry: CatalogueEntry) -> None:
    for schema in (entry.payload_schema, entry.result_schema):
        definitions = schema.get("$defs", {})
        for part in with_default(schema):
            Draft202012Validator({**part, "$defs": definitions}).validate(part["default"])


def with_default(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema inside this one that has a default."""
    if isinstance(schema, dict):
        for name, one in schema.get("properties", {}).items():
            if "default" in one:
                yield {"title": name, **one}
        for one in schema.values():
            yield from with_default(one)
    elif isinstance(schema, list):
        for one in schema:
            yield from with_default(one)
