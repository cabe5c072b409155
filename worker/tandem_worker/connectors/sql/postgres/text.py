"""Values as PostgreSQL writes them, read as JSON values: nothing is rounded, shifted or cut.

Integers and finite floats become numbers; decimals, NaN and the infinities strings; dates and times
RFC 3339 where that can express them, else PostgreSQL's own text; json and jsonb the server's own
bytes; arrays and geometric types lists, composites and ranges objects, bytea bytes.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec

from tandem_worker.connectors.sql.postgres.types import SHAPES, PgType, is_listed

Reader = Callable[[str], Any]

_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?(?:([+-]\d\d)(?::(\d\d))?(?::\d\d)?)?"
)
_TIME = re.compile(r"(\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?(?:([+-]\d\d)(?::(\d\d))?)?")
_NUMBERS = re.compile(r"[^][(){}<>,]+")


def readers(types: Mapping[int, PgType]) -> Mapping[int, Reader]:
    """A reader for each type. Types refer to each other, so readers look others up when called."""
    found: dict[int, Reader] = {}
    for oid, one in types.items():
        found[oid] = _reader(one, types, found)
    return found


def _reader(one: PgType, types: Mapping[int, PgType], found: Mapping[int, Reader]) -> Reader:
    if one.element and one.builtin not in SHAPES:
        return _array_reader(one, types, found)
    match one.kind:
        case "d":
            return partial(_read_domain, base=one.base, found=found)
        case "c":
            return partial(_read_composite, fields=one.fields, found=found)
        case "r":
            return lambda text: read_range(text, found[one.subtype])
        case "m":
            return lambda text: [
                read_range(part, found[one.subtype]) for part in _multirange_parts(text)
            ]
    return _BASE.get(one.builtin, str)


# Numbers and times.


def read_float(text: str) -> float | str:
    """A finite float, else its name."""
    value = float(text)
    return value if math.isfinite(value) else text


def read_timestamp(text: str) -> str:
    """RFC 3339, without an offset where the type has none; unchanged beyond the years 1 to 9999."""
    match = _TIMESTAMP.fullmatch(text)
    if match is None:  # infinity, BC, a year of five digits, an offset with seconds
        return text
    day, time, fraction, hours, minutes = match.groups()
    return f"{day}T{time}{_fraction(fraction)}{_offset(hours, minutes)}"


def read_time(text: str) -> str:
    """RFC 3339's time; `24:00:00` stays."""
    match = _TIME.fullmatch(text)
    if match is None:
        return text
    time, fraction, hours, minutes = match.groups()
    return f"{time}{_fraction(fraction)}{_offset(hours, minutes)}"


def _fraction(digits: str | None) -> str:
    return "" if digits is None else f".{digits:<06}"


def _offset(hours: str | None, minutes: str | None) -> str:
    if hours is None:
        return ""
    return "Z" if hours == "+00" and minutes in (None, "00") else f"{hours}:{minutes or '00'}"


def read_json(text: str) -> msgspec.Raw:
    """The server's own bytes on one line: JSON has line breaks between tokens only."""
    return msgspec.Raw(text.replace("\n", " ").replace("\r", " ").encode())


def read_bytes(text: str) -> bytes:
    r"""The bytes of `\x…`, the form that `bytea_output = hex` gives."""
    return bytes.fromhex(text[2:])


# Geometric types: (x,y)  [(x,y),…]  ((x,y),…)  {A,B,C}  <(x,y),r>


def _numbers(text: str) -> list[float | str]:
    return [read_float(number) for number in _NUMBERS.findall(text)]


def _path(text: str) -> list[list[float | str]] | str:
    """A closed path's points; an open one stays the server's literal, `[(x,y),…]`."""
    return text if text.startswith("[") else _points(text)


def _points(text: str) -> list[list[float | str]]:
    numbers = _numbers(text)
    return [numbers[at : at + 2] for at in range(0, len(numbers), 2)]


def _circle(text: str) -> list[Any]:
    x, y, radius = _numbers(text)
    return [[x, y], radius]


# Arrays, composites and ranges.


def _array_reader(one: PgType, types: Mapping[int, PgType], found: Mapping[int, Reader]) -> Reader:
    """A reader of lists, nested as the array is.

    What a list would not show stays the server's literal: lower bounds other than 1, and the
    dimensions of an array whose values are lists themselves.
    """
    element, delimiter = one.element, one.delimiter
    tokens = re.compile(rf'"((?:[^"\\]|\\.)*)"|([^{{}}"{delimiter}]+)|([{{}}])', re.DOTALL)
    unlisted = ("[", "{{") if is_listed(types, element) else "["

    def read(text: str) -> list[Any] | str:
        if text.startswith(unlisted):
            return text
        value = found[element]
        if '"' in text or text.startswith("{{"):
            return _read_nested(tokens.finditer(text), value)
        items = text[1:-1].split(delimiter) if len(text) > 2 else ()
        return [None if item == "NULL" else value(item) for item in items]

    return read


