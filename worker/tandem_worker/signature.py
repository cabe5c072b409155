"""What a task's function takes and gives, read from its signature."""

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from tandem_worker.annotations import UNKNOWN, resolve
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob

Kind = Literal["async", "stream", "thread", "process"]
Parameter = Literal["job", "payload"]

OBJECT = dict[str, Any]  # the payload of a function that does not say what it takes
_JOBS = {"Job", "SyncJob"}


class Signature(NamedTuple):
    """How to call a function, and the types that cross the border of the service."""

    kind: Kind
    generator: bool  # yields items: its result is null
    parameters: tuple[Parameter, ...]  # in the order of the call
    payload: TypeAdapter[Any]
    result: TypeAdapter[Any] | None  # None: anything
    payload_schema: dict[str, Any]
    result_schema: dict[str, Any]
    exact_numbers: bool  # fractions in the payload are Decimal, with the digits that JSON has


def describe(function: Callable[..., Any]) -> str:
    """The function as an error calls it."""
    return f"{function.__module__}.{function.__qualname__}"


def read(function: Callable[..., Any], *, cpu: bool, scope: dict[str, Any]) -> Signature:
    """The signature of a task's function; `scope` has the names around its definition.

    Raises TypeError, a sentence that goes on from "the task <function>".
    """
    kind = _kind(function, cpu)
    generator = kind == "stream" or inspect.isgeneratorfunction(function)
    hints = {
        name: resolve(function, name, note, scope)
        for name, note in function.__annotations__.items()
    }
    parameters: list[Parameter] = []
    annotation: Any = OBJECT
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name, inspect.Parameter.empty)
        role: Parameter = "job" if _is_job(kind, parameter, hint) else "payload"
        if parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
            parameter.KEYWORD_ONLY,
        ):
            raise TypeError(
                f"cannot take {str(parameter).partition(':')[0]}: a task takes (job, payload)"
            )
        if role in parameters:
            raise TypeError(
                f"takes a second {role}, {parameter.name!r}: put all fields into one payload model"
            )
        parameters.append(role)
        if role == "payload" and hint is not inspect.Parameter.empty:
            if hint is UNKNOWN:
                text = function.__annotations__[parameter.name]
                raise TypeError(
                    f"annotates {parameter.name!r} with {text!r}, which is not known there"
                )
            annotation = hint
    payload = _payload(annotation)
    result, result_schema = (
        (None, {"type": "null"}) if generator else _result(hints.get("return", UNKNOWN))
    )
    return Signature(
        kind,
        generator,
        tuple(parameters),
        payload[0],
        result,
        payload[1],
        result_schema,
        getattr(annotation, "exact_numbers", False),
    )


def _kind(function: Callable[..., Any], cpu: bool) -> Kind:
    asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if cpu:
        if asynchronous:
            raise TypeError(
                "has cpu=True, which is for plain def: a process has no event loop to share"
            )
        if "<locals>" in function.__qualname__:
            raise TypeError(
                "has cpu=True and is defined inside a function: move it to the top of its module"
            )
        return "process"
    if inspect.isasyncgenfunction(function):
        return "stream"
    return "async" if asynchronous else "thread"


def _is_job(kind: Kind, parameter: inspect.Parameter, hint: Any) -> bool:
    if hint is Job or (isinstance(hint, type) and issubclass(hint, Job)):
        return True
    if hint is SyncJob:
        if kind in ("async", "stream"):
            raise TypeError("is async and gets a Job, not a SyncJob")
        return True
    if hint is UNKNOWN:
        # `if TYPE_CHECKING: from tandem_worker import Job`
        return str(parameter.annotation).rpartition(".")[2] in _JOBS or parameter.name == "job"
    return hint is inspect.Parameter.empty and parameter.name == "job"


def _payload(annotation: Any) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        return adapter, adapter.json_schema(mode="validation")
    except (
        PydanticUserError,
        PydanticSchemaGenerationError,
        PydanticInvalidForJsonSchema,
        NameError,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(f"takes a payload that has no JSON Schema: {reason}") from None


def _result(annotation: Any) -> tuple[TypeAdapter[Any] | None, dict[str, Any]]:
    """The declared result; where pydantic knows nothing of it, it is written as what it turns out to be."""
    if annotation is UNKNOWN or annotation is Any:
        return None, {}
    if annotation is None or annotation is type(None):
        return None, {"type": "null"}
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        return adapter, adapter.json_schema(mode="serialization")
    except (
        PydanticUserError,
        PydanticSchemaGenerationError,
        PydanticInvalidForJsonSchema,
        NameError,
    ):
        return None, {}
