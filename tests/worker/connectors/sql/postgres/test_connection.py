"""`sql.query` on PostgreSQL: sessions, transactions, types and failures of a server."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from tandem_worker.errors import TaskError
from tandem_worker.tasks.sql.query import query as sql_query
from tests.chaos.relay import Relay
from tests.conftest import eventually
from tests.worker.bench import Bench, open_bench

SLEEP = "SELECT pg_sleep(600)"


@pytest.fixture
async def bench(postgres: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(
        tmp_path, sql={"main": f"{postgres}?maxsize=1", "writable": f"{postgres}?mode=rw"}
    ) as opened:
        yield opened


@pytest.fixture
async def server(postgres: str) -> AsyncIterator[Any]:
    """The test's own connection to the database."""
    connection = await asyncpg.connect(postgres)
    yield connection
    await connection.close()


async def query(
    bench: Bench, text: str, params: Any = None, connection: str = "main", **job: Any
) -> Any:
    payload = {"connection": connection, "sql": text, "params": params, "as": "result"}
    return (await bench.run(sql_query, payload, **job))["rows"]


async def failure(
    bench: Bench, text: str, params: Any = None, connection: str = "main", **job: Any
) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await query(bench, text, params, connection, **job)
    return caught.value


@asynccontextmanager
async def running(server: Any, work: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """The query as a task, once the server runs it."""
    task = asyncio.create_task(work)

    async def active() -> bool:
        return bool(await sleeping(server))

    await eventually(active)
    yield task


async def sleeping(server: Any) -> int:
    """The number of backends that run our statement."""
    text = "SELECT count(*) FROM pg_stat_activity WHERE query = $1 AND state = 'active'"
    count: int = await server.fetchval(text, SLEEP)
    return count


@pytest.mark.parametrize("word", ["BEGIN", "COMMIT"])
async def test_a_job_cancelled_during_begin_or_commit_leaves_no_transaction_behind(
    postgres: str, tmp_path: Path, word: str
) -> None:
    """The server's transaction ends with its connection, so the next job does not inherit it."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    parts = urlsplit(postgres)
    relay = Relay(lambda: asyncio.open_connection(parts.hostname, parts.port))
    await relay.start()
    url = postgres.replace(f":{parts.port}/", f":{relay.port}/")
    try:
        async with open_bench(tmp_path, sql={"main": f"{url}?mode=rw&maxsize=1"}) as bench:
            await query(bench, "SELECT 1")
            connection = bench.resources.sql("main")

            async def work() -> None:
                async with connection.transaction(timeout=30) as transaction:
                    await transaction.execute("CREATE TABLE once (key text)")
                    if word == "COMMIT":
                        relay.stall()

            if word == "BEGIN":
                relay.stall()
            task = asyncio.create_task(work())
            await eventually(lambda: relay.held)
            task.cancel()
            relay.flow()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await query(bench, "SELECT 1 AS one") == [{"one": 1}]
    finally:
        await relay.close()
    assert complaints == []


async def test_a_cancelled_job_cancels_its_statement_on_the_server(
    bench: Bench, server: Any
) -> None:
    async with running(server, query(bench, SLEEP)) as task:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def idle() -> bool:
        return await sleeping(server) == 0

    await eventually(idle)
    assert await query(bench, "SELECT 1 AS a") == [{"a": 1}]


async def test_a_statement_stops_at_the_jobs_deadline(bench: Bench, server: Any) -> None:
    error = await failure(bench, SLEEP, deadline=time.monotonic())
    assert (error.type, error.retryable) == ("timeout", True)
    assert await sleeping(server) == 0


@pytest.mark.parametrize(
    "text",
    [
        "SET TRANSACTION READ WRITE",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        "SET default_transaction_read_only = off",
        "SELECT set_config('transaction_read_only', 'off', false)",
        "SELECT set_config('transaction_read_only', 'off', true)",
        "COPY (SELECT 1) TO PROGRAM 'cat > /tmp/out'",
        "COPY notes FROM PROGRAM 'echo 1'",
        "COPY notes TO STDOUT",
        "DO $$ BEGIN DELETE FROM notes; END $$",
        "CALL forget()",
        "SELECT forget_function()",
        "EXPLAIN ANALYZE DELETE FROM notes",
        "WITH gone AS (DELETE FROM notes RETURNING 1) SELECT * FROM gone",
        "SELECT nextval('numbers')",
        "SELECT * INTO copied FROM notes",
        "PREPARE sneaky AS DELETE FROM notes",
        "LISTEN news",
        "NOTIFY news",
        "LOCK TABLE notes IN EXCLUSIVE MODE",
        "SELECT 1 FROM notes FOR UPDATE",
        "TRUNCATE notes",
        "GRANT ALL ON notes TO PUBLIC",
        "CREATE DATABASE other",
        "ALTER SYSTEM SET work_mem = '1GB'",
    ],
)
async def test_no_statement_escapes_the_read_only_transaction(
    bench: Bench, server: Any, text: str
) -> None:
    await server.execute(
        "CREATE TABLE notes (a int); INSERT INTO notes VALUES (1); CREATE SEQUENCE numbers;"
        " CREATE PROCEDURE forget() LANGUAGE sql AS 'DELETE FROM notes';"
        " CREATE FUNCTION forget_function() RETURNS int LANGUAGE sql"
        " AS 'DELETE FROM notes RETURNING 1'"
    )
    error = await failure(bench, text)
    assert (error.type, error.retryable) == ("sql_error", False)
    assert await server.fetchval("SELECT count(*) FROM notes") == 1
    assert await query(bench, "SELECT current_setting('transaction_read_only') AS only") == [
        {"only": "on"}
    ]


async def test_writes_of_functions_are_rolled_back(bench: Bench, server: Any) -> None:
    await query(bench, "SELECT lo_create(0)")
    assert await server.fetchval("SELECT count(*) FROM pg_largeobject_metadata") == 0


async def test_a_session_keeps_nothing_of_the_previous_job(bench: Bench, server: Any) -> None:
    before = await query(
        bench, "SELECT pg_backend_pid() AS pid, current_setting('work_mem') AS memory"
    )
    await query(
        bench, "SELECT set_config('work_mem', '77MB', false), pg_advisory_lock(1) IS NULL AS locked"
    )
    await query(bench, "SELECT set_config('app.secret', 'mine', false)")
    assert (
        await query(bench, "SELECT pg_backend_pid() AS pid, current_setting('work_mem') AS memory")
        == before
    )
    assert await query(bench, "SELECT coalesce(current_setting('app.secret', true), '') AS a") == [
        {"a": ""}
    ]
    assert await server.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def test_a_failed_commit_is_an_error(bench: Bench, server: Any) -> None:
    await server.execute(
        "CREATE TABLE notes (a int UNIQUE DEFERRABLE INITIALLY DEFERRED);"
        " INSERT INTO notes VALUES (1)"
    )
    error = await failure(bench, "INSERT INTO notes VALUES (1) RETURNING a", connection="writable")
    assert (error.type, error.retryable) == ("sql_error", False)
    assert "unique" in error.message
    assert await server.fetchval("SELECT count(*) FROM notes") == 1


async def test_exceptions_in_the_block_are_not_converted(bench: Bench, server: Any) -> None:
    await server.execute("CREATE TABLE notes (a int)")
    with pytest.raises(FileNotFoundError):
        async with bench.resources.sql("writable").query(
            "INSERT INTO notes VALUES (1) RETURNING a", timeout=5
        ):
            raise FileNotFoundError("mine")
    assert await server.fetchval("SELECT count(*) FROM notes") == 0


async def test_values_of_every_type_in_json(bench: Bench) -> None:
    text = """SELECT 9223372036854775807::int8 AS big, 0.1::float8 AS real, 'NaN'::float8 AS nan,
        '-Infinity'::float8 AS low, 123456789012345678901234567890.5::numeric AS decimal,
        true AS yes, NULL::int AS none,
        '2026-01-02 03:04:05.678'::timestamp AS local,
        '2026-01-02 03:04:05+02'::timestamptz AS moment,
        'infinity'::timestamptz AS never, '2026-01-02'::date AS day, '03:04:05'::time AS hour,
        '1 mon 2 days 03:00'::interval AS span, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS id,
        '\\x00ff'::bytea AS bytes, '{"a": [1, null]}'::jsonb AS document, '"text"'::json AS word,
        ARRAY[[1, 2], [3, NULL]] AS numbers, ARRAY['NaN'::float8] AS nans,
        '10.0.0.0/8'::inet AS network, int4range(1, 5) AS range, B'101' AS bits,
        '(1,2)'::point AS point, ROW(1, 'x') AS pair, 'ä'::text AS text"""
    assert (await query(bench, text))[0] == {
        "big": 9223372036854775807,
        "real": 0.1,
        "nan": "NaN",
        "low": "-Infinity",
        "decimal": "123456789012345678901234567890.5",
        "yes": True,
        "none": None,
        "local": "2026-01-02T03:04:05.678000",
        "moment": "2026-01-02T01:04:05Z",
        "never": "infinity",
        "day": "2026-01-02",
        "hour": "03:04:05",
        "span": "P1M2DT3H",
        "id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "bytes": "AP8=",
        "document": {"a": [1, None]},
        "word": "text",
        "numbers": [[1, 2], [3, None]],
        "nans": ["NaN"],
        "network": "10.0.0.0/8",
        "range": {"isempty": False, "lower": 1, "upper": 5, "lower_inc": True, "upper_inc": False},
        "bits": "101",
        "point": [1.0, 2.0],
        "pair": [1, "x"],
        "text": "ä",
    }


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        ("int8", 2**53 + 1, 2**53 + 1),
        ("numeric", "19.90", "19.90"),
        ("numeric", 3, "3"),
        ("float8", 1, 1.0),
        ("text", "ä", "ä"),
        ("bool", True, True),
        ("timestamptz", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ("timestamp", "2026-01-02T03:04:05", "2026-01-02T03:04:05"),
        ("date", "2026-01-02", "2026-01-02"),
        ("time", "03:04:05", "03:04:05"),
        ("interval", "90 minutes", "PT1H30M"),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("bytea", "AP8=", "AP8="),
        ("jsonb", {"a": [1]}, {"a": [1]}),
        ("jsonb", '{"a": 1}', {"a": 1}),
        ("int4[]", [1, None, 2], [1, None, 2]),
        ("date[]", ["2026-01-02"], ["2026-01-02"]),
        ("inet", "10.0.0.1", "10.0.0.1"),
        ("text", None, None),
    ],
)
async def test_values_survive_the_round_trip(
    bench: Bench, type_: str, value: Any, expected: Any
) -> None:
    assert await query(bench, f"SELECT :value::{type_} AS value", {"value": value}) == [
        {"value": expected}
    ]


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("int4", "secret"),
        ("int4", 2**40),
        ("date", "secret"),
        ("bytea", "§secret"),
        ("uuid", "secret"),
        ("text", 5),
    ],
)
async def test_errors_do_not_quote_values(bench: Bench, type_: str, value: Any) -> None:
    error = await failure(bench, f"SELECT $1::{type_} AS value", [value])
    assert (error.type, error.retryable) == ("sql_error", False)
    assert "$1" in error.message
    assert "secret" not in error.message


async def test_a_broken_connection_is_retryable(bench: Bench, server: Any) -> None:
    async with running(server, query(bench, SLEEP)) as task:
        await server.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = $1", SLEEP
        )
        with pytest.raises(TaskError) as caught:
            await task
    assert (caught.value.type, caught.value.retryable) == ("sql_connection", True)
    assert await query(bench, "SELECT 1 AS a") == [{"a": 1}]


@pytest.mark.parametrize(
    ("state", "retryable"),
    [("40001", True), ("40P01", True), ("55P03", True), ("53200", True), ("P0001", False)],
)
async def test_transient_errors_are_retryable(
    bench: Bench, server: Any, state: str, retryable: bool
) -> None:
    await server.execute(
        "CREATE FUNCTION fail() RETURNS int LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION 'it failed' USING ERRCODE = '{state}', DETAIL = 'more'; END $$"
    )
    error = await failure(bench, "SELECT fail()")
    assert (error.type, error.retryable, error.message) == ("sql_error", retryable, "it failed")


async def test_errors_name_a_server_only_by_its_connection(postgres: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parts = urlsplit(postgres)
    urls = {
        "absent": f"postgres://someone:hunter2@127.0.0.1:{port}/db",
        "password": f"postgres://postgres:hunter2@127.0.0.1:{parts.port}{parts.path}",
        "database": postgres.rpartition("/")[0] + "/nowhere",
    }
    async with open_bench(tmp_path, sql=urls) as bench:
        for name in urls:
            error = await failure(bench, "SELECT 1", connection=name)
            assert (error.type, error.retryable) == ("sql_connection", name == "absent")
            assert repr(name) in error.message
            for secret in ("hunter2", "someone", "127.0.0.1", "nowhere"):
                assert secret not in error.message


async def test_unix_sockets_and_every_scheme_work(
    postgres: str, server: Any, tmp_path: Path
) -> None:
    directory = str(await server.fetchval("SHOW unix_socket_directories")).partition(",")[0]
    parts = urlsplit(postgres)
    rest = f"postgres:{parts.password}@{{}}{parts.path}?port={parts.port}&host={directory}&mode=ro"
    urls = {
        scheme: f"{scheme}://{rest.format('')}" for scheme in ("postgres", "postgresql", "asyncpg")
    }
    async with open_bench(tmp_path, sql={**urls, "tls": f"{postgres}?sslmode=disable"}) as bench:
        for name in urls:
            assert await query(bench, "SELECT inet_server_addr() AS a", connection=name) == [
                {"a": None}
            ]
        assert (await query(bench, "SELECT inet_server_addr() AS a", connection="tls"))[0][
            "a"
        ].startswith("127.")