def _read_nested(tokens: Iterator[re.Match[str]], read: Reader) -> list[Any]:
    root: list[list[Any]] = []
    stack: list[list[Any]] = [root]
    for token in tokens:
        quoted, bare, brace = token.groups()
        if quoted is not None:
            stack[-1].append(read(_unescaped(quoted)))
        elif bare is not None:
            stack[-1].append(None if bare == "NULL" else read(bare))
        elif brace == "{":
            inner: list[Any] = []
            stack[-1].append(inner)
            stack.append(inner)
        else:
            stack.pop()
    return root[0]


_QUOTED = re.compile(r'"((?:[^"\\]|\\.|"")*)"', re.DOTALL)


def _quoted(text: str, at: int) -> tuple[str, int]:
    match = _QUOTED.match(text, at)
    if match is None:
        raise ValueError("a quoted value without its end")
    return _unescaped(match[1].replace('""', '"')), match.end()


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    # A fifth of the time of a regular expression.
    return "\\".join(part.replace("\\", "") for part in text.split("\\\\"))


def composite_items(text: str) -> Iterator[str | None]:
    """The fields of `(a,"b c",)` as text; an empty field is null."""
    at, end = 1, len(text) - 1
    value: str | None = None
    parts: list[str] = []
    while at <= end:
        sign = text[at]
        if at == end or sign == ",":
            value = "".join(parts) if parts else None
            yield value
            parts = []
            at += 1
        elif sign == '"':
            inner, at = _quoted(text, at)
            parts.append(inner)
        else:
            stop = at
            while stop < end and text[stop] not in ',"':
                stop += 2 if text[stop] == "\\" else 1
            parts.append(_unescaped(text[at:stop]))
            at = stop


def _read_domain(text: str, *, base: int, found: Mapping[int, Reader]) -> Any:
    return found[base](text)


def _read_composite(
    text: str, *, fields: tuple[tuple[str, int], ...], found: Mapping[int, Reader]
) -> dict[str, Any]:
    items = composite_items(text) if fields else iter(())
    return {
        name: None if item is None else found[oid](item)
        for (name, oid), item in zip(fields, items, strict=True)
    }


def read_range(text: str, read: Reader) -> dict[str, Any]:
    """`[1,5)` as an object; a missing bound is null, and both are for an empty range."""
    if text == "empty":
        return _range(None, None, empty=True, lower_inc=False, upper_inc=False)
    lower, upper = composite_items(text)
    return _range(
        None if lower is None else read(lower),
        None if upper is None else read(upper),
        empty=False,
        lower_inc=text[0] == "[",
        upper_inc=text[-1] == "]",
    )


def _range(
    lower: Any, upper: Any, *, empty: bool, lower_inc: bool, upper_inc: bool
) -> dict[str, Any]:
    return {
        "isempty": empty,
        "lower": lower,
        "upper": upper,
        "lower_inc": lower_inc,
        "upper_inc": upper_inc,
    }


_RANGE = re.compile(r'[\[(](?:[^"\])]|"(?:[^"\\]|\\.|"")*")*[\])]', re.DOTALL)


def _multirange_parts(text: str) -> list[str]:
    return _RANGE.findall(text[1:-1])


_BASE: dict[str, Reader] = {
    "bool": lambda text: text == "t",
    "bytea": read_bytes,
    **dict.fromkeys(("int2", "int4", "int8", "oid", "xid", "xid8", "cid"), int),
    **dict.fromkeys(("float4", "float8"), read_float),
    **dict.fromkeys(("timestamp", "timestamptz"), read_timestamp),
    **dict.fromkeys(("time", "timetz"), read_time),
    **dict.fromkeys(("json", "jsonb"), read_json),
    **dict.fromkeys(("point", "line"), _numbers),
    **dict.fromkeys(("lseg", "box", "polygon"), _points),
    "path": _path,
    "circle": _circle,
    **dict.fromkeys(
        ("int2vector", "oidvector"), lambda text: [int(number) for number in text.split()]
    ),
    "tid": lambda text: [int(number) for number in text[1:-1].split(",")],
    "void": lambda _text: None,
}
