"""A task: a kind of work with a stable name, its function, its schemas and its defaults.

    @task("greet", timeout="5s")
    async def greet(job: Job, payload: Greeting) -> str: ...

`async def` runs on the event loop, `def` in a thread, `def` with `cpu=True` in a process of its
own; what a generator yields is streamed to the clients as output, and its result is null.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from inspect import cleandoc, isfunction
from typing import Any, TypeVar, get_args

import msgspec
from pydantic import TypeAdapter, ValidationError

from tandem_shared import catalogue
from tandem_shared.jobs.states import Priority
from tandem_shared.retry import RetryPolicy
from tandem_shared.settings import QUEUE_NAME_PATTERN
from tandem_shared.times import Duration, parse_duration
from tandem_worker.encoding import decode_exactly, encode
from tandem_worker.jobs.logs import following
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.signature import Kind, Signature, describe, read

TIMEOUT = 30.0  # seconds, of a task that does not say
MAX_TIMEOUT = 86400.0  # seconds
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One kind of work, complete; `entry` is what the catalogue says of it."""

    function: Callable[..., Any]
    signature: Signature
    entry: catalogue.CatalogueEntry

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def version(self) -> int:
        return self.entry.version

    @property
    def module(self) -> str:
        return self.function.__module__

    @property
    def kind(self) -> Kind:
        """Where it runs: on the loop (`async`, `stream`), in a `thread`, in a `process`."""
        return self.signature.kind

    @property
    def timeout(self) -> float:
        """Seconds."""
        return float(self.entry.defaults["timeout"])

    @property
    def retry(self) -> RetryPolicy:
        return RetryPolicy.model_validate(self.entry.defaults["retry"])

    @property
    def payload_type(self) -> TypeAdapter[Any]:
        return self.signature.payload

    def decode(self, payload: bytes) -> Any:
        """The payload as `execute` takes it. Raises pydantic.ValidationError."""
        validator = self.signature.payload.validator
        if self.signature.exact_numbers:
            value = validator.validate_python(decode_exactly(payload))
        else:
            value = validator.validate_json(payload)
        # A process gets the JSON itself and decodes it there: objects do not cross that border.
        return msgspec.Raw(payload) if self.signature.kind == "process" else value

    def encode(self, result: Any) -> bytes:
        """JSON of what `execute` returned. Raises TypeError, in one sentence, for what JSON cannot hold."""
        try:
            return encode(result, self.signature.result)
        except TypeError as error:
            raise TypeError(f"the result of {self.name} is no JSON: {error}") from None

    def arguments(self, job: Any, payload: Any) -> list[Any]:
        """What the function is called with, in its order."""
        return [job if parameter == "job" else payload for parameter in self.signature.parameters]


def task(
    name: str,
    *,
    timeout: Duration | None = None,
    retry: RetryPolicy | None = None,
    queue: str = "default",
    priority: Priority = "normal",
    concurrency: int | None = None,
    rate: str | None = None,
    cpu: bool = False,
    version: int = 1,
    example: Any = None,
    summary: str | None = None,
) -> Callable[[F], F]:
    """Make a function a task. It stays the function it was and can be called as before.

    `timeout` (30 s) and `retry` (3 attempts, exponential) hold for jobs that do not say otherwise;
    `summary` is the docstring's first paragraph if not given; `example` is a payload for the
    documentation. Over all workers, at most `concurrency` attempts run at once, and no more start
    than `rate` (`10/s`, `100/m`, `5/10s`) says; the limits of the newest version hold. Raise
    `version` when old workers must not run jobs that were validated against the new payload. Wrong
    use raises TypeError or ValueError here, where it is written, in a sentence that names the
    function.
    """
    # The names around the decorated function: models may be local to the function that defines the
    # task.
    scope = dict(sys._getframe(1).f_locals)  # noqa: SLF001 - nothing else gives them

    def decorate(function: F) -> F:
        if not isfunction(function):
            raise TypeError(f"@task({name!r}) is put on a function, {function!r} is none")
        with _naming(function):
            signature = read(function, cpu=cpu, scope=scope)
            entry = catalogue.CatalogueEntry(
                name=_name(name),
                summary=_summary(function) if summary is None else summary,
                queue=_queue(queue),
                payload_schema=signature.payload_schema,
                result_schema=signature.result_schema,
                defaults=_defaults(timeout, priority, retry) | _limits(concurrency, rate),
                example=_example(signature, example),
                version=_version(version),
            )
        made = Task(function, signature, entry)
        function.__tandem_task__ = made  # type: ignore[attr-defined] # where `of` finds it
        return function

    if callable(name):
        raise TypeError(f'the task {describe(name)} has no name: write @task("some.name")')
    return decorate


