"""The SQLite client: a failed or cancelled opening leaves neither a lock nor a thread behind."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tortoise.connection import get_connections
from tortoise.context import TortoiseContext

from tandem_shared.errors import Unavailable
from tandem_shared.ledger.database import Database
from tandem_shared.sqlite import SQLiteClient


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[SQLiteClient]:
    """A client whose file can be opened only once its directory exists."""
    config = {
        "connections": {
            "shop": {
                "engine": "tandem_shared.sqlite",
                "credentials": {"file_path": str(tmp_path / "a" / "db")},
            }
        },
        "apps": {
            "tandem": {"models": ["tandem_shared.ledger.models"], "default_connection": "shop"}
        },
    }
    with TortoiseContext() as context:
        await context.init(config=config)
        connection = get_connections().get("shop")
        assert isinstance(connection, SQLiteClient)
        yield connection
        await context.close_connections()


async def test_a_client_recovers_from_a_file_that_could_not_be_opened(client: SQLiteClient) -> None:
    for _ in range(2):
        with pytest.raises(Exception, match="unable to open"):
            await client.execute_query("SELECT 1")
        with pytest.raises(Exception, match="unable to open"):
            async with client._in_transaction():
                pass
    Path(client.filename).parent.mkdir()
    async with asyncio.timeout(10), client._in_transaction() as connection:
        await connection.execute_query("SELECT 1")


async def test_a_cancelled_begin_releases_the_lock(
    client: SQLiteClient,
) -> None:
    Path(client.filename).parent.mkdir()
    async with client._in_transaction() as first:
        await first.execute_query("CREATE TABLE t (a)")

    async def insert() -> None:
        async with client._in_transaction() as connection:
            await connection.execute_query("INSERT INTO t VALUES (1)")

    for turns in range(12):
        task = asyncio.create_task(insert())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(10):
        await insert()


def test_a_cancelled_opening_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: errors.append(args.exc_value))
    before = set(threading.enumerate())

    async def cancelled(number: int, turns: int) -> None:
        database = Database(f"sqlite://{tmp_path}/{number}.db")
        opening = asyncio.create_task(database.open())
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await database.close()

    for number in range(20):
        asyncio.run(cancelled(number, number))
        assert set(threading.enumerate()) <= before
    assert errors == []


async def test_a_ledger_on_a_directory_is_unavailable_every_time(tmp_path: Path) -> None:
    database = Database(f"sqlite://{tmp_path}")
    for _ in range(2):
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable):
                await database.open()
    await database.close()


async def test_a_file_whose_opener_was_cancelled_is_closed(tmp_path: Path) -> None:
    opened: list[sqlite3.Connection] = []
    loop = asyncio.get_running_loop()

    class CancelledClient(SQLiteClient):
        def connect(self) -> sqlite3.Connection:
            opened.append(super().connect())
            loop.call_soon_threadsafe(opening.cancel)  # before the loop learns of the connection
            return opened[0]

    client = CancelledClient(str(tmp_path / "db"), connection_name="shop")
    opening = asyncio.create_task(client.create_connection(with_db=True))
    with pytest.raises(asyncio.CancelledError):
        await opening
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")
