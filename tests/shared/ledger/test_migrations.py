"""A process that dies while it creates the ledger's tables stops nobody else from doing so."""

import asyncio
import sqlite3
import sys
from pathlib import Path
from signal import SIGKILL

from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.settings import load_settings

DIES = """
import asyncio, os, sqlite3, sys
from tandem_shared import sqlite
from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.settings import load_settings

connect = sqlite.SQLiteClient.connect
left = int(sys.argv[2])

def connect_traced(self):
    connection = connect(self)
    connection.set_trace_callback(count)
    return connection

def count(statement):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)

async def main():
    async with open_ledger(load_settings(database_url=sys.argv[1])) as ledger:
        await ledger.database.open()

sqlite.SQLiteClient.connect = connect_traced
asyncio.run(main())
"""


async def test_a_process_that_dies_in_a_migration_leaves_nothing_behind(tmp_path: Path) -> None:
    killed, number, code = 0, 0, -SIGKILL
    while code == -SIGKILL:
        number += 1  # statements, counting from the connection's first
        url = f"sqlite://{tmp_path}/{number}.db"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", DIES, url, str(number))
        code = await process.wait()
        killed += code == -SIGKILL
        async with open_ledger(load_settings(database_url=url)) as ledger:
            await ledger.database.open()
        with sqlite3.connect(tmp_path / f"{number}.db") as connection:
            names = "SELECT name FROM sqlite_master WHERE name LIKE 'tandem_%'"
            found = {name for (name,) in connection.execute(names)}
        connection.close()
        assert {"tandem_jobs", "tandem_tags", "tandem_jobs_state", "tandem_tags_job"} <= found
    assert (code, killed > 5) == (0, True)
