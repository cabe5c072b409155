"""JSON of what tasks return and emit: anything pydantic or msgspec can write, and never a silent `null` for a NaN."""

import math
from decimal import Decimal
from typing import Any

import msgspec
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

MAX_ITEM = 1 << 20  # bytes of one output item


def encode(value: Any, adapter: TypeAdapter[Any] | None = None) -> bytes:
    """The value as UTF-8 JSON: builtins, pydantic models, dataclasses, msgspec structs, dates, decimals, enums, sets.

    `adapter` is that of the declared type; a value of another type is written as what it is.
    `msgspec.Raw` is taken as JSON already. Raises TypeError, in one sentence, for what JSON cannot
    hold: a foreign object, NaN or an infinity, bytes or text that are no UTF-8, a structure that
    contains itself.
    """
    if value is None and adapter is None:
        return b"null"
    if isinstance(value, msgspec.Raw):
        return bytes(value)
    try:
        if adapter is None:
            data = to_json(value, inf_nan_mode="constants", fallback=msgspec.to_builtins)
        else:
            data = adapter.dump_json(
                value, by_alias=True, warnings="none", fallback=msgspec.to_builtins
            )
        # Typed fields write NaN as null, untyped ones as NaN: either way the letters must be there
        # to look further.
        if (b"null" in data or b"NaN" in data or b"Infinity" in data) and not _finite(
            _plain(value, adapter)
        ):
            raise TypeError("JSON has no NaN and no infinity: return None or a string in its place")
    except PydanticSerializationError as error:
        reason = str(error).removeprefix("Error serializing to JSON: ").partition("\n")[0]
        raise TypeError(f"a {type(value).__name__} cannot be written as JSON: {reason}") from None
    return data


_decode_exactly = msgspec.json.Decoder(float_hook=Decimal).decode


def decode_exactly(body: bytes) -> Any:
    """The JSON value, with its fractions as Decimal: a float would round their digits."""
    return _decode_exactly(body)


def non_finite(value: float) -> str:
    """The text of NaN and the infinities, which JSON does not have."""
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _plain(value: Any, adapter: TypeAdapter[Any] | None) -> Any:
    if adapter is None:
        return to_jsonable_python(value, inf_nan_mode="constants", fallback=msgspec.to_builtins)
    return adapter.dump_python(
        value, mode="json", by_alias=True, warnings="none", fallback=msgspec.to_builtins
    )


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return True
