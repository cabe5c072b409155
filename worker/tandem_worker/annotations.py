"""Resolves the annotations of a task's function."""

import inspect
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

UNKNOWN: Any = object()


def resolve(function: Callable[..., Any], name: str, note: Any, scope: dict[str, Any]) -> Any:
    """The type that an annotation means among the function's globals and `scope`, or UNKNOWN."""
    # Each annotation alone: a return type that is only imported for type checkers must not hide the
    # type of the payload.
    holder = SimpleNamespace(__annotations__={name: note})
    try:
        names = {**inspect.unwrap(function).__globals__, **scope}
        return typing.get_type_hints(holder, names, include_extras=True)[name]
    except Exception:  # noqa: BLE001 - evaluating an annotation runs the author's text, which may raise anything
        return UNKNOWN
