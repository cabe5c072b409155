"""Two workers that share PostgreSQL's sessions, as behind a pooler in transaction mode."""

import os
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tandem_shared.dev.servers import LocalServer, free_port, is_answering
from tandem_worker.tasks.sql.execute import execute as sql_execute
from tandem_worker.tasks.sql.export import export as sql_export
from tandem_worker.tasks.sql.imports import import_ as sql_import
from tandem_worker.tasks.sql.query import query as sql_query
from tests.conftest import eventually, started
from tests.faithful.psql import odd_role, psql
from tests.postgres import SSL_REQUEST, unprivileged_user
from tests.worker.bench import Bench, open_bench

# pgbouncer itself if it is installed; without it, sessions of the workers' own.
POOLERS = ["none", "pgbouncer"] if shutil.which("pgbouncer") else ["none"]


def _pgbouncer(url: str, directory: Path) -> LocalServer:
    """One session of the server for all clients, given to each for one transaction."""
    parts, port = urlsplit(url), free_port()
    settings = directory / "pgbouncer.ini"
    settings.write_text(
        "[databases]\n"
        f"* = host={parts.hostname} port={parts.port} user={parts.username}"
        f" password={parts.password}\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 1\n"
    )
    user = ("-u", unprivileged_user()) if os.geteuid() == 0 else ()

    async def ready() -> bool:
        return await is_answering("127.0.0.1", port, SSL_REQUEST, b"")

    address = f"postgres://{parts.username}@127.0.0.1:{port}{parts.path}"
    return LocalServer("pgbouncer", ("pgbouncer", *user, str(settings)), address, ready)


@pytest.fixture(params=POOLERS)
async def url(
    request: pytest.FixtureRequest, postgres: str, server_data: Path
) -> AsyncIterator[str]:
    """The database for a role that has other settings than the workers need."""
    direct = odd_role(postgres)
    if request.param == "none":
        yield f"{direct}?mode=rw&maxsize=1"
        return
    server = _pgbouncer(direct, server_data)
    with started(server):
        await eventually(server.ready)
        yield f"{server.url}?mode=rw"


async def _work(bench: Bench, number: int) -> None:
    """Every kind of statement, with parameters."""
    params = ["2026-01-01T00:00:00", "P1DT2H", ["NULL", None], "AP8=", 0.1]
    sql = "SELECT $1::timestamptz AS t, $2::interval AS i, $3::text[] AS a, $4::bytea AS b"
    query = {"connection": "pg", "sql": f"{sql}, $5::float8 + 0.2 AS f", "params": params}
    await bench.run(sql_query, query)
    assert bench.recorder.items.pop() == {
        "t": "2026-01-01T00:00:00Z",
        "i": "P1DT2H",
        "a": ["NULL", None],
        "b": "AP8=",
        "f": 0.30000000000000004,
    }
    insert = {"sql": "INSERT INTO t VALUES ($1, $2, $3)", "rows": [[number, params[0], "a<b/>"]]}
    id = secrets.token_hex(8)
    await bench.run(sql_execute, {"connection": "pg", "statements": [insert]}, id=id)
    export = {"connection": "pg", "sql": "SELECT * FROM t WHERE id = $1", "params": [number]}
    await bench.run(sql_export, {**export, "format": "csv"}, id=id, stamp=7)
    data = await bench.resources.files.load(f"jobs/{id}/7/export.csv", 1 << 20)
    source = {"file": await bench.upload("export.csv", data, "text/csv")}
    target = {"connection": "pg", "table": "t", "source": source, "mode": "upsert", "key": ["id"]}
    assert await bench.run(sql_import, target, id=id) == {"row_count": 1, "bad_count": 0}


async def test_workers_share_sessions_and_restart(url: str, postgres: str, tmp_path: Path) -> None:
    psql(postgres, "CREATE TABLE public.t (id int PRIMARY KEY, at timestamptz, x xml)")
    for start in (0, 2):
        async with AsyncExitStack() as stack:
            benches = [
                await stack.enter_async_context(open_bench(tmp_path / str(at), sql={"pg": url}))
                for at in range(2)
            ]
            for at, bench in enumerate(benches):
                await _work(bench, start + at)
            statements = "SELECT count(*) AS n FROM pg_prepared_statements"
            await benches[0].run(sql_query, {"connection": "pg", "sql": statements})
            assert benches[0].recorder.items.pop() == {"n": 0}
    rows = psql(postgres, "SELECT id, at, x FROM public.t ORDER BY id")
    assert rows == [[str(n), "2026-01-01 00:00:00+00", "a<b/>"] for n in range(4)]
