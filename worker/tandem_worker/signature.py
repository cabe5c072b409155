"""What a task's function takes and returns, read from its signature."""

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import JsonSchemaMode

from tandem_worker.annotations import UNKNOWN, resolve
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob

Kind = Literal["async", "stream", "thread", "process"]
Role = Literal["job", "payload"]

UNTYPED_PAYLOAD = dict[str, Any]
_JOB_NAMES = {"Job", "SyncJob"}
_NO_SCHEMA = (
    PydanticUserError,
    PydanticSchemaGenerationError,
    PydanticInvalidForJsonSchema,
    NameError,
)


class Signature(NamedTuple):
    """How to call a function, and the types of its payload and result."""

    kind: Kind
    generator: bool  # yields items: its result is null
    parameters: tuple[Role, ...]  # in the order of the call
    payload: TypeAdapter[Any]
    result: TypeAdapter[Any] | None  # None: anything
    payload_schema: dict[str, Any]
    result_schema: dict[str, Any]
    exact_numbers: bool  # fractions in the payload are Decimal, with the digits that JSON has


def describe(function: Callable[..., Any]) -> str:
    """The function's name in error messages."""
    return f"{function.__module__}.{function.__qualname__}"


def read_signature(function: Callable[..., Any], *, cpu: bool, scope: dict[str, Any]) -> Signature:
    """The signature of a task's function; `scope` has the names around its definition.

    Raises TypeError with a message that continues "the task <function> …".
    """
    kind = _kind(function, cpu)
    generator = kind == "stream" or inspect.isgeneratorfunction(function)
    hints = {
        name: resolve(function, name, note, scope)
        for name, note in function.__annotations__.items()
    }
    roles: list[Role] = []
    payload: Any = UNTYPED_PAYLOAD
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name, inspect.Parameter.empty)
        role: Role = "job" if _is_job(kind, parameter, hint) else "payload"
        _check_parameter(parameter, role, roles)
        roles.append(role)
        if role == "payload" and hint is not inspect.Parameter.empty:
            if hint is UNKNOWN:
                text = function.__annotations__[parameter.name]
                raise TypeError(
                    f"annotates {parameter.name!r} with {text!r}, which cannot be resolved;"
                    " import or define that name in the module"
                )
            payload = hint
    try:
        adapter, schema = _adapter(payload, "validation")
    except _NO_SCHEMA as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(f"takes a payload that has no JSON Schema: {reason}") from None
    result, result_schema = _result(None if generator else hints.get("return", UNKNOWN))
    exact = getattr(payload, "exact_numbers", False)
    return Signature(kind, generator, tuple(roles), adapter, result, schema, result_schema, exact)


def _check_parameter(parameter: inspect.Parameter, role: Role, earlier: list[Role]) -> None:
    if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
        name = str(parameter).partition(":")[0]
        raise TypeError(f"cannot take {name}; a task takes (job, payload)")
    if role in earlier:
        raise TypeError(
            f"takes a second {role}, {parameter.name!r}; put all fields into one payload model"
        )


def _kind(function: Callable[..., Any], cpu: bool) -> Kind:
    stream = inspect.isasyncgenfunction(function)
    if not cpu:
        if stream:
            return "stream"
        return "async" if inspect.iscoroutinefunction(function) else "thread"
    if stream or inspect.iscoroutinefunction(function):
        raise TypeError(
            "has cpu=True, which is for plain def; a process does not share the event loop"
        )
    if "<locals>" in function.__qualname__:
        raise TypeError(
            "has cpu=True but is defined inside a function; move it to the top level of its module"
        )
    return "process"


def _is_job(kind: Kind, parameter: inspect.Parameter, hint: Any) -> bool:
    if hint is Job or (isinstance(hint, type) and issubclass(hint, Job)):
        return True
    if hint is SyncJob:
        if kind in ("async", "stream"):
            raise TypeError("is async and takes a SyncJob; use Job")
        return True
    if hint is UNKNOWN:
        # `if TYPE_CHECKING: from tandem_worker import Job`
        return str(parameter.annotation).rpartition(".")[2] in _JOB_NAMES or parameter.name == "job"
    return hint is inspect.Parameter.empty and parameter.name == "job"


def _result(hint: Any) -> tuple[TypeAdapter[Any] | None, dict[str, Any]]:
    """The declared result; if pydantic does not know it, results are written by their own types."""
    if hint is None or hint is type(None):
        return None, {"type": "null"}
    try:
        return (None, {}) if hint is UNKNOWN or hint is Any else _adapter(hint, "serialization")
    except _NO_SCHEMA:
        return None, {}


def _adapter(hint: Any, mode: JsonSchemaMode) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    adapter: TypeAdapter[Any] = TypeAdapter(hint)
    return adapter, adapter.json_schema(mode=mode)