def of(function: Any) -> Task:
    """The task that a decorated function is; a Task is itself. Raises TypeError for anything else."""
    found = function if isinstance(function, Task) else getattr(function, "__tandem_task__", None)
    if not isinstance(found, Task):
        raise TypeError(f'{function!r} is no task: decorate it with @task("some.name")')
    return found


# ------------------------------------------------------------------------- what the decorator takes


@contextmanager
def _naming(function: Callable[..., Any]) -> Iterator[None]:
    """Errors inside begin with the function they are about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"the task {describe(function)} {error}") from None


def _name(name: Any) -> str:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None or len(name) > 128:
        raise ValueError(
            f"is named {name!r}: a name is lower-case words joined by dots, such as image.thumbnail"
        )
    return name


def _queue(queue: Any) -> str:
    if not isinstance(queue, str) or re.fullmatch(QUEUE_NAME_PATTERN, queue) is None:
        raise ValueError(f"has queue={queue!r}: letters, digits, '.', '_' and '-', at most 64")
    return queue


def _version(version: Any) -> int:
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"has version={version!r}: versions are 1, 2, 3, …")
    return version


def _defaults(timeout: Any, priority: Any, retry: Any) -> dict[str, Any]:
    try:
        limit = TIMEOUT if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise ValueError(f"has a wrong timeout: {error}") from None
    if not 0 < limit <= MAX_TIMEOUT:
        raise ValueError(f"has a timeout of {limit:g} s: it must be above 0 and at most 24h")
    if priority not in get_args(Priority):
        raise ValueError(f"has priority={priority!r}: it is high, normal or low")
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise TypeError(f"has retry={retry!r}: write retry=RetryPolicy(max_attempts=3)")
    return {"timeout": limit, "priority": priority, "retry": (retry or RetryPolicy()).model_dump()}


def _limits(concurrency: Any, rate: Any) -> dict[str, Any]:
    if concurrency is not None and (
        isinstance(concurrency, bool) or not isinstance(concurrency, int)
    ):
        raise TypeError(
            f"has concurrency={concurrency!r}: it is how many may run at once, such as 10"
        )
    if rate is not None and not isinstance(rate, str):
        raise TypeError(f"has rate={rate!r}: it is a text such as 10/s, 100/m or 5/10s")
    try:
        catalogue.parse_limits(concurrency, rate)
    except ValueError as error:
        raise ValueError(f"has {error}") from None
    return {
        name: value
        for name, value in (("concurrency", concurrency), ("rate", rate))
        if value is not None
    }


def _summary(function: Callable[..., Any]) -> str:
    return " ".join(cleandoc(function.__doc__ or "").partition("\n\n")[0].split())


def _example(signature: Signature, example: Any) -> Any:
    """The example as JSON values, after both judges of a payload, schema and type, have accepted it."""
    if example is None:
        return None
    import jsonschema_rs  # noqa: PLC0415 - only tasks with an example need it

    body = encode(example)
    value = msgspec.json.decode(body)
    try:
        jsonschema_rs.validator_for(signature.payload_schema).validate(value)
        signature.payload.validate_json(body)
    except jsonschema_rs.ValidationError as error:
        raise ValueError(f"has an example that its own payload refuses: {error.message}") from None
    except ValidationError as error:
        raise ValueError(
            f"has an example that its own payload refuses: {error.errors()[0]['msg']}"
        ) from None
    return value


# --------------------------------------------------------------------------------- finding, running


def call(task: "Task", job: SyncJob, payload: Any) -> Any:
    """Call the task's function here and now; what a generator yields is emitted."""
    with following(job.log.write):
        outcome = task.function(*task.arguments(job, payload))
        if not task.signature.generator:
            return outcome
        with closing(outcome) as items:
            for item in items:
                job.emit(item)
    return None
