"""`job.step("name", fn, …)`: run once per job, however many attempts it takes.

The result is stored as JSON and always returned as read back from that JSON, the first time too: in
the type that `fn` is annotated to return, where pydantic knows it, else as plain values.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Protocol

import msgspec
from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from tandem_shared.queue.steps import MAX_JOB_STEP_BYTES, MAX_JOB_STEPS, MAX_STEP_BYTES
from tandem_worker.annotations import UNKNOWN, resolve
from tandem_worker.encoding import encode
from tandem_worker.errors import Misuse, Permanent
from tandem_worker.jobs.channel import Channel

InThread = Callable[
    [Callable[[], Any]], Awaitable[Any]
]  # calls a function that would block the loop

MAX_NAME_CHARS = 200


class StepStore(Protocol):
    """Keeps results as JSON: `runtime.attempt_store.AttemptStore` or, in tests, `LocalSteps`."""

    async def load(self) -> dict[str, bytes]:
        """All results of earlier attempts."""

    async def keep(self, name: str, body: bytes) -> bytes:
        """Store a result, unless there is one already; return the one that is stored now."""


class JobSteps:
    """The steps of one attempt; earlier results are loaded with the first step."""

    __slots__ = ("_loading", "_results", "_store", "_taken")

    def __init__(self, store: StepStore) -> None:
        self._store = store
        self._results: dict[str, bytes] | None = None  # of earlier attempts, not yet returned
        self._taken: set[str] = set()
        self._loading = asyncio.Lock()

    async def take(self, name: str) -> bytes | None:
        """The stored result of a step. None: run the step, then call `keep` or `drop`.

        Raises Permanent `step_repeated` for a name that this attempt has already taken.
        """
        if name in self._taken:
            raise Permanent(
                "step_repeated",
                f"this attempt already had a step {name!r}; each needs a different name,"
                " even in a loop",
            )
        self._taken.add(name)
        try:
            async with self._loading:
                if self._results is None:
                    self._results = await self._store.load()
        except BaseException:
            self._taken.discard(name)
            raise
        return self._results.pop(name, None)

    async def keep(self, name: str, body: bytes) -> bytes:
        """Store the result of a step that was taken, see `StepStore.keep`."""
        return await self._store.keep(name, body)

    def drop(self, name: str) -> None:
        """The step failed: its name may be taken again."""
        self._taken.discard(name)


class StepResult:
    """Writes and reads the results of one step's function."""

    __slots__ = ("_adapter", "_name")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a step is a string, not {name!r}")
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise ValueError(
                f"{name[:50]!r} cannot name a step; use 1 to {MAX_NAME_CHARS} characters,"
                f" not {len(name)}"
            )
        if inspect.iscoroutine(function):
            function.close()
        if not callable(function):
            raise TypeError(
                f"job.step({name!r}, …) takes a function and its arguments, not what it returned"
            )
        self._name = name
        self._adapter = _return_adapter(function)

    def write(self, value: Any) -> tuple[bytes, Any]:
        """The JSON, and the value read back from it. Raises Misuse, Permanent `too_large`."""
        try:
            body = encode(value, self._adapter)
        except Misuse as error:
            raise Misuse(f"the result of the step {self._name!r} is not JSON: {error}") from None
        if len(body) > MAX_STEP_BYTES:
            raise Permanent(
                "too_large",
                f"the result of the step {self._name!r} has {len(body)} bytes;"
                f" the limit is {MAX_STEP_BYTES}",
            )
        return body, self.read(body)

    def read(self, body: bytes) -> Any:
        """The value of the JSON. Raises TypeError if it does not fit the function's return type."""
        if self._adapter is None:
            return msgspec.json.decode(body)
        try:
            return self._adapter.validate_json(body)
        except ValidationError as error:
            reason = error.errors(include_url=False, include_context=False, include_input=False)
            raise TypeError(
                f"the result of the step {self._name!r} does not fit the return type that its"
                f" function declares: {reason[0]['msg']}"
            ) from None


async def run_step(
    steps: JobSteps, name: str, result: StepResult, call: Callable[[], Any], in_thread: InThread
) -> Any:
    """Run one step of code on the loop, see `Job.step`."""
    kept = await steps.take(name)
    if kept is not None:
        return result.read(kept)
    try:
        value = call() if is_async(call) else await in_thread(call)
        if inspect.isawaitable(value):
            value = await value
        body, value = result.write(value)
        kept = await steps.keep(name, body)
    except BaseException:
        steps.drop(name)
        raise
    return value if kept == body else result.read(kept)


def run_sync_step(channel: Channel, name: str, result: StepResult, call: Callable[[], Any]) -> Any:
    """Run one step of `def` code where that code runs, see `SyncJob.step`."""
    kept = channel.call("step", name)
    if kept:
        return result.read(kept)
    try:
        body, value = result.write(call())
        kept = channel.call("keep", name, body)
    except BaseException:
        with suppress(asyncio.CancelledError):  # the attempt is over, and its steps with it
            channel.call("drop", name)
        raise
    return value if kept == body else result.read(kept)


def too_many_steps() -> Permanent:
    """The job's steps exceed what Redis keeps of them."""
    return Permanent(
        "too_large",
        f"the job has more than {MAX_JOB_STEPS} steps,"
        f" or more than {MAX_JOB_STEP_BYTES >> 20} MiB of results",
    )


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling the function returns an awaitable."""
    function = function.func if isinstance(function, partial) else function
    # The class's own __call__, if there is one: whether the object is callable is not the question.
    method = getattr(type(function), "__call__", None)  # noqa: B004 - see above
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method)


def _return_adapter(function: Any) -> TypeAdapter[Any] | None:
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, type):
        return _adapter(function)
    if not inspect.isroutine(function):
        function = type(function).__call__
    note = getattr(function, "__annotations__", {}).get("return")
    hint = None if note is None else resolve(function, "return", note, {})
    try:
        return _adapter(hint)
    except TypeError:  # an annotation may contain unhashable values, which no cache takes
        return _adapter.__wrapped__(hint)


@lru_cache(maxsize=256)
def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    if hint in (UNKNOWN, Any, None, type(None)):
        return None
    try:
        return TypeAdapter(hint)
    except (PydanticUserError, PydanticSchemaGenerationError):
        return None


class LocalSteps:
    """Results in a dictionary, for tests: `values` has them decoded, and may be given."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    async def load(self) -> dict[str, bytes]:
        return {name: encode(value) for name, value in self.values.items()}

    async def keep(self, name: str, body: bytes) -> bytes:
        self.values[name] = msgspec.json.decode(body)
        return body
