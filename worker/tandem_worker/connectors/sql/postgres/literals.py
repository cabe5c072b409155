"""JSON values as parameters of PostgreSQL: literals that the server reads, or plain values.

A literal that psql takes is taken as it stands. The server judges it, so nothing is rounded or cut
here. Our own JSON forms (arrays, objects for composites and ranges, lists of points, base64) become
the literals they stand for.
"""

import binascii
import math
import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any

import msgspec

from tandem_worker.connectors.sql.postgres.exchange import is_binary
from tandem_worker.connectors.sql.postgres.types import (
    JSON,
    SHAPES,
    PgType,
    is_listed,
    unwrapped,
)
from tandem_worker.encoding import decode_exactly
from tandem_worker.errors import TaskError

Types = Mapping[int, PgType]

MAX_PLAIN_EXPONENT = 150_000  # a numeric has at most 131,072 digits before its point
_encode_json = msgspec.json.Encoder(decimal_format="number").encode
_INTEGER = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_FLOAT = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII)
_FLOAT_NAMES = re.compile(r"\s*[+-]?(?:nan|inf|infinity)\s*", re.ASCII | re.IGNORECASE)
_NONZERO = re.compile(r"[1-9]")
_BOOLS = {
    **dict.fromkeys(("t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"), True),
    **dict.fromkeys(("f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"), False),
}


def arguments(values: Sequence[Any], expected: Sequence[Any], types: Types) -> list[Any]:
    """The values as asyncpg takes them for the parameters of a statement. Raises TaskError."""
    if len(values) != len(expected):
        message = f"the statement has {len(expected)} placeholders, params {len(values)}"
        raise TaskError("sql_error", message, retryable=False)
    made = []
    for number, (value, type_) in enumerate(zip(values, expected, strict=True), 1):
        try:
            made.append(parameter(value, type_.oid, types))
        except (ValueError, TypeError, RecursionError):
            raise misfit(number, type_.name) from None
    return made


def misfit(number: int, type_: str | None = None) -> TaskError:
    """The error for a parameter that its type cannot hold; it does not quote the value."""
    name = f" {type_}" if type_ else ""
    message = f"the value of ${number} does not fit its type{name}"
    return TaskError("sql_error", message, retryable=False)


def parameter(value: Any, oid: int, types: Types) -> Any:
    """The value as asyncpg takes it for a parameter of this type. Raises ValueError."""
    if value is None:
        return None
    one = types[oid]
    return _BINARY_VALUES[one.name](value) if is_binary(one) else literal(value, oid, types)


# Values of the types that travel in binary.


def _refuse(value: Any) -> Any:
    raise ValueError(f"a {type(value).__name__} does not fit")


def _integer(value: Any) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    return value if type(value) is int else _refuse(value)


def _float(value: Any) -> float:
    if isinstance(value, str):
        if _FLOAT_NAMES.fullmatch(value):
            return float(value)
        if not _FLOAT.fullmatch(value):
            _refuse(value)
    elif isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        _refuse(value)
    return _in_range(str(value))


