"""Parquet files read by DuckDB, which shares no code with our writer."""

import tempfile
from datetime import UTC
from typing import Any

import duckdb


def types(data: bytes) -> dict[str, str]:
    """DuckDB's type names by column."""
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file, duckdb.connect() as database:
        file.write(data)
        file.flush()
        found = database.execute("DESCRIBE SELECT * FROM read_parquet(?)", [file.name]).fetchall()
        return {row[0]: row[1] for row in found}


def rows(data: bytes) -> list[dict[str, Any]]:
    """All rows as Python values."""
    zoned = [name for name, type in types(data).items() if type == "TIMESTAMP WITH TIME ZONE"]
    # As numbers: DuckDB needs another package for zones. An empty REPLACE is a syntax error.
    list_ = ", ".join(f'make_timestamp(epoch_us("{name}")) AS "{name}"' for name in zoned)
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file, duckdb.connect() as database:
        file.write(data)
        file.flush()
        cursor = database.execute(
            f"SELECT * {f'REPLACE ({list_})' if zoned else ''} FROM read_parquet(?)", [file.name]
        )
        names = [column[0] for column in cursor.description]
        read = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    for row in read:
        row.update({name: row[name] and row[name].replace(tzinfo=UTC) for name in zoned})
    return read


def compression(data: bytes) -> set[str]:
    """The compressions of the columns."""
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file, duckdb.connect() as database:
        file.write(data)
        file.flush()
        found = database.execute(
            "SELECT DISTINCT compression FROM parquet_metadata(?)", [file.name]
        ).fetchall()
        return {row[0] for row in found}
