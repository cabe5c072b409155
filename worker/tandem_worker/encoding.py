"""The JSON of what tasks return and emit: whatever pydantic or msgspec can write, except NaN."""

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from types import CoroutineType, NoneType
from typing import Any

import msgspec
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from tandem_worker.errors import Misuse

_PLAIN = frozenset({str, int, float, bool, NoneType})


def encode(value: Any, adapter: TypeAdapter[Any] | None = None) -> bytes:
    """The value as UTF-8 JSON: builtins, models, dataclasses, structs, dates, decimals, enums.

    `adapter` is that of the declared type; a value of another type is written by its own.
    `msgspec.Raw` is JSON already. Raises Misuse, in one sentence, for what JSON cannot hold:
    objects of other classes, NaN and infinities, bytes, text that is not UTF-8, keys that are no
    plain values, cycles, coroutines.
    """
    if value is None and adapter is None:
        return b"null"
    if isinstance(value, msgspec.Raw):
        return bytes(value)
    try:
        if type(value) not in _PLAIN:
            _check(value)
        if adapter is None:
            data = to_json(value, inf_nan_mode="constants", fallback=msgspec.to_builtins)
        else:
            data = adapter.dump_json(
                value, by_alias=True, warnings="none", fallback=msgspec.to_builtins
            )
        # Typed fields write NaN as null, untyped ones as NaN: only such JSON needs a closer look.
        if b"null" in data or b"NaN" in data or b"Infinity" in data:
            json.dumps(_plain(value, adapter), allow_nan=False)
    except PydanticSerializationError as error:
        reason = str(error).removeprefix("Error serializing to JSON: ").partition("\n")[0]
        raise Misuse(f"{type(value).__name__} cannot be written as JSON: {reason}") from None
    except RecursionError:
        name = type(value).__name__
        raise Misuse(
            f"{name} cannot be written as JSON: it contains itself or is nested too deeply"
        ) from None
    except ValueError:  # of json.dumps
        raise Misuse("JSON has no NaN or infinity; use None or a string instead") from None
    return data


def _check(value: Any) -> None:
    """Refuse what the encoder would write as something else, or with a message that helps nobody.

    Bytes that happen to be UTF-8 would become text, and a tuple as a key its parts with commas.
    """
    match value:
        case dict():
            for key, item in value.items():
                if type(key) is not str and isinstance(key, tuple | bytes | frozenset):
                    raise Misuse(
                        f"dict cannot be written as JSON: a key is a {type(key).__name__}, and JSON"
                        " has only strings there; use a list of pairs, or make it a string"
                    )
                if type(item) not in _PLAIN:
                    _check(item)
        case list() | tuple() | set() | frozenset():
            for item in value:
                if type(item) not in _PLAIN:
                    _check(item)
        case bytes() | bytearray() | memoryview():
            raise Misuse(
                f"{type(value).__name__} cannot be written as JSON: decode it, encode it as Base64,"
                " or write a file with job.files.write"
            )
        case CoroutineType():
            value.close()  # or Python would warn that it was never awaited
            name = value.__qualname__
            raise Misuse(f"coroutine cannot be written as JSON: write `await` before {name}(…)")


# The JSON value, with its fractions as Decimal: a float would round their digits.
decode_exactly = msgspec.json.Decoder(float_hook=Decimal).decode
# The same with fractions as Raw, in the letters of the text: half the time, and of any exponent.
decode_raw = msgspec.json.Decoder(float_hook=msgspec.Raw).decode


def with_floats(values: Sequence[Any]) -> Sequence[Any]:
    """A column with the nearest float for each Raw number."""
    try:
        if set(map(type, values)) <= {msgspec.Raw, int, NoneType}:  # a fifth of the time
            found: list[Any] = msgspec.json.decode(msgspec.json.encode(values))
            return found
    except msgspec.DecodeError:  # beyond the largest float
        pass
    return [float(bytes(one)) if type(one) is msgspec.Raw else one for one in values]


def non_finite(value: float) -> str:
    """The text of NaN and the infinities, which JSON does not have."""
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _plain(value: Any, adapter: TypeAdapter[Any] | None) -> Any:
    if adapter is None:
        return to_jsonable_python(value, inf_nan_mode="constants", fallback=msgspec.to_builtins)
    return adapter.dump_python(
        value, mode="json", by_alias=True, warnings="none", fallback=msgspec.to_builtins
    )
