"""Rewrites the schemas of the document so that generators of clients understand them.

What they accept does not change, except that a field which may only be null is left out.
"""

import json
import re
from typing import Any

INT32_MAX = 2**31 - 1
_SCHEMA = ("items", "additionalProperties", "not", "if", "then", "else", "contains",
           "propertyNames", "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMA_MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs")
_DATA = ("example", "examples", "value", "default")  # JSON that only looks like a schema
# bool before int: True is both
_TYPES: tuple[tuple[type, str], ...] = (
    (str, "string"), (bool, "boolean"), (int, "integer"), (float, "number"),
    (type(None), "null"), (list, "array"), (dict, "object"),
)  # fmt: skip
# The escapes of ECMA-262 with the flag `u`; all other letters and signs must not be escaped.
_SIGNS = frozenset(r"^$\.*+?()[]{}|/")
_ANCHORS = {"A": "^", "Z": "$", "z": "$"}


def tidy_document(value: Any) -> Any:
    """The document with every schema in it rewritten."""
    if isinstance(value, list):
        return [tidy_document(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: tidy(one)
        if key == "schema"
        else {name: tidy(schema) for name, schema in one.items()}
        if key == "schemas"
        else one
        if key in _DATA
        else tidy_document(one)
        for key, one in value.items()
    }


def tidy(schema: Any) -> Any:
    """One schema, with those inside it.

    Titles are dropped, since generators name classes by them, and several schemas may have the same
    one. Every enum has a type, every array its items, and integers that exceed 32 bits a format.
    """
    if not isinstance(schema, dict):
        return schema  # true or false
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "title" and isinstance(value, str):
            continue
        found[key] = _rewrite(key, value)
    if "type" not in found and ("enum" in found or "const" in found):
        found["type"] = _type_of(found.get("enum", [found.get("const")]))
    if found.get("default") is not None and ("anyOf" in found or "oneOf" in found):
        # Statically typed clients cannot assign the default of one alternative to all of them.
        default = json.dumps(found.pop("default"))
        found["description"] = "; ".join(
            filter(None, [found.get("description"), f"default: {default}"])
        )
    types = found.get("type")
    names = types if isinstance(types, list) else [types]
    if "integer" in names and not _fits_int32(found):
        found.setdefault("format", "int64")
    if "array" in names and "prefixItems" not in found:
        found.setdefault("items", {})
    return found


def _rewrite(key: str, value: Any) -> Any:
    if key == "pattern" and isinstance(value, str):
        return ecma_pattern(value)
    if key in _SCHEMA:
        return tidy(value)
    if key in _SCHEMA_LISTS and isinstance(value, list):
        return list(map(tidy, value))
    if key in _SCHEMA_MAPS and isinstance(value, dict):
        if key == "patternProperties":
            return {ecma_pattern(name): tidy(one) for name, one in value.items()}
        return {name: tidy(one) for name, one in value.items() if not _only_null(one)}
    return value


def _only_null(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "null"


def _type_of(values: list[Any]) -> str | list[str]:
    names = sorted(
        {next(name for kind, name in _TYPES if isinstance(value, kind)) for value in values}
    )
    return names[0] if len(names) == 1 else names


def _fits_int32(schema: dict[str, Any]) -> bool:
    maximum = schema.get("maximum")
    return isinstance(maximum, int) and maximum <= INT32_MAX


def ecma_pattern(pattern: str) -> str:
    """The pattern as ECMA-262 reads it with the flag `u`.

    Quotes are escaped by their number, since some generators put patterns between quotes.
    """
    found: list[str] = []
    in_class, position = False, 0
    while position < len(pattern):
        sign = pattern[position]
        escaped = sign == "\\" and position + 1 < len(pattern)
        if escaped:
            position += 1
            sign = pattern[position]
        position += 1
        if sign == '"':
            found.append(r"\u0022")
        elif escaped:
            found.append(_escape(sign, in_class=in_class))
        else:
            if sign == "[" and not in_class:
                in_class = True
            elif sign == "]":
                in_class = False
            found.append(sign)
    return re.sub(r"\(\?P<(?=[A-Za-z_]\w*>)", "(?<", "".join(found))


def _escape(sign: str, *, in_class: bool) -> str:
    if sign in _ANCHORS and not in_class:
        return _ANCHORS[sign]
    if sign.isalnum() or sign in _SIGNS or (sign == "-" and in_class):
        return f"\\{sign}"
    return sign
