"""Validation errors as sentences, each with a JSON pointer (RFC 6901) to its field."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jsonschema_rs import ValidationError

MAX_ERRORS = 20  # of one request
MAX_VALUE_CHARS = 100  # of a value that is quoted
MAX_COMPARED_CHARS, MAX_DIFFERENT_CHARS = 100, 2  # of names that are compared
MAX_DESCRIPTION_CHARS = 500  # of a sentence from the schema itself

FieldError = tuple[str, str]  # pointer, sentence


def pointer(path: Iterable[str | int]) -> str:
    """The JSON pointer to a place."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def explain(errors: Iterable[ValidationError], *schemas: Any) -> list[FieldError]:
    """At most MAX_ERRORS sentences, one per place; descriptions are looked up in the `schemas`."""
    found: dict[str, str] = {}
    for error in errors:
        for place, sentence in _explain(error, schemas):
            found.setdefault(place, sentence)
            if len(found) == MAX_ERRORS:
                return list(found.items())
    return list(found.items())


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'other'?`, or nothing if no known name is close."""
    close = next((other for other in known if _is_close(name, other)), None)
    return "" if close is None else f"; did you mean {close!r}?"


def _is_close(name: str, other: str) -> bool:
    """Whether the names differ in one place, by at most two characters.

    A bulk may have a hundred thousand unknown names, and difflib would take seconds for them.
    """
    longer, shorter = max(len(name), len(other)), min(len(name), len(other))
    if longer - shorter > MAX_DIFFERENT_CHARS or longer > MAX_COMPARED_CHARS:
        return False
    start = end = 0
    while start < shorter and name[start] == other[start]:
        start += 1
    while end < shorter - start and name[-1 - end] == other[-1 - end]:
        end += 1
    different = longer - start - end
    return different <= MAX_DIFFERENT_CHARS and 2 * different < longer


def _quoted(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}…"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(_quoted(value) for value in values if value is not None)


_TYPES = {
    "array": "an array",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}


def _types(names: str | Iterable[str]) -> str:
    names = {names} if isinstance(names, str) else set(names)
    # Where null is allowed it means "left out", so it is not mentioned.
    named = [_TYPES.get(name, name) for name in sorted(names - {"null"})] or ["null"]
    return f"must be {' or '.join(named)}"


# For each keyword of a schema, the sentence and the argument that fills it in.
_LIMITS = {
    "exclusiveMaximum": "must be less than {limit}",
    "exclusiveMinimum": "must be more than {limit}",
    "maxItems": "must have at most {limit} items",
    "maxLength": "must have at most {limit} characters",
    "maxProperties": "must have at most {limit} fields",
    "maximum": "must be at most {limit}",
    "minItems": "must have at least {limit} items",
    "minLength": "must have at least {limit} characters",
    "minProperties": "must have at least {limit} fields",
    "minimum": "must be at least {limit}",
    "multipleOf": "must be a multiple of {multiple_of}",
    "uniqueItems": "must not have an item twice",
}
_SENTENCES: dict[str, Callable[[dict[str, Any]], str]] = {
    "const": lambda kind: f"must be {_quoted(kind['expected_value'])}",
    "enum": lambda kind: f"must be one of {_listed(kind['options'])}",
    "format": lambda kind: f"must have the format {_quoted(kind['format'])}",
    "pattern": lambda kind: f"must match {_quoted(kind['pattern'])}",
    "type": lambda kind: _types(kind["types"]),
}


def _explain(error: ValidationError, schemas: Sequence[Any]) -> Iterator[FieldError]:
    path, name, kind = error.instance_path, error.kind.name, error.kind.as_dict()
    if name == "required":
        yield pointer([*path, kind["property"]]), "is required"
    elif name in ("additionalProperties", "unevaluatedProperties"):
        known = _schema_around(error, schemas).get("properties") or {}
        for field in kind["unexpected"][:MAX_ERRORS]:
            yield pointer([*path, field]), f"is not a known field{did_you_mean(field, known)}"
    elif name in ("anyOf", "oneOf") and kind.get("context"):
        yield from _explain_nearest(error, kind["context"], schemas)
    elif name == "propertyNames":
        yield from _explain_name(path, kind["error"], schemas)
    elif name == "not":
        yield _explain_not(error, schemas)
    elif name in _LIMITS:
        yield pointer(path), _LIMITS[name].format_map(kind)
    elif name in _SENTENCES:
        yield pointer(path), _own_message(error, schemas) or _SENTENCES[name](kind)
    else:
        yield pointer(path), "is not valid" if name == "falseSchema" else _quoted(error.message)


def _explain_name(
    path: Sequence[str | int], error: ValidationError, schemas: Sequence[Any]
) -> Iterator[FieldError]:
    """What is wrong with the name of a field."""
    if error.kind.name == "not":
        yield pointer([*path, str(error.instance)]), _explain_not(error, schemas)[1]
        return
    for _, sentence in _explain(error, schemas):
        yield pointer(path), f"has a field whose name {sentence}"


# The name under which jsonschema-rs reports the value of a keyword.
_ARGUMENTS = {"const": "expected_value", "enum": "options", "pattern": "pattern", "type": "types"}


def _explain_not(error: ValidationError, schemas: Sequence[Any]) -> FieldError:
    """What a `not` rejects, by the schema's `description` or its keywords."""
    path, schema = error.instance_path, error.kind.as_dict()["schema"]
    schema = schema if isinstance(schema, dict) else {}
    text = schema.get("description") or _description_around(error, schemas)
    if isinstance(text, str) and text:
        return pointer(path), text[:MAX_DESCRIPTION_CHARS]
    found = error.instance if isinstance(error.instance, dict) else None
    names = [name for name in schema.get("required", ()) if isinstance(name, str)]
    if found is not None and names and all(name in found for name in names):
        *others, last = names
        beside = f" together with {_listed(others)}" if others else ""
        return pointer([*path, last]), f"is not allowed{beside}"
    if len(schema) == 1 and (keyword := next(iter(schema))) in _ARGUMENTS:
        sentence = _SENTENCES[keyword]({_ARGUMENTS[keyword]: schema[keyword]})
        return pointer(path), sentence.replace("must", "must not", 1)
    if found is None:
        return pointer(path), "is not allowed"
    return pointer(path), "has a combination of fields that is not allowed"


def _description_around(error: ValidationError, schemas: Sequence[Any]) -> Any:
    """The description next to a `not`, unless other keywords could be meant by it."""
    found = _schema_around(error, schemas)
    return found["description"] if found.keys() == {"not", "description"} else None


def _own_message(error: ValidationError, schemas: Sequence[Any]) -> str | None:
    """What a schema has to say about its pattern, under the name that ajv-errors uses."""
    text = _schema_around(error, schemas).get("errorMessage")
    named = error.kind.name == "pattern" and isinstance(text, str)
    return str(text)[:MAX_DESCRIPTION_CHARS] if named else None


def _schema_around(error: ValidationError, schemas: Sequence[Any]) -> dict[str, Any]:
    """The schema with the keyword that failed, in the first of `schemas` that has its path."""
    for schema in schemas:
        found = schema
        try:
            for part in error.schema_path[:-1]:
                found = found[part]
        except (KeyError, IndexError, TypeError):
            continue  # the path is relative to another schema
        if isinstance(found, dict) and error.schema_path[-1] in found:
            return found
    return {}


def _explain_nearest(
    error: ValidationError, branches: list[list[ValidationError]], schemas: Sequence[Any]
) -> Iterator[FieldError]:
    """What is wrong with the alternative that the value comes closest to."""
    depth = len(error.instance_path)
    types: set[str] = set()
    near: list[list[ValidationError]] = []
    for branch in branches:
        wrong = [
            one.kind
            for one in branch
            if len(one.instance_path) == depth and one.kind.name == "type"
        ]
        if wrong:
            types.update(*(kind.as_dict()["types"] for kind in wrong))
        elif branch:
            near.append(branch)
    if near:
        nearest = max(
            near, key=lambda branch: (max(len(one.instance_path) for one in branch), -len(branch))
        )
        for one in nearest:
            yield from _explain(one, schemas)
    elif types:
        yield pointer(error.instance_path), _types(types)
    else:
        yield (
            pointer(error.instance_path),
            "matches more than one of the alternatives, which exclude each other",
        )
