"""Batching: calls made at the same moment share one round trip."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Generic, TypeVar

from tandem_shared.errors import Unavailable
from tandem_shared.queue.scripts import MAX_CALL_BYTES, MAX_CALL_JOBS

T = TypeVar("T")
R = TypeVar("R")

_Call = tuple[T, asyncio.Future[R], float]  # item, its answer, monotonic time of the call


class Batcher(Generic[T, R]):
    """Collects the calls of one turn of the event loop, and those made while batches are in flight.

    A batch has at most `max_items` items and, if `size` measures them, about `max_bytes` bytes.
    At most `max_waiting` items wait; the next one raises Unavailable, so that a Redis that hangs
    cannot fill the memory. With `coalesce`, equal items that wait are sent once and share the
    answer. An item in flight is sent again, since its answer may be older than the new call.

    `on_batch` gets the number of answers in a batch, and the seconds that its callers waited, added
    up.
    """

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[Sequence[R]]],
        *,
        max_items: int = MAX_CALL_JOBS,
        max_bytes: int = MAX_CALL_BYTES,
        size: Callable[[T], int] | None = None,
        max_in_flight: int = 2,
        max_waiting: int = 20_000,
        coalesce: bool = False,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._send, self._size, self._on_batch = send, size, on_batch
        self._max_items, self._max_bytes = max_items, max_bytes
        self._max_in_flight, self._max_waiting = max_in_flight, max_waiting
        self._coalesce = coalesce
        self._futures: dict[T, asyncio.Future[R]] = {}  # by waiting item, if they coalesce
        self._waiting: deque[_Call[T, R]] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._start_planned = False

    def call(self, item: T) -> "asyncio.Future[R]":
        """The future of the item's answer."""
        if self._coalesce and (future := self._futures.get(item)) is not None:
            return asyncio.shield(future)  # cancelling one caller must not cancel the others
        if len(self._waiting) >= self._max_waiting:
            raise Unavailable("too many requests wait for Redis")
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.append((item, future, monotonic()))
        if not self._start_planned and len(self._in_flight) < self._max_in_flight:
            self._start_planned = True
            loop.call_soon(self._start)
        if not self._coalesce:
            return future
        self._futures[item] = future
        return asyncio.shield(future)

    def _start(self) -> None:
        self._start_planned = False
        while self._waiting and len(self._in_flight) < self._max_in_flight:
            if batch := self._next_batch():
                task = asyncio.get_running_loop().create_task(self._run(batch))
                self._in_flight.add(task)
                task.add_done_callback(self._landed)

    def _next_batch(self) -> list[_Call[T, R]]:
        batch: list[_Call[T, R]] = []
        free_bytes = self._max_bytes
        while self._waiting and len(batch) < self._max_items:
            item, future, since = self._waiting[0]
            if self._size is not None:
                free_bytes -= self._size(item)
                if free_bytes < 0 and batch:
                    break
            self._waiting.popleft()
            if self._coalesce:
                del self._futures[item]
            if not future.done():  # else its caller was cancelled
                batch.append((item, future, since))
        return batch

    async def _run(self, batch: list[_Call[T, R]]) -> None:
        futures = [future for _, future, _ in batch]
        try:
            answers = await self._send([item for item, _, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers came for {len(batch)} calls")
        except Exception as error:  # noqa: BLE001 - the callers raise it
            for future in futures:
                _fail(future, error)
            return
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        for future, answer in zip(futures, answers, strict=True):
            if not future.done():
                future.set_result(answer)
        if self._on_batch is not None:
            now = monotonic()
            self._on_batch(len(batch), sum([now - since for _, _, since in batch]))

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if self._waiting and not self._start_planned:
            self._start()


def _fail(future: "asyncio.Future[R]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # mark it as retrieved: asyncio logs errors that no caller awaits
