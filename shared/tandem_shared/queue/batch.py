"""Calls that come together go together: one round trip for what many callers ask in the same moment."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Generic, TypeVar

from tandem_shared.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")


class Batch(Generic[T, R]):
    """Gathers the calls of one turn of the event loop, and those that come while a flight is under way.

    A flight carries at most `limit` items and, where `size` says how large one is, about `room`
    bytes. At most `waiting` items wait; one more is refused as Unavailable, so that a Redis that
    hangs does not fill the memory. With `once`, an item that waits already is sent once for all who
    ask; one that is under way is sent again, since its answer may be older than the question.

    `heard` is told with each flight how many answers it brought, and for how many seconds they were
    waited for in all.
    """

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[Sequence[R]]],
        *,
        limit: int = 500,
        room: int = 1 << 20,
        size: Callable[[T], int] | None = None,
        flights: int = 2,
        waiting: int = 20_000,
        once: bool = False,
        heard: Callable[[int, float], None] | None = None,
    ) -> None:
        self._send, self._limit, self._room, self._size = send, limit, room, size
        self._once, self._heard = once, heard
        self._same: dict[T, asyncio.Future[R]] = {}  # of the items that wait
        self._flights, self._waiting = flights, waiting
        self._queue: deque[tuple[T, asyncio.Future[R], float]] = deque()
        self._flying: set[asyncio.Task[None]] = set()
        self._planned = False

    def call(self, item: T) -> "asyncio.Future[R]":
        """The future of the item's answer."""
        if self._once and (same := self._same.get(item)) is not None:
            return asyncio.shield(same)  # one of them may be cancelled
        if len(self._queue) >= self._waiting:
            raise Unavailable("too many requests wait for Redis")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._queue.append((item, future, monotonic()))
        if self._once:
            self._same[item] = future
        if not self._planned and len(self._flying) < self._flights:
            self._planned = True
            loop.call_soon(self._start)
        return asyncio.shield(future) if self._once else future

    def _start(self) -> None:
        self._planned = False
        while self._queue and len(self._flying) < self._flights:
            task = asyncio.get_running_loop().create_task(self._fly(self._load()))
            self._flying.add(task)
            task.add_done_callback(self._landed)

    def _load(self) -> list[tuple[T, "asyncio.Future[R]", float]]:
        load: list[tuple[T, asyncio.Future[R], float]] = []
        room = self._room
        while self._queue and len(load) < self._limit:
            item, future, since = self._queue[0]
            if self._size is not None:
                room -= self._size(item)
                if room < 0 and load:
                    break
            self._queue.popleft()
            if self._once:
                del self._same[item]
            if not future.done():  # else the caller has gone
                load.append((item, future, since))
        return load

    async def _fly(self, load: list[tuple[T, "asyncio.Future[R]", float]]) -> None:
        if not load:
            return
        try:
            answers = await self._send([item for item, _, _ in load])
            if len(answers) != len(load):
                raise RuntimeError(f"{len(answers)} answers came for {len(load)} calls")
        except BaseException as error:
            for _, future, _ in load:
                if not future.done():
                    if isinstance(error, Exception):
                        future.set_exception(error)
                        # looked at: a caller that has gone must not leave a warning behind
                        future.exception()
                    else:
                        future.cancel()
            if not isinstance(error, Exception):
                raise
            return
        for (_, future, _), answer in zip(load, answers, strict=True):
            if not future.done():
                future.set_result(answer)
        self._count(load)

    def _count(self, load: list[tuple[T, "asyncio.Future[R]", float]]) -> None:
        if self._heard is not None:
            now = monotonic()
            self._heard(len(load), sum([now - since for _, _, since in load]))

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        if self._queue and not self._planned:
            self._start()
