"""Queries that the operator declares by name, in the TOML file of `TANDEM_QUERIES`.

    [queries.sales_of_city]
    connection = "analytics"
    sql = "SELECT * FROM sales WHERE city = :city AND day >= :since"
    params = { city = "text", since = "date" }

A job gives the name and all params. Their types are text, integer, number, boolean, date and
datetime (ISO 8601 texts), uuid, and json (any value); null is valid for every type.
"""

import tomllib
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from tandem_shared.errors import Misconfigured
from tandem_worker.connectors.sql.statements.placeholders import bind
from tandem_worker.errors import Permanent, TaskError

_SETTING = "TANDEM_QUERIES"


class NamedQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One declared query; `params` holds the type of each `:name` in its SQL."""

    connection: str
    sql: str
    params: dict[str, str] = {}

    def check(self, params: Any) -> dict[str, Any]:
        """The params as an object. Raises Permanent `invalid_params`."""
        given = {} if params is None else params
        if not isinstance(given, Mapping):
            raise _invalid("the params of a named query are an object")
        for name in given:
            if name not in self.params:
                raise _invalid(f"the query has no parameter {name!r}")
        for name, type in self.params.items():
            if name not in given:
                raise _invalid(f"the parameter {name!r} is missing")
            if given[name] is not None and not _TYPES[type](given[name]):
                raise _invalid(f"the parameter {name!r} is not of type {type}")
        return dict(given)


def load_queries(path: str, connections: Collection[str]) -> dict[str, NamedQuery]:
    """The queries in the file, by name; empty for an empty path. Raises Misconfigured."""
    if not path:
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8")
        declared = msgspec.convert(tomllib.loads(text), _QueryFile).queries
    except OSError as error:
        raise Misconfigured(f"{_SETTING}: {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise Misconfigured(f"{_SETTING}: {path}: {error}") from None
    for name, query in declared.items():
        where = f"{_SETTING}: {path}: queries.{name}"
        if query.connection.lower() not in connections:
            raise Misconfigured(f"{where}: the settings have no connection {query.connection!r}")
        unknown = next((type for type in query.params.values() if type not in _TYPES), None)
        if unknown is not None:
            raise Misconfigured(
                f"{where}: {unknown!r} is not a parameter type; use {', '.join(_TYPES)}"
            )
        try:
            bind(query.sql, dict.fromkeys(query.params), "postgresql")
        except TaskError as error:
            raise Misconfigured(f"{where}: {error.message}") from None
    return declared


class _QueryFile(msgspec.Struct, forbid_unknown_fields=True):
    queries: dict[str, NamedQuery]


def _parses(parse: Callable[[str], Any]) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        try:
            parse(value)
        except (TypeError, ValueError):
            return False
        return isinstance(value, str)

    return fits


_TYPES: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: (
        isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    ),
    "boolean": lambda value: isinstance(value, bool),
    "date": _parses(date.fromisoformat),
    "datetime": _parses(datetime.fromisoformat),
    "uuid": _parses(UUID),
    "json": lambda _: True,
}


def _invalid(message: str) -> Permanent:
    return Permanent("invalid_params", message)
