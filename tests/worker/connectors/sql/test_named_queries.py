"""Queries that the operator declares by name, and connections that only run these."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from pydantic import ValidationError

from tandem_shared.errors import Misconfigured
from tandem_shared.settings import Settings
from tandem_worker.connectors.sql.connections import open_sql
from tandem_worker.errors import TaskError
from tandem_worker.task import task_of
from tandem_worker.tasks.sql.execute import execute as sql_execute
from tandem_worker.tasks.sql.export import export as sql_export
from tandem_worker.tasks.sql.query import SqlQuery
from tandem_worker.tasks.sql.query import query as sql_query
from tests.worker.bench import Bench, open_bench

FILE = """
[queries.cities]
connection = "Main"
sql = "SELECT :name AS name, :people AS people, :since AS since"
params = { name = "text", people = "integer", since = "date" }

[queries.one]
connection = "main"
sql = "SELECT 1 AS one"
"""
PARAMS = {"name": "Oslo", "people": 709037, "since": "2026-01-01"}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    (tmp_path / "queries.toml").write_text(FILE)
    url = f"sqlite://{tmp_path}/a.db?mode=rw"
    connections = {"main": f"{url}&raw=off", "open": url}
    async with open_bench(tmp_path, sql=connections, queries=f"{tmp_path}/queries.toml") as opened:
        yield opened


async def failure(bench: Bench, task: Any, payload: Any) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await bench.run(task, payload)
    assert not caught.value.retryable
    return caught.value


async def test_a_named_query_runs_and_exports(bench: Bench) -> None:
    result = await bench.run(sql_query, {"query": "cities", "params": PARAMS, "as": "result"})
    assert result["rows"] == [PARAMS]
    await bench.run(sql_export, {"query": "cities", "params": PARAMS, "format": "csv"}, stamp=1)
    data = await bench.resources.files.load("jobs/job/1/export.csv", 1 << 20)
    assert data == b"name,people,since\nOslo,709037,2026-01-01\n"
    assert (await bench.run(sql_query, {"query": "one", "connection": "MAIN"}))["row_count"] == 1


@pytest.mark.parametrize(
    "params",
    [
        None,
        [1],
        {**PARAMS, "more": 1},
        {"name": "Oslo", "people": 1},
        {**PARAMS, "people": "1"},
        {**PARAMS, "people": True},
        {**PARAMS, "people": 1.5},
        {**PARAMS, "name": 1},
        {**PARAMS, "since": "yesterday"},
        {**PARAMS, "since": 1},
    ],
)
async def test_params_must_match_the_declared_ones(bench: Bench, params: Any) -> None:
    assert (
        await failure(bench, sql_query, {"query": "cities", "params": params})
    ).type == "invalid_params"


async def test_an_unknown_query_or_another_connection_is_refused(bench: Bench) -> None:
    assert (await failure(bench, sql_query, {"query": "none"})).type == "unknown_query"
    assert (
        await failure(bench, sql_query, {"query": "one", "connection": "open"})
    ).type == "unknown_query"


async def test_a_connection_with_raw_off_only_runs_named_queries(bench: Bench) -> None:
    raw = {"connection": "main", "sql": "SELECT 1 AS a"}
    assert (await failure(bench, sql_query, raw)).type == "raw_sql_off"
    assert (await failure(bench, sql_export, {**raw, "format": "csv"})).type == "raw_sql_off"
    statements = {"connection": "main", "statements": [{"sql": "CREATE TABLE a (b)"}]}
    assert (await failure(bench, sql_execute, statements)).type == "raw_sql_off"
    assert (await bench.run(sql_query, {**raw, "connection": "open"}))["row_count"] == 1


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"connection": "main"},
        {"sql": "SELECT 1"},
        {"connection": "main", "sql": "SELECT 1", "query": "one"},
        {"sql": "SELECT 1", "query": "one"},
        {"connection": "main", "query": ""},
    ],
)
def test_invalid_payloads_are_refused_by_model_and_schema(payload: Any) -> None:
    schema = jsonschema_rs.validator_for(task_of(sql_query).entry.payload_schema)
    assert schema.is_valid({"query": "one", "sql": None})
    assert not schema.is_valid(payload)
    SqlQuery.model_validate({"query": "one", "sql": None})
    with pytest.raises(ValidationError):
        SqlQuery.model_validate(payload)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("queries = 1", "object"),
        ("[queries", "queries"),
        ('[queries.a]\nconnection = "main"', "sql"),
        ('[queries.a]\nconnection = "main"\nsql = "SELECT 1"\nmore = 1', "more"),
        (
            '[queries.a]\nconnection = "other"\nsql = "SELECT 1"',
            "queries.a: the settings have no connection 'other'",
        ),
        ('[queries.a]\nconnection = "main"\nsql = "SELECT :b"', ":b"),
        ('[queries.a]\nconnection = "main"\nsql = "SELECT 1; SELECT 2"', "one statement"),
        ('[queries.a]\nconnection = "main"\nsql = "SELECT :b"\nparams = {b = "txt"}', "'txt'"),
        (None, "No such file"),
    ],
)
async def test_an_invalid_file_stops_the_start(
    tmp_path: Path, text: str | None, words: str
) -> None:
    path = tmp_path / "queries.toml"
    if text is not None:
        path.write_text(text)
    settings = Settings(sql={"main": f"sqlite://{tmp_path}/a.db"}, queries=str(path))
    with pytest.raises(Misconfigured) as caught:
        async with open_sql(settings):
            pass
    assert str(caught.value).startswith("TANDEM_QUERIES: ")
    assert words in str(caught.value)


async def test_an_invalid_option_in_a_url_stops_the_start() -> None:
    with pytest.raises(
        Misconfigured, match=r"TANDEM_SQL__MAIN: raw='.*' is not valid; use on or off"
    ):
        async with open_sql(Settings(sql={"main": "sqlite://a.db?raw=no"})):
            pass
