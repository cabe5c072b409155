"""How a PostgreSQL connection exchanges values: as text that the server reads and writes itself.

asyncpg's own Python types would lose values: dates become infinities, digits of numbers are cut,
text inside composites is read as binary. Only a few types travel in binary, without a loss and
faster.
"""

from collections.abc import Mapping
from typing import Any

from tandem_worker.connectors.sql.postgres.record import read_record
from tandem_worker.connectors.sql.postgres.text import readers
from tandem_worker.connectors.sql.postgres.types import PgType, read_types

Connection = Any  # asyncpg ships no types

RECORD_OID = 2249
BINARY = frozenset("bool bytea int2 int4 int8 float8 text varchar bpchar".split())


async def exchange_text(connection: Connection) -> dict[int, PgType]:
    """Read the types of the database and set a codec for each but the binary ones.

    asyncpg's public `set_type_codec` refuses arrays, ranges and composites, for which its protocol
    takes a codec all the same.
    """
    types = await read_types(connection)
    read = readers(types)
    settings = connection._protocol.get_settings()  # noqa: SLF001 - see above
    for one in types.values():
        codec: tuple[Any, Any, str]  # encoder, decoder, format
        if one.oid == RECORD_OID:
            codec = (None, read_record(read), "binary")
        elif is_binary(one):
            continue
        else:
            codec = (str, read[one.oid], "text")
        settings.add_python_codec(one.oid, shown(one, types), one.schema, [], "scalar", *codec)
    connection._drop_local_statement_cache()  # noqa: SLF001 - as set_type_codec does
    return types


def is_binary(one: PgType) -> bool:
    """Whether asyncpg's own codec is kept."""
    return one.builtin in BINARY


def shown(one: PgType, types: Mapping[int, PgType]) -> str:
    """The name of the type as clients see it: `int4[]` for an array."""
    return f"{types[one.element].name}[]" if one.element in types else one.name
