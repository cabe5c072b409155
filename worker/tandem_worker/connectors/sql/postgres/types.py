"""PostgreSQL's types, as one database has them: read from pg_type."""

from collections.abc import Mapping
from typing import Any, NamedTuple

_QUERY = """
SELECT t.oid, t.typname AS name, n.nspname AS schema, t.typtype::text AS kind,
  CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE 0 END AS element,
  t.typbasetype AS base, t.typdelim::text AS delimiter,
  coalesce(r.rngsubtype, m.rngsubtype, 0) AS subtype,
  CASE WHEN t.typtype = 'c' THEN array(
    SELECT a.attname::text FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
  ) END AS field_names,
  CASE WHEN t.typtype = 'c' THEN array(
    SELECT a.atttypid FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
  ) END AS field_types
FROM pg_catalog.pg_type t
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid
LEFT JOIN pg_catalog.pg_range m ON m.rngmultitypid = t.oid
"""


JSON = frozenset({"json", "jsonb"})
SHAPES = frozenset("point line lseg path box polygon circle tid int2vector oidvector".split())


class PgType(NamedTuple):
    """One row of pg_type. OIDs that do not apply are 0."""

    oid: int
    name: str
    schema: str
    kind: str  # of pg_type.typtype: b base, c composite, d domain, e enum, m multirange, r range
    element: int
    base: int
    delimiter: str
    subtype: int
    fields: tuple[tuple[str, int], ...]

    @property
    def builtin(self) -> str:
        """The name of a type of the server itself; empty for all others."""
        return self.name if self.schema == "pg_catalog" else ""


def _type(row: Mapping[str, Any]) -> PgType:
    names, oids = row["field_names"] or (), row["field_types"] or ()
    return PgType(
        row["oid"],
        row["name"],
        row["schema"],
        row["kind"],
        row["element"],
        row["base"],
        row["delimiter"],
        row["subtype"],
        tuple(zip(names, oids, strict=True)),
    )


async def read_types(connection: Any) -> dict[int, PgType]:
    """Every type of the database, by OID."""
    rows: list[Mapping[str, Any]] = await connection.fetch(_QUERY)
    return {row["oid"]: _type(row) for row in rows}


def unwrapped(types: Mapping[int, PgType], oid: int) -> PgType:
    """The type, or what a domain is made of."""
    found = types[oid]
    while found.kind == "d":
        found = types[found.base]
    return found


def is_listed(types: Mapping[int, PgType], oid: int) -> bool:
    """Whether a value of the type may be a list in JSON."""
    one = unwrapped(types, oid)
    return bool(one.element) or one.builtin in JSON | SHAPES or one.kind in ("c", "m")
