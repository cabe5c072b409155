"""psql as the oracle: what PostgreSQL's own client prints for a query.

The worker's role has settings that the worker must not depend on; psql's own role has none.
"""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 60.0


_FIELD, _RECORD, _NULL = "\x1f", "\x1e", "\x1d"


def psql(url: str, sql: str) -> list[list[str | None]]:
    """The rows as text, null as None. Raises CalledProcessError with psql's message."""
    options = ("-XqAt", "-F", _FIELD, "-R", _RECORD, "-v", "ON_ERROR_STOP=1", "-P", f"null={_NULL}")
    done = subprocess.run(
        [program(), *options, url.replace("postgres://", "postgresql://")],
        input=f"SET timezone = 'UTC'; SET intervalstyle = iso_8601;\n{sql};\n",
        env={"PATH": os.environ["PATH"], "PGCLIENTENCODING": "UTF8"},
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_SECONDS,
    )
    if not done.stdout:
        return []
    records = done.stdout.removesuffix("\n").split(_RECORD)
    return [
        [None if cell == _NULL else cell for cell in record.split(_FIELD)] for record in records
    ]


ODD_SETTINGS = {
    "timezone": "'Asia/Kathmandu'",
    "datestyle": "'SQL, DMY'",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "xmloption": "document",
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "search_path": "elsewhere, public",
}


def odd_role(url: str) -> str:
    """The URL with a new role that has ODD_SETTINGS."""
    parts = urlsplit(url)
    role = f"odd_{parts.path.strip('/')}"
    script = [
        "CREATE SCHEMA elsewhere",
        f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{parts.password}'",
        *(f"ALTER ROLE {role} SET {name} = {value}" for name, value in ODD_SETTINGS.items()),
    ]
    psql(url, "; ".join(script))
    return url.replace(f"//{parts.username}:", f"//{role}:")


def program() -> str:
    """psql on PATH, else the one that comes with the tests' server."""
    if found := shutil.which("psql"):
        return found
    spec = importlib.util.find_spec("pgserver")
    assert spec is not None, "neither psql nor pgserver is installed"
    assert spec.origin is not None
    return str(Path(spec.origin).with_name("pginstall") / "bin" / "psql")
