"""`job.step("name", fn, …)`: what is done once a job, however many attempts it takes.

The result is kept as JSON, and given as what that JSON says, the first time and every later one:
decoded to the type that `fn` says it returns, where pydantic can, else to plain values.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from tandem_shared.queue.steps import MAX_JOB_STEP_BYTES, MAX_JOB_STEPS, MAX_STEP_BYTES
from tandem_worker.annotations import UNKNOWN, resolve
from tandem_worker.encoding import encode
from tandem_worker.errors import Permanent

if TYPE_CHECKING:
    from tandem_worker.jobs.channel import Channel

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]  # calls what would block the loop

LONGEST_NAME = 200  # characters


class Store(Protocol):
    """Who keeps results, as JSON. The worker's own is fenced.py, the tests' one is `LocalSteps`."""

    async def load(self) -> dict[str, bytes]:
        """All that earlier attempts have kept."""

    async def keep(self, name: str, body: bytes) -> bytes:
        """Keeps a result; returns what is kept now, which is an earlier one if there was one."""


class Steps:
    """The steps of one attempt; loaded when the first is taken."""

    __slots__ = ("_known", "_loading", "_store", "_taken")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, bytes] | None = (
            None  # kept by earlier attempts, and not asked for yet
        )
        self._taken: set[str] = set()
        self._loading = asyncio.Lock()

    async def take(self, name: str) -> bytes | None:
        """What is kept under the name. None: do it, and then `keep` or `drop` it.

        Raises Permanent `step_repeated` for a name that this attempt has taken before.
        """
        if name in self._taken:
            message = f"this attempt has had a step {name!r} before: each needs a name of its own, also in a loop"
            raise Permanent("step_repeated", message)
        self._taken.add(name)
        try:
            async with self._loading:
                if self._known is None:
                    self._known = await self._store.load()
        except BaseException:
            self._taken.discard(name)
            raise
        return self._known.pop(name, None)

    async def keep(self, name: str, body: bytes) -> bytes:
        """Keeps the result of a step that was taken; returns what is kept, see `Store.keep`."""
        return await self._store.keep(name, body)

    def drop(self, name: str) -> None:
        """The step failed: its name may be taken again."""
        self._taken.discard(name)


class Result:
    """How the results of one step's function are written and read."""

    __slots__ = ("_adapter", "_name")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a step is named by a string, {name!r} is none")
        if not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(
                f"a step's name has 1 to {LONGEST_NAME} characters, {name[:50]!r} has {len(name)}"
            )
        if inspect.iscoroutine(function):
            function.close()
        if not callable(function):
            raise TypeError(
                f"job.step({name!r}, …) takes a function and its arguments, not what it returned"
            )
        self._name = name
        self._adapter = _returned(function)

    def write(self, value: Any) -> tuple[bytes, Any]:
        """The JSON, and what it says. Raises TypeError for what is no JSON, Permanent `too_large`."""
        try:
            body = encode(value, self._adapter)
        except TypeError as error:
            raise TypeError(f"the result of the step {self._name!r} is no JSON: {error}") from None
        if len(body) > MAX_STEP_BYTES:
            message = f"the result of the step {self._name!r} has {len(body)} bytes, the limit is {MAX_STEP_BYTES}"
            raise Permanent("too_large", message)
        return body, self.read(body)

    def read(self, body: bytes) -> Any:
        """What the JSON says. Raises TypeError if it is not what the function says it returns."""
        if self._adapter is None:
            return msgspec.json.decode(body)
        try:
            return self._adapter.validate_json(body)
        except ValidationError as error:
            reason = error.errors(include_url=False, include_context=False, include_input=False)[0][
                "msg"
            ]
            raise TypeError(
                f"the result of the step {self._name!r} is not of its declared type: {reason}"
            ) from None


async def run(
    steps: Steps, name: str, result: Result, call: Callable[[], Any], in_thread: InThread
) -> Any:
    """One step of code on the loop, see `Job.step`."""
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


def run_here(channel: "Channel", name: str, result: Result, call: Callable[[], Any]) -> Any:
    """One step of plain code, called where that runs; see `SyncJob.step`."""
    (taken,), kept = channel.call("step", name)
    if not taken:
        return result.read(kept)
    try:
        body, value = result.write(call())
        kept = channel.call("keep", name, body)[1]
    except BaseException:
        with suppress(asyncio.CancelledError):  # the attempt is over, and its steps with it
            channel.call("drop", name)
        raise
    return value if kept == body else result.read(kept)


def too_many() -> Permanent:
    """A job keeps no more than this."""
    return Permanent(
        "too_large",
        f"the steps of a job are at most {MAX_JOB_STEPS}, of {MAX_JOB_STEP_BYTES >> 20} MiB together",
    )


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call of it gives something to await."""
    function = function.func if isinstance(function, partial) else function
    # What its class defines decides, not whether the object is callable.
    method = getattr(type(function), "__call__", None)  # noqa: B004 - see above
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method)


def _returned(function: Any) -> TypeAdapter[Any] | None:
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
    except TypeError:  # an annotation may hold what no cache can take
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
