"""A task: a kind of work with a stable name, its function, its schemas and its defaults.

    @task("greet", timeout="5s")
    async def greet(job: Job, payload: Greeting) -> str: ...

`async def` runs on the event loop, `def` in a thread, `def` with `cpu=True` in a child process. A
generator's items are streamed to clients as output, and its result is null.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from inspect import cleandoc, isfunction
from typing import Any, TypeVar, get_args

import msgspec
from pydantic import ValidationError

from tandem_shared import catalogue
from tandem_shared.jobs.states import Priority
from tandem_shared.retry_policy import RetryPolicy
from tandem_shared.settings import QUEUE_NAME_PATTERN
from tandem_shared.times import Duration, parse_duration
from tandem_worker.encoding import decode_exactly, encode
from tandem_worker.errors import Misuse
from tandem_worker.jobs.logs import LogCapture
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.signature import Kind, Signature, describe, read_signature

DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_TIMEOUT_SECONDS = 86400.0
MAX_NAME_CHARS = 128
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One kind of work; `entry` is its description in the catalogue."""

    function: Callable[..., Any]
    signature: Signature
    entry: catalogue.CatalogueEntry

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def module(self) -> str:
        return self.function.__module__

    @property
    def kind(self) -> Kind:
        """Where it runs: on the loop (`async`, `stream`), in a `thread`, or in a `process`."""
        return self.signature.kind

    @property
    def timeout(self) -> float:
        """Seconds."""
        return float(self.entry.defaults["timeout"])

    @property
    def retry(self) -> RetryPolicy:
        return RetryPolicy.model_validate(self.entry.defaults["retry"])

    def decode(self, payload: bytes) -> Any:
        """The payload as `execute` takes it. Raises pydantic.ValidationError."""
        validator = self.signature.payload.validator
        if self.signature.exact_numbers:
            value = validator.validate_python(decode_exactly(payload))
        else:
            value = validator.validate_json(payload)
        # A process gets the JSON and decodes it there: objects do not cross the pipe.
        return msgspec.Raw(payload) if self.signature.kind == "process" else value

    def encode(self, result: Any) -> bytes:
        """The JSON of what `execute` returned. Raises Misuse, in one sentence."""
        try:
            return encode(result, self.signature.result)
        except Misuse as error:
            raise Misuse(f"the result of {self.name} is not JSON: {error}") from None

    def arguments(self, job: Any, payload: Any) -> list[Any]:
        """The arguments of a call, in the function's order."""
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
    """Make a function a task. It stays the function it was and can still be called directly.

    `timeout` (30 s) and `retry` (3 attempts, exponential) are defaults that a job can override.
    `summary` defaults to the docstring's first paragraph; `example` is a payload for the
    documentation. Over all workers, at most `concurrency` attempts run at once, and no more than
    `rate` (`10/s`, `100/m`, `5/10s`) start; the newest version's limits apply. Raise `version` when
    old workers must not run jobs that were validated against the new payload. Wrong use raises
    TypeError or ValueError at the decorator, with the name of the function.
    """
    # Annotations may name models that are local to the function around the decorated one.
    scope = dict(sys._getframe(1).f_locals)  # noqa: SLF001 - nothing else gives them

    def decorate(function: F) -> F:
        if not isfunction(function):
            raise TypeError(f"@task({name!r}) decorates functions, and {function!r} is not one")
        with _naming(function):
            signature = read_signature(function, cpu=cpu, scope=scope)
            entry = catalogue.CatalogueEntry(
                name=_checked_name(name),
                summary=_summary(function) if summary is None else summary,
                queue=_checked_queue(queue),
                payload_schema=signature.payload_schema,
                result_schema=signature.result_schema,
                defaults=_defaults(timeout, priority, retry) | _limits(concurrency, rate),
                example=_checked_example(signature, example),
                version=_checked_version(version),
            )
        made = Task(function, signature, entry)
        function.__tandem_task__ = made  # type: ignore[attr-defined] # where `find_task` looks
        return function

    if callable(name):
        raise TypeError(f'the task {describe(name)} has no name; write @task("some.name")')
    return decorate


