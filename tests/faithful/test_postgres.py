"""PostgreSQL's values through export and import: the tables are the same, as psql compares them."""

from collections.abc import AsyncIterator
from itertools import zip_longest
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pytest

from tandem_worker.errors import TaskError
from tandem_worker.tasks.sql.export import export as sql_export
from tandem_worker.tasks.sql.imports import import_ as sql_import
from tandem_worker.tasks.sql.query import query as sql_query
from tests.faithful.postgres_types import COMMON, FAR, NEARLY_VALUES, SCALARS, SETUP, columns
from tests.faithful.psql import odd_role, psql
from tests.worker.bench import Bench, open_bench


@pytest.fixture
async def bench(postgres: str, tmp_path: Path) -> AsyncIterator[Bench]:
    psql(postgres, SETUP)
    async with open_bench(tmp_path, sql={"pg": f"{odd_role(postgres)}?mode=rw"}) as opened:
        yield opened


def quoted(text: str | None) -> str:
    return "NULL" if text is None else "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def fill(url: str, values: dict[str, list[str | None]]) -> list[str]:
    """Two tables with a column for each type: `here` has the values, `there` is empty."""
    names = [f"c{number}" for number in range(len(values))]
    definitions = ", ".join(f"{name} {type_}" for name, type_ in zip(names, values, strict=True))
    rows = zip_longest(*values.values())
    tuples = ", ".join(f"({', '.join(map(quoted, row))})" for row in rows)
    psql(
        url,
        f"CREATE TABLE here ({definitions}); CREATE TABLE there ({definitions});"
        f" INSERT INTO here VALUES {tuples}",
    )
    return names


def differences(url: str, names: list[str], types: list[str], *, spelled: bool) -> list[Any]:
    """Values that are in one table only, compared as text; json is if `spelled`, else as jsonb."""
    found: list[Any] = []
    for name, type_ in zip(names, types, strict=True):
        json = type_.startswith("json") and not spelled
        cast = (
            f"::text::{type_.replace('json', 'jsonb', 1)}" if json and "jsonb" not in type_ else ""
        )
        for one, other in (("here", "there"), ("there", "here")):
            left, right = (f"SELECT {name}{cast}::text FROM {table}" for table in (one, other))
            found += [(type_, one, *row) for row in psql(url, f"{left} EXCEPT ALL {right}")]
    return found


@pytest.mark.parametrize("format", ["csv", "ndjson", "parquet"])
async def test_export_and_import_are_the_identity(bench: Bench, postgres: str, format: str) -> None:
    values = columns(far=format != "parquet", inside_json=format != "csv")
    names = fill(postgres, values)
    payload: dict[str, Any] = {"connection": "pg", "sql": "SELECT * FROM here", "format": format}
    await bench.run(sql_export, payload, stamp=7)
    name = f"export.{format}"
    data = await bench.resources.files.load(f"jobs/job/7/{name}", 1 << 30)
    source = {"file": await bench.upload(name, data, "application/octet-stream")}
    payload = {"connection": "pg", "table": "there", "source": source}
    result = await bench.run(sql_import, payload, id="import")
    assert result["bad_count"] == 0
    assert differences(postgres, names, list(values), spelled=format == "csv") == []


@pytest.mark.parametrize(
    ("type_", "value"), [(type_, value) for type_, values in FAR.items() for value in values]
)
async def test_parquet_refuses_what_its_times_cannot_hold(
    bench: Bench, type_: str, value: str
) -> None:
    sql = f"SELECT {quoted(value)}::{type_} AS odd"
    with pytest.raises(TaskError) as caught:
        await bench.run(sql_export, {"connection": "pg", "sql": sql, "format": "parquet"})
    assert (caught.value.type, caught.value.retryable) == ("sql_error", False)
    assert "'odd'" in caught.value.message


TRY = """CREATE FUNCTION try(literal text, type text) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE made text;
BEGIN
    EXECUTE format('SELECT (%L::%s)::text', literal, type) INTO made;
    RETURN ARRAY[made];
EXCEPTION WHEN others THEN RETURN NULL;
END $$"""


@pytest.mark.parametrize("type_", [*COMMON, *SCALARS])
async def test_a_parameter_is_what_psql_takes_as_a_literal(
    bench: Bench, postgres: str, type_: str
) -> None:
    edges = columns(far=True)
    tried = [(one, type_) for one in [*edges.get(type_, ()), *NEARLY_VALUES]]
    tried += [(one, f"{type_}[]") for one in edges.get(f"{type_}[]", ())]
    # Bytes are base64 in JSON, unless they start with \\x.
    pairs = [
        (one, name)
        for one, name in tried
        if one is not None and (name != "bytea" or one.startswith("\\x"))
    ]
    calls = ", ".join(f"try({quoted(one)}, {quoted(name)})" for one, name in pairs)
    [results] = psql(postgres, f"{TRY}; SELECT {calls}")
    taken = [pair for pair, result in zip(pairs, results, strict=True) if result is not None]
    texts = ", ".join(
        f"ARRAY[(${number}::{name})::text]::text AS v{number}"
        for number, (_, name) in enumerate(taken, 1)
    )
    params = [one for one, _ in taken]
    await bench.run(sql_query, {"connection": "pg", "sql": f"SELECT {texts}", "params": params})
    assert list(bench.recorder.items.pop().values()) == [one for one in results if one is not None]
    for one, name in [pair for pair in pairs if pair not in taken]:
        payload = {"connection": "pg", "sql": f"SELECT $1::{name} AS v", "params": [one]}
        with pytest.raises(TaskError) as caught:
            await bench.run(sql_query, payload)
        assert (caught.value.type, caught.value.retryable) == ("sql_error", False), (one, name)


@pytest.mark.parametrize(
    ("type_", "literal"),
    [
        ("int4", "2.9"),
        ("int4", "1e3"),
        ("int8", "9223372036854775808"),
        ("float8", "1e400"),
        ("float4", "1e39"),
        ("numeric(4,1)", "99999"),
        ("date", "2026-02-30"),
        ("time", "25:00"),
        ("bool", "maybe"),
        ("bit(3)", "102"),
        ("uuid", "x"),
        ("int4[]", "{1,2"),
        ("int4[]", "{1,2}}"),
        ("int4range", "[5,1)"),
        ("mood", "happy"),
        ("positive", "0"),
        ("jsonb", "{"),
        ("pair", "(1)"),
        ("inet", "10.0.0.1.1"),
    ],
)
async def test_what_psql_refuses_is_refused_at_once(
    bench: Bench, postgres: str, type_: str, literal: str
) -> None:
    with pytest.raises(CalledProcessError):
        psql(postgres, f"SELECT {quoted(literal)}::{type_}")
    payload = {"connection": "pg", "sql": f"SELECT $1::{type_} AS v", "params": [literal]}
    with pytest.raises(TaskError) as caught:
        await bench.run(sql_query, payload)
    assert (caught.value.type, caught.value.retryable) == ("sql_error", False)


@pytest.mark.parametrize("literal", ["r", "", "\\377", "é"])
async def test_a_byte_in_an_anonymous_record_is_as_psql_prints_it(
    bench: Bench, postgres: str, literal: str
) -> None:
    value = f'{quoted(literal)}::"char"'
    await bench.run(sql_query, {"connection": "pg", "sql": f"SELECT ROW({value}) AS v"})
    assert bench.recorder.items.pop() == {"v": [psql(postgres, f"SELECT {value}::text")[0][0]]}
