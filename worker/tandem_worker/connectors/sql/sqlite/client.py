"""A guarded SQLite connection: SQLite asks our authorizer about every statement it compiles."""

import re
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite

from tandem_shared.sqlite import BUSY_TIMEOUT_SECONDS, SQLiteClient
from tandem_worker.connectors.sql.sqlite.functions import FUNCTIONS
from tandem_worker.connectors.sql.statements.rows import FIRST_CHUNK_ROWS
from tandem_worker.errors import Permanent, TaskError

MAX_VALUE_BYTES = 64 << 20  # `zeroblob(1e9)` would otherwise take that much memory

_READS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_RECURSIVE,
}
_WRITES = {
    sqlite3.SQLITE_INSERT: "INSERT",
    sqlite3.SQLITE_UPDATE: "UPDATE",
    sqlite3.SQLITE_DELETE: "DELETE",
}
_SCHEMA_CHANGES = {
    getattr(sqlite3, f"SQLITE_{verb}_{what}")
    for verb in ("CREATE", "DROP")
    for what in ("TABLE", "INDEX", "VIEW", "TRIGGER")
} | {sqlite3.SQLITE_ALTER_TABLE, sqlite3.SQLITE_REINDEX}
_HARMLESS_PRAGMAS = frozenset(
    "table_info table_xinfo table_list index_list index_info index_xinfo foreign_key_list".split()
)
# Harmless without a value; with one they write.
_READABLE_PRAGMAS = frozenset(
    "data_version user_version schema_version application_id encoding page_count page_size".split()
)
# SQLite declares a virtual table (json_each, fts5) with what looks like an update of its schema,
# which it does not let anybody really make; an rtree prepares writes to its own tables when it is
# read. If the file is opened read-only, such writes fail.
_INTERNAL_TABLES = re.compile(r"sqlite_(temp_)?(master|schema)|.*_(node|rowid|parent)")
_NAMES = (
    {
        getattr(sqlite3, name): name.removeprefix("SQLITE_").replace("_", " ")
        for name in dir(sqlite3)
        if name.startswith(("SQLITE_CREATE", "SQLITE_DROP", "SQLITE_ALTER"))
    }
    | _WRITES
    | {
        sqlite3.SQLITE_ATTACH: "ATTACH",
        sqlite3.SQLITE_DETACH: "DETACH",
        sqlite3.SQLITE_PRAGMA: "this PRAGMA",
        sqlite3.SQLITE_TRANSACTION: "transaction control",
        sqlite3.SQLITE_SAVEPOINT: "SAVEPOINT",
        sqlite3.SQLITE_REINDEX: "REINDEX",
        sqlite3.SQLITE_ANALYZE: "ANALYZE",
        sqlite3.SQLITE_FUNCTION: "this function",
    }
)


class GuardedClient(SQLiteClient):
    """Tortoise's client with the file opened by the connection's mode, and the authorizer set."""

    fetch_rows = FIRST_CHUNK_ROWS

    def __init__(self, name: str, credentials: Mapping[str, Any], *, writable: bool) -> None:
        super().__init__(connection_name=name, **credentials)
        self._writable = writable
        self._guarding = False
        self._may_define = False
        self._denied = ""
        if not writable:
            # A read-only connection cannot set how the database is written.
            self.pragmas = {
                name: value
                for name, value in self.pragmas.items()
                if not name.startswith("journal_")
            }

    def connect(self) -> sqlite3.Connection:
        mode = "rwc" if self._writable else "ro"
        connection = sqlite3.connect(
            f"file://{quote(str(Path(self.filename).absolute()))}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            # The authorizer does not see a cached statement again.
            cached_statements=0,
        )
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        # What a database contains, such as a view, must not do more than the job's own SQL may.
        connection.execute("PRAGMA trusted_schema = OFF")
        if sys.version_info >= (3, 12):
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE)
            tokenizer = sqlite3.SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER
            connection.setconfig(tokenizer, False)  # noqa: FBT003 - takes no keywords
        connection.set_authorizer(self._authorize)
        return self.set_pragmas(connection)

    @property
    def open(self) -> aiosqlite.Connection:
        """The connection, once it is open."""
        if self._connection is None:
            raise RuntimeError("not connected")
        return self._connection

    @contextmanager
    def guard(self, *, define: bool = False) -> Iterator[None]:
        """Authorize the statements inside; with `define`, they may change the schema."""
        self._guarding, self._may_define, self._denied = True, define, ""
        # Stay on guard after a cancellation: the thread may still be working on the statement.
        try:
            yield
        except Exception:
            self._guarding = False
            raise
        self._guarding = False

    @contextmanager
    def task_errors(self) -> Iterator[None]:
        """Convert SQLite's errors into TaskErrors."""
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
            if self._denied:
                message = f"{self._denied} is not allowed on this connection"
                raise Permanent("sql_error", message) from error
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            retryable = code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            raise TaskError("sql_error", str(error).partition("\n")[0], retryable) from error

    def _authorize(
        self, action: int, first: str | None, second: str | None, _database: Any, _trigger: Any
    ) -> int:
        """Called by SQLite in the connection's thread."""
        if self._guarding and not self._allows(action, first or "", second):
            self._denied = _NAMES.get(action, "this")
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _allows(self, action: int, first: str, second: str | None) -> bool:
        if action in _WRITES:
            return self._writable or _INTERNAL_TABLES.fullmatch(first) is not None
        if action == sqlite3.SQLITE_FUNCTION:
            return (second or "").lower() in FUNCTIONS
        if action == sqlite3.SQLITE_PRAGMA:
            pragma = first.lower()
            return pragma in _HARMLESS_PRAGMAS or (pragma in _READABLE_PRAGMAS and second is None)
        return action in _READS or (action in _SCHEMA_CHANGES and self._may_define)
