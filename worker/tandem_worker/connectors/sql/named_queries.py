"""Queries that the operator declares by name, in the TOML file of `TANDEM_QUERIES`.

    [queries.sales_of_city]
    connection = "analytics"
    sql = "SELECT * FROM sales WHERE city = :city AND day >= :since"
    params = { city = "text", since = "date" }

A job gives the name and the params, all of them, and each of its type: text, integer, number,
boolean, date or datetime (both as ISO 8601 texts), uuid, json (anything); null is of every type.
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
from tandem_worker.connectors.sql.placeholders import bind
from tandem_worker.errors import TaskError

_SETTING = "TANDEM_QUERIES"


class NamedQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One declared query; `params` has the type of each `:name` in its text."""

    connection: str
    sql: str
    params: dict[str, str] = {}

    def check(self, params: Any) -> dict[str, Any]:
        """The params as the database takes them. Raises TaskError `invalid_params`."""
        given = {} if params is None else params
        if not isinstance(given, Mapping):
            raise _invalid("a named query takes params as an object")
        for name in given:
            if name not in self.params:
                raise _invalid(f"this query has no parameter {name!r}")
        for name, type in self.params.items():
            if name not in given:
                raise _invalid(f"the parameter {name!r} is missing")
            if not _is(given[name], type):
                raise _invalid(f"the parameter {name!r} is no {type}")
        return dict(given)


def load_queries(path: str, connections: Collection[str]) -> dict[str, NamedQuery]:
    """The queries of the file, by name; none for an empty path. Raises Misconfigured, with what is wrong where."""
    if not path:
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8")
        declared = msgspec.convert(tomllib.loads(text), _File).queries
    except OSError as error:
        raise Misconfigured(f"{_SETTING}: {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise Misconfigured(f"{_SETTING}: {path}: {error}") from None
    for name, query in declared.items():
        where = f"{_SETTING}: {path}: queries.{name}"
        if query.connection.lower() not in connections:
            raise Misconfigured(f"{where}: there is no connection {query.connection!r}")
        unknown = next((type for type in query.params.values() if type not in _TYPES), None)
        if unknown is not None:
            raise Misconfigured(
                f"{where}: {unknown!r} is no type of a parameter: {', '.join(_TYPES)} are"
            )
        try:
            bind(query.sql, dict.fromkeys(query.params), "postgresql")
        except TaskError as error:
            raise Misconfigured(f"{where}: {error.message}") from None
    return declared


class _File(msgspec.Struct, forbid_unknown_fields=True):
    queries: dict[str, NamedQuery]


def _parsed(parse: Callable[[str], Any]) -> Callable[[Any], bool]:
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
    "date": _parsed(date.fromisoformat),
    "datetime": _parsed(datetime.fromisoformat),
    "uuid": _parsed(UUID),
    "json": lambda _: True,
}


def _is(value: Any, type: str) -> bool:
    return value is None or _TYPES[type](value)


def _invalid(what: str) -> TaskError:
    return TaskError("invalid_params", what, retryable=False)