def find_task(value: Any) -> Task | None:
    """The task of a decorated function; None for anything else."""
    found = getattr(value, "__tandem_task__", None)
    return found if isinstance(found, Task) else None


def task_of(function: Any) -> Task:
    """The task of a decorated function; a Task is its own. Raises TypeError for anything else."""
    found = function if isinstance(function, Task) else find_task(function)
    if found is None:
        raise TypeError(f'{function!r} is not a task; decorate it with @task("some.name")')
    return found


@contextmanager
def _naming(function: Callable[..., Any]) -> Iterator[None]:
    """Prefix the errors of the block with the function's name."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"the task {describe(function)} {error}") from None


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None or len(name) > MAX_NAME_CHARS:
        raise ValueError(
            f"is named {name!r}; use lower-case words joined by dots, such as image.thumbnail,"
            f" at most {MAX_NAME_CHARS} characters"
        )
    return name


def _checked_queue(queue: Any) -> str:
    if not isinstance(queue, str) or re.fullmatch(QUEUE_NAME_PATTERN, queue) is None:
        raise ValueError(f"has queue={queue!r}; use at most 64 letters, digits, '.', '_' and '-'")
    return queue


def _checked_version(version: Any) -> int:
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"has version={version!r}; use 1, 2, 3, …")
    return version


def _defaults(timeout: Any, priority: Any, retry: Any) -> dict[str, Any]:
    try:
        limit = DEFAULT_TIMEOUT_SECONDS if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise ValueError(f"has a wrong timeout: {error}") from None
    if not 0 < limit <= MAX_TIMEOUT_SECONDS:
        raise ValueError(f"has a timeout of {limit:g} s; it must be above 0 and at most 24h")
    if priority not in get_args(Priority):
        raise ValueError(f"has priority={priority!r}; use high, normal or low")
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise TypeError(f"has retry={retry!r}; use retry=RetryPolicy(max_attempts=3)")
    return {"timeout": limit, "priority": priority, "retry": (retry or RetryPolicy()).model_dump()}


def _limits(concurrency: Any, rate: Any) -> dict[str, Any]:
    if isinstance(concurrency, bool) or not isinstance(concurrency, int | None):
        raise TypeError(
            f"has concurrency={concurrency!r}; use the number of attempts that may run at once,"
            " such as 10"
        )
    if not isinstance(rate, str | None):
        raise TypeError(f"has rate={rate!r}; use a string such as 10/s, 100/m or 5/10s")
    try:
        catalogue.parse_limits(concurrency, rate)
    except ValueError as error:
        raise ValueError(f"has {error}") from None
    limits = {"concurrency": concurrency, "rate": rate}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _summary(function: Callable[..., Any]) -> str:
    return " ".join(cleandoc(function.__doc__ or "").partition("\n\n")[0].split())


def _checked_example(signature: Signature, example: Any) -> Any:
    """The example as JSON values, after both the payload's schema and its type have accepted it."""
    if example is None:
        return None
    import jsonschema_rs  # noqa: PLC0415 - only tasks with an example need it

    body = encode(example)
    value = msgspec.json.decode(body)
    try:
        jsonschema_rs.validator_for(signature.payload_schema).validate(value)
        signature.payload.validate_json(body)
    except (jsonschema_rs.ValidationError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.message
        raise ValueError(f"has an example that its payload rejects: {reason}") from None
    return value


def call(task: Task, job: SyncJob, payload: Any) -> Any:
    """Call the function of a `def` task here and now, and emit the items of a generator."""
    with LogCapture(job, job.log.write):
        outcome = task.function(*task.arguments(job, payload))
        if not task.signature.generator:
            return outcome
        with closing(outcome) as items:
            for item in items:
                job.emit(item)
    return None
