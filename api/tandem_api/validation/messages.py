"""What a JSON Schema refused, in sentences with pointers (RFC 6901) to the very field."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jsonschema_rs import ValidationError

MOST = 20  # errors of one request
SHOWN = 100  # characters of a value that is quoted
LONGEST = 500  # characters of a schema's own sentence

Explained = tuple[str, str]  # pointer, sentence


def pointer(path: Iterable[str | int]) -> str:
    """The JSON pointer to a place."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def explain(errors: Iterable[ValidationError], *schemas: Any) -> list[Explained]:
    """At most MOST errors, each place once; `schemas` are those by which they were found, for the words in them."""
    found: dict[str, str] = {}
    for error in errors:
        for at, text in _explain(error, schemas):
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


def _explain(error: ValidationError, schemas: Sequence[Any]) -> Iterator[Explained]:
    path, name, kind = error.instance_path, error.kind.name, error.kind.as_dict()
    if name == "required":
        yield pointer([*path, kind["property"]]), "is required"
    elif name in ("additionalProperties", "unevaluatedProperties"):
        for field in kind["unexpected"][:MOST]:
            yield pointer([*path, field]), "is not a known field"
    elif name in ("anyOf", "oneOf") and kind.get("context"):
        yield from _nearest(error, kind["context"], schemas)
    elif name == "propertyNames":
        inner: ValidationError = kind["error"]
        if inner.kind.name == "not":
            yield pointer([*path, str(inner.instance)]), _unwanted(inner, schemas)[1]
            return
        for _, text in _explain(inner, schemas):
            yield pointer(path), f"has a field whose name {text}"
    elif name == "not":
        yield _unwanted(error, schemas)
    elif name in _SENTENCES:
        yield pointer(path), _SENTENCES[name](kind)
    else:
        yield pointer(path), "is not valid" if name == "falseSchema" else _shown(error.message)


# Of a `not` that says one thing only, that thing.
_NEGATIONS: dict[str, Callable[[Any], str]] = {
    "const": lambda value: f"must not be {_shown(value)}",
    "enum": lambda values: f"must not be one of {_listed(values)}",
    "pattern": lambda pattern: f"must not match {_shown(pattern)}",
    "type": lambda names: _types([names] if isinstance(names, str) else names).replace(
        "must be", "must not be"
    ),
}


def _unwanted(error: ValidationError, schemas: Sequence[Any]) -> Explained:
    """What a `not` refuses: in its author's words, a `description`; else as far as it can be told from the schema."""
    path, schema = error.instance_path, error.kind.as_dict()["schema"]
    schema = schema if isinstance(schema, dict) else {}
    text = schema.get("description") or _around(error, schemas)
    if isinstance(text, str) and text:
        return pointer(path), text[:LONGEST]
    names = [name for name in schema.get("required", ()) if isinstance(name, str)]
    if isinstance(error.instance, dict) and names and all(name in error.instance for name in names):
        *others, last = names
        beside = f" together with {_listed(others)}" if others else ""
        return pointer([*path, last]), f"must not be there{beside}"
    if len(schema) == 1 and (word := next(iter(schema))) in _NEGATIONS:
        return pointer(path), _NEGATIONS[word](schema[word])
    return pointer(path), "has what must not be there" if isinstance(
        error.instance, dict
    ) else "is not allowed"


def _around(error: ValidationError, schemas: Sequence[Any]) -> Any:
    """The description of a rule that is nothing but this `not`: of a larger schema, it would be of something else."""
    for schema in schemas:
        found = schema
        try:
            for part in error.schema_path[:-1]:
                found = found[part]
        except (KeyError, IndexError, TypeError):
            continue  # the path is of another schema
        if isinstance(found, dict) and found.keys() == {"not", "description"}:
            return found["description"]
    return None


def _nearest(
    error: ValidationError, branches: list[list[ValidationError]], schemas: Sequence[Any]
) -> Iterator[Explained]:
    """Of several alternatives, what is wrong with the one that the value comes nearest to."""
    here = len(error.instance_path)
    wanted: set[str] = set()
    near: list[list[ValidationError]] = []
    for branch in branches:
        kinds = [
            one.kind for one in branch if len(one.instance_path) == here and one.kind.name == "type"
        ]
        if kinds:
            wanted.update(*(kind.as_dict()["types"] for kind in kinds))
        elif branch:
            near.append(branch)
    if near:
        best = max(
            near, key=lambda branch: (max(len(one.instance_path) for one in branch), -len(branch))
        )
        for one in best:
            yield from _explain(one, schemas)
    elif wanted:
        yield pointer(error.instance_path), _types(wanted)
    else:
        yield (
            pointer(error.instance_path),
            "fits more than one of the alternatives, which exclude each other",
        )
