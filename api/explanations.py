"""What a JSON Schema refused, in sentences with pointers (RFC 6901) to the very field."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jsonschema_rs import ValidationError

MOST = 20  # errors of one request
SHOWN = 100  # characters of a value that is quoted

Explained = tuple[str, str]  # pointer, sentence


def pointer(path: Iterable[str | int]) -> str:
    """The JSON pointer to a place."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def explain(errors: Iterable[ValidationError]) -> list[Explained]:
    """At most MOST errors, each place once."""
    found: dict[str, str] = {}
    for error in errors:
        for at, text in _explain(error):
            found.setdefault(at, text)
            if len(found) == MOST:
                return list(found.items())
    return list(found.items())


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(_shown(value) for value in values if value is not None)


_TYPES = {
    "array": "an array",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}


def _types(names: Iterable[str]) -> str:
    # That null is as good as left out need not be said of every field.
    named = [_TYPES.get(name, name) for name in sorted(set(names) - {"null"})] or ["null"]
    return f"must be {' or '.join(named)}"


_SENTENCES: dict[str, Callable[[dict[str, Any]], str]] = {
    "const": lambda kind: f"must be {_shown(kind['expected_value'])}",
    "enum": lambda kind: f"must be one of {_listed(kind['options'])}",
    "exclusiveMaximum": lambda kind: f"must be less than {kind['limit']}",
    "exclusiveMinimum": lambda kind: f"must be more than {kind['limit']}",
    "format": lambda kind: f"must have the format {_shown(kind['format'])}",
    "maxItems": lambda kind: f"must have at most {kind['limit']} items",
    "maxLength": lambda kind: f"must have at most {kind['limit']} characters",
    "maxProperties": lambda kind: f"must have at most {kind['limit']} fields",
    "maximum": lambda kind: f"must be at most {kind['limit']}",
    "minItems": lambda kind: f"must have at least {kind['limit']} items",
    "minLength": lambda kind: f"must have at least {kind['limit']} characters",
    "minProperties": lambda kind: f"must have at least {kind['limit']} fields",
    "minimum": lambda kind: f"must be at least {kind['limit']}",
    "multipleOf": lambda kind: f"must be a multiple of {kind['multiple_of']}",
    "pattern": lambda kind: f"must match {_shown(kind['pattern'])}",
    "type": lambda kind: _types(kind["types"]),
    "uniqueItems": lambda _kind: "must not have an item twice",
}


def _explain(error: ValidationError) -> Iterator[Explained]:
    path, name, kind = error.instance_path, error.kind.name, error.kind.as_dict()
    if name == "required":
        yield pointer([*path, kind["property"]]), "is required"
    elif name in ("additionalProperties", "unevaluatedProperties"):
        for field in kind["unexpected"][:MOST]:
            yield pointer([*path, field]), "is not a known field"
    elif name in ("anyOf", "oneOf") and kind.get("context"):
        yield from _nearest(error, kind["context"])
    elif name == "propertyNames":
        for _, text in _explain(kind["error"]):
            yield pointer(path), f"has a field whose name {text}"
    elif name in _SENTENCES:
        yield pointer(path), _SENTENCES[name](kind)
    else:
        yield pointer(path), "is not valid" if name == "falseSchema" else _shown(error.message)


def _nearest(error: ValidationError, branches: list[list[ValidationError]]) -> Iterator[Explained]:
    """Of several alternatives, what is wrong with the one that the value comes nearest to."""
    here = len(error.instance_path)
    wanted: set[str] = set()
    near: list[list[ValidationError]] = []
    for branch in branches:
        kinds = [one.kind for one in branch if len(one.instance_path) == here and one.kind.name == "type"]
        if kinds:
            wanted.update(*(kind.as_dict()["types"] for kind in kinds))
        elif branch:
            near.append(branch)
    if near:
        best = max(near, key=lambda branch: (max(len(one.instance_path) for one in branch), -len(branch)))
        for one in best:
            yield from _explain(one)
    elif wanted:
        yield pointer(error.instance_path), _types(wanted)
    else:
        yield pointer(error.instance_path), "fits more than one of the alternatives, which exclude each other"
