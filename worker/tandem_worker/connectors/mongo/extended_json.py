"""Documents as MongoDB Extended JSON v2, which preserves ids, dates and decimals.

Both forms are read. `relaxed` writes numbers and usual dates the way people do, `canonical` keeps
every type.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from bson import Code, DBRef, Int64, ObjectId, json_util
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError, InvalidId
from bson.json_util import JSONMode, JSONOptions

from tandem_worker.errors import Permanent

Form = Literal["relaxed", "canonical"]

# Times have their zone; times outside Python's range stay DatetimeMS.
DECODING: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
_COMMON: dict[str, Any] = {
    "tz_aware": True,
    "uuid_representation": UuidRepresentation.UNSPECIFIED,
    "datetime_conversion": DatetimeConversion.DATETIME_AUTO,
}
_OPTIONS = {
    "relaxed": JSONOptions(json_mode=JSONMode.RELAXED, **_COMMON),
    "canonical": JSONOptions(json_mode=JSONMode.CANONICAL, **_COMMON),
}
# An object with one of these keys is a BSON value. `$regex` is left out: it stays an operator.
_WRAPPERS = frozenset(
    "$oid $ref $date $minKey $maxKey $binary $code $uuid $undefined $numberLong $timestamp"
    " $numberDecimal $dbPointer $regularExpression $symbol $numberInt $numberDouble".split()
)
_SAME_IN_JSON: frozenset[type] = frozenset((str, bool, type(None)))


def to_bson(value: Any, place: str) -> Any:
    """The BSON value of decoded Extended JSON. Raises Permanent `invalid_document`."""
    if isinstance(value, dict):
        made = {key: to_bson(below, f"{place}/{key}") for key, below in value.items()}
        if _WRAPPERS.isdisjoint(made):
            return made
        try:
            if "$undefined" in made and len(made) > 1:
                raise ValueError("extra fields")
            return json_util.object_hook(made, _OPTIONS["canonical"])
        except (BSONError, InvalidId, TypeError, ValueError, KeyError, ArithmeticError) as error:
            raise invalid(place, f"is not valid Extended JSON: {error}") from None
    if isinstance(value, list):
        return [to_bson(below, f"{place}/{number}") for number, below in enumerate(value)]
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        raise invalid(place, "is an integer that does not fit into 64 bits")
    return value


def to_json(document: Mapping[str, Any], form: Form = "relaxed") -> bytes:
    """The document as one line of Extended JSON. Raises TaskError `invalid_document`."""
    try:
        return msgspec.json.encode(plain(document, form))
    except (ValueError, TypeError, BSONError, OverflowError) as error:
        raise invalid("the document", f"cannot be written as Extended JSON: {error}") from None


def plain(value: Any, form: Form = "relaxed") -> Any:
    """The value as JSON values, in Extended JSON."""
    kind = type(value)
    if kind in _SAME_IN_JSON:
        return value
    if isinstance(value, Mapping):
        for key in _WRAPPERS.intersection(value):
            raise invalid("a document", f"has a field {key}, which means a type in Extended JSON")
        return _parts(value, form)
    if isinstance(value, list):
        return [plain(below, form) for below in value]
    if form == "relaxed":
        if kind is int or kind is Int64:
            return int(value)
        if kind is float and math.isfinite(value):
            return value
    if isinstance(value, DBRef):
        return _parts(value.as_doc(), form)
    if isinstance(value, Code) and value.scope is not None:
        return {"$code": str(value), "$scope": plain(value.scope, form)}
    return json_util.default(value, _OPTIONS[form])


def _parts(value: Mapping[str, Any], form: Form) -> dict[str, Any]:
    return {key: plain(below, form) for key, below in value.items()}


def derived_id(job: str, index: int) -> ObjectId:
    """The id of a job's document `index`: the same in every attempt, different in other jobs.

    72 bits of SHA-256 and a counter, so a job's documents are neighbours in the collection's index.
    """
    digest = hashlib.sha256(f"tandem:{job}:{index >> 24}".encode()).digest()
    return ObjectId(digest[:9] + (index & 0xFFFFFF).to_bytes(3, "big"))


def invalid(place: str, why: str) -> Permanent:
    """The error for a document, or for a part of one."""
    return Permanent("invalid_document", f"{place[:200]} {why[:500]}")