def _in_range(text: str) -> float:
    number = float(text)
    underflow = number == 0 and _NONZERO.search(re.split("[eE]", text)[0])
    if math.isinf(number) or underflow:
        raise ValueError("out of range")
    return number


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip(" \t\n\r\v\f").lower()
    return _BOOLS[text] if isinstance(value, str | int) and text in _BOOLS else _refuse(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _refuse(value)


def to_bytes(value: Any) -> bytes:
    r"""The bytes of base64, or of PostgreSQL's own `\x00ff`. Raises ValueError."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("not text")
    try:
        if value.startswith("\\x"):
            return bytes.fromhex(value[2:])
        return b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError("neither base64 nor \\x and hexadecimal digits") from error


_BINARY_VALUES: dict[str, Callable[[Any], Any]] = {
    "bool": _bool,
    "bytea": to_bytes,
    "float8": _float,
    **dict.fromkeys(("int2", "int4", "int8"), _integer),
    **dict.fromkeys(("text", "varchar", "bpchar"), _text),
}


# Literals of all other types.


def literal(value: Any, oid: int, types: Types) -> str:
    """The value as the server reads it for this type. Raises ValueError for what cannot be one."""
    one = unwrapped(types, oid)
    if one.builtin in JSON:
        return value if isinstance(value, str) else _encode_json(value).decode()
    if one.builtin == "bytea" or isinstance(value, bytes):
        return f"\\x{to_bytes(value).hex()}"
    match value:
        case str():
            return _text_literal(value, one, types)
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case Decimal():
            return plain_digits(value)
        case date() | time():
            return value.isoformat()
    if isinstance(value, Mapping):
        return _object(value, one, types)
    if isinstance(value, list | tuple):
        return _list(value, one, types)
    return str(_refuse(value))


def _text_literal(value: str, one: PgType, types: Types) -> str:
    """PostgreSQL's own literal as it stands; our JSON form of a structured value, as the literal.

    Parquet and CSV hold structured values as JSON text. No literal of PostgreSQL is JSON too, but
    the empty array and multirange.
    """
    if not is_structured(one) or not value.startswith(("[", "{")):
        return value
    try:
        decoded = decode_exactly(value)
    except (msgspec.DecodeError, RecursionError):
        return value
    wanted = Mapping if one.kind in ("c", "r") else list
    return literal(decoded, one.oid, types) if isinstance(decoded, wanted) else value


def is_structured(one: PgType) -> bool:
    """Whether values of the type are lists or objects in JSON."""
    return bool(one.element) or one.kind in ("c", "r", "m") or one.builtin in SHAPES


def _nested(value: Any, oid: int, types: Types) -> str:
    """A value inside a list or an object: for a JSON type it is a JSON value, never its text."""
    if unwrapped(types, oid).builtin in JSON:
        return _encode_json(value).decode()
    return literal(value, oid, types)


def plain_digits(value: Decimal) -> str:
    """All digits without an exponent, unless that would be a megabyte of zeros."""
    text = str(value)
    if "E" not in text:
        return text
    exponent = value.as_tuple().exponent
    far = isinstance(exponent, int) and abs(exponent) > MAX_PLAIN_EXPONENT
    return text if far else f"{value:f}"


def _object(value: Mapping[str, Any], one: PgType, types: Types) -> str:
    if one.kind == "r":
        return _range(value, one, types)
    if one.kind != "c" or value.keys() - {name for name, _ in one.fields}:
        _refuse(value)
    return _composite([value.get(name) for name, _ in one.fields], one, types)


def _list(value: Sequence[Any], one: PgType, types: Types) -> str:
    if (shape := _SHAPES.get(one.builtin)) is not None:
        return shape(value)
    if one.element:
        return _array(value, one, types)
    if one.kind == "m":
        return "{" + ",".join(literal(part, _range_of(one, types), types) for part in value) + "}"
    if one.kind == "c":
        return _composite(value, one, types)
    return str(_refuse(value))


def _array(value: Sequence[Any], one: PgType, types: Types) -> str:
    items = (
        "NULL"
        if item is None
        else _array(item, one, types)
        if isinstance(item, list) and not is_listed(types, one.element)
        else _quoted(_nested(item, one.element, types))
        for item in value
    )
    return "{" + one.delimiter.join(items) + "}"


def _composite(values: Sequence[Any], one: PgType, types: Types) -> str:
    if len(values) != len(one.fields):
        _refuse(values)
    pairs = zip(values, one.fields, strict=True)
    items = ("" if item is None else _quoted(_nested(item, oid, types)) for item, (_, oid) in pairs)
    return "(" + ",".join(items) + ")"


def _range(value: Mapping[str, Any], one: PgType, types: Types) -> str:
    if not value or value.keys() - {"isempty", "lower", "upper", "lower_inc", "upper_inc"}:
        _refuse(value)
    if value.get("isempty"):
        return "empty"
    lower, upper = (
        "" if value.get(end) is None else _quoted(literal(value[end], one.subtype, types))
        for end in ("lower", "upper")
    )
    first, last = "[" if value.get("lower_inc") else "(", "]" if value.get("upper_inc") else ")"
    return f"{first}{lower},{upper}{last}"


def _range_of(multirange: PgType, types: Types) -> int:
    return next(
        one.oid for one in types.values() if one.kind == "r" and one.subtype == multirange.subtype
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# Geometric types and other lists.


def _point(value: Any) -> str:
    x, y = value
    return f"({x},{y})"


def _points(value: Any) -> str:
    return "(" + ",".join(map(_point, value)) + ")"


def _circle(value: Any) -> str:
    center, radius = value
    return f"<{_point(center)},{radius}>"


def _blank_separated(value: Any) -> str:
    return " ".join(map(str, value))


_SHAPES: dict[str, Callable[[Any], str]] = {
    **dict.fromkeys(("point", "tid"), _point),
    **dict.fromkeys(("lseg", "path", "box", "polygon"), _points),
    **dict.fromkeys(("int2vector", "oidvector"), _blank_separated),
    "circle": _circle,
    "line": lambda value: "{" + ",".join(map(str, value)) + "}",
}
