"""Anonymous records, `SELECT ROW(1, 'x')`: only their binary form has the types of their fields.

The formats are those of the server's `*send` functions: integers are big-endian, times count
microseconds and days from 2000-01-01.
"""

import struct
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from tandem_worker.connectors.sql.postgres.text import Reader, read_float
from tandem_worker.errors import TaskError

_EPOCH = date(2000, 1, 1)
_MOMENT = datetime(2000, 1, 1)  # noqa: DTZ001 - the zone is written behind it


def read_record(read: Mapping[int, Reader]) -> Callable[[bytes], list[Any]]:
    """A reader of binary records. Raises TaskError for a field of a type it does not know."""

    def decode(data: bytes) -> list[Any]:
        (count,) = struct.unpack_from(">i", data)
        at = 4
        values: list[Any] = []
        for _ in range(count):
            oid, size = struct.unpack_from(">Ii", data, at)
            at += 8
            if size < 0:
                values.append(None)
                continue
            values.append(_value(oid, data[at : at + size], decode, read))
            at += size
        return values

    return decode


def _value(
    oid: int, data: bytes, record: Callable[[bytes], list[Any]], read: Mapping[int, Reader]
) -> Any:
    if oid == 2249:
        return record(data)
    if (found := _FIELDS.get(oid)) is None:
        raise TaskError(
            "sql_error",
            "an anonymous record holds a value of a type that can only be read from a named"
            " composite type: select the fields as columns, or cast the record to a type",
            retryable=False,
        )
    return found(data, read)


Field = Callable[[bytes, Mapping[int, Reader]], Any]


def _number(format: str) -> Field:
    return lambda data, _: struct.unpack(format, data)[0]


def _float(format: str) -> Field:
    return lambda data, _: read_float(repr(struct.unpack(format, data)[0]))


def _float4(data: bytes, _: Mapping[int, Reader]) -> float | str:
    value = struct.unpack(">f", data)[0]
    # The shortest decimal that is this value as a 32-bit float.
    digits = next(
        text
        for text in (f"{value:.{precision}g}" for precision in range(1, 10))
        if precision_holds(text, value)
    )
    return read_float(digits)


def precision_holds(text: str, value: float) -> bool:
    """Whether the text read as a 32-bit float is `value`; also for NaN."""
    again = struct.unpack(">f", struct.pack(">f", float(text)))[0]
    return bool(again == value or value != value)  # noqa: PLR0124 - only NaN differs from itself


def _text(data: bytes, _: Mapping[int, Reader]) -> str:
    return data.decode()


def _numeric(data: bytes, _: Mapping[int, Reader]) -> str:
    count, weight, sign, scale = struct.unpack_from(">hhHH", data)
    if sign in _SPECIAL:
        return _SPECIAL[sign]
    number = 0
    for group in struct.unpack_from(f">{count}h", data, 8):
        number = number * 10_000 + group
    # The last group stands for this power of ten. All arithmetic is in integers: it cannot round.
    power = 4 * (weight - count + 1) + scale
    shifted = number * 10**power if power >= 0 else number // 10**-power
    digits = f"{shifted:0{scale + 1}}"
    text = f"{digits[:-scale]}.{digits[-scale:]}" if scale else digits
    return f"-{text}" if sign == _NEGATIVE else text


_NEGATIVE = 0x4000
_SPECIAL = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}


def _char(data: bytes, _: Mapping[int, Reader]) -> str:
    """A single byte, which is no UTF-8 above ASCII: as PostgreSQL 16 and later write it."""
    if data == b"\0":
        return ""
    return data.decode() if data < b"\x80" else f"\\{data[0]:03o}"


def _date(data: bytes, _: Mapping[int, Reader]) -> str:
    (days,) = struct.unpack(">i", data)
    if days in _NEVER:
        return _NEVER[days]
    try:
        return (_EPOCH + timedelta(days)).isoformat()
    except OverflowError:
        raise _far() from None


_NEVER = {2**31 - 1: "infinity", -(2**31): "-infinity"}
_NEVER_US = {2**63 - 1: "infinity", -(2**63): "-infinity"}


def _timestamp(suffix: str) -> Field:
    def read(data: bytes, _: Mapping[int, Reader]) -> str:
        (micros,) = struct.unpack(">q", data)
        if micros in _NEVER_US:
            return _NEVER_US[micros]
        try:
            return (_MOMENT + timedelta(microseconds=micros)).isoformat() + suffix
        except OverflowError:
            raise _far() from None

    return read


def _far() -> TaskError:
    message = "an anonymous record holds a date outside the years 1 to 9999: select it by itself"
    return TaskError("sql_error", message, retryable=False)


def _time(data: bytes, _: Mapping[int, Reader]) -> str:
    (micros,) = struct.unpack(">q", data)
    seconds, rest = divmod(micros, 1_000_000)
    minutes, second = divmod(seconds, 60)
    text = f"{minutes // 60:02}:{minutes % 60:02}:{second:02}"
    return f"{text}.{rest:06}" if rest else text


def _interval(data: bytes, _: Mapping[int, Reader]) -> str:
    micros, days, months = struct.unpack(">qii", data)
    years, months = int(months / 12), months - 12 * int(months / 12)
    sign, micros = (-1, -micros) if micros < 0 else (1, micros)
    hours, rest = divmod(micros, 3_600_000_000)
    minutes, rest = divmod(rest, 60_000_000)
    seconds, fraction = divmod(rest, 1_000_000)
    second = f"{seconds}.{fraction:06}".rstrip("0").rstrip(".") if fraction else str(seconds)
    parts = [
        f"{value}{unit}" for value, unit in ((years, "Y"), (months, "M"), (days, "D")) if value
    ]
    minus = "-" if sign < 0 else ""
    clock = [f"{minus}{value}{unit}" for value, unit in ((hours, "H"), (minutes, "M")) if value]
    if seconds or fraction:
        clock.append(f"{minus}{second}S")
    if not parts and not clock:
        return "PT0S"
    return "P" + "".join(parts) + ("T" + "".join(clock) if clock else "")


_FIELDS: dict[int, Field] = {
    16: lambda data, _: data != b"\0",
    17: lambda data, _: data,
    18: _char,
    19: _text,
    20: _number(">q"),
    21: _number(">h"),
    23: _number(">i"),
    25: _text,
    26: _number(">I"),
    114: lambda data, _: msgspec.Raw(data.replace(b"\n", b" ").replace(b"\r", b" ")),
    3802: lambda data, _: msgspec.Raw(data[1:]),
    700: _float4,
    701: _float(">d"),
    705: _text,
    1042: _text,
    1043: _text,
    1082: _date,
    1083: _time,
    1114: _timestamp(""),
    1184: _timestamp("Z"),
    1186: _interval,
    1700: _numeric,
    2950: lambda data, _: str(UUID(bytes=data)),
}
