"""Resolves the annotations of a task's function."""

import inspect
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

UNKNOWN: Any = object()


def resolve(function: Callable[..., Any], name: str, note: Any, scope: dict[str, Any]) -> Any:
    """What an annotation means among the function's names and those of `scope`; UNKNOWN if that cannot be said."""
    # One by one: a return type that is only imported for type checkers must not hide the payload's.
    holder = SimpleNamespace(__annotations__={name: note})
    try:
        names = {**inspect.unwrap(function).__globals__, **scope}
        return typing.get_type_hints(holder, names, include_extras=True)[name]
    except Exception:  # noqa: BLE001 - evaluating an annotation runs the author's text: anything may come of it
        return UNKNOWN
