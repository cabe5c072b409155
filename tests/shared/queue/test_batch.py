"""Batching: calls made together share a round trip, and each caller gets its own answer."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence

import pytest

from tandem_shared.errors import Unavailable
from tandem_shared.queue.batch import Batcher
from tests.conftest import eventually


class Line:
    """A server whose answers wait for `land`."""

    def __init__(self) -> None:
        self.flights: list[list[int]] = []
        self._landings: list[asyncio.Future[None]] = []

    async def send(self, items: list[int]) -> Sequence[int]:
        self.flights.append(items)
        landing = asyncio.get_running_loop().create_future()
        self._landings.append(landing)
        await landing
        return [10 * item for item in items]

    async def land(self, flight: int) -> None:
        await eventually(lambda: len(self._landings) > flight)
        self._landings[flight].set_result(None)


async def tens(items: list[int]) -> Sequence[int]:
    return [10 * item for item in items]


def counted(
    send: Callable[[list[int]], Awaitable[Sequence[int]]],
) -> tuple[Batcher[int, int], list[list[int]]]:
    flights: list[list[int]] = []

    async def counting(items: list[int]) -> Sequence[int]:
        flights.append(items)
        return await send(items)

    return Batcher(counting, max_items=4), flights


async def test_calls_of_one_moment_share_a_batch() -> None:
    batch, flights = counted(tens)
    assert await asyncio.gather(*(batch.call(n) for n in range(3))) == [0, 10, 20]
    assert await batch.call(3) == 30
    assert flights == [[0, 1, 2], [3]]


async def test_a_batch_respects_its_item_limit() -> None:
    batch, flights = counted(tens)
    assert await asyncio.gather(*(batch.call(n) for n in range(10))) == [10 * n for n in range(10)]
    assert [len(flight) for flight in flights] == [4, 4, 2]
    assert [n for flight in flights for n in flight] == list(range(10))


async def test_calls_during_a_flight_share_the_next_batch() -> None:
    line = Line()
    batch = Batcher(line.send, max_in_flight=1)
    first = batch.call(1)
    await eventually(lambda: line.flights)
    rest = [batch.call(n) for n in (2, 3)]
    await line.land(0)
    assert await first == 10
    rest.append(batch.call(4))
    await line.land(1)
    assert await asyncio.gather(*rest[:2]) == [20, 30]
    if not rest[2].done():
        await line.land(2)
    assert await rest[2] == 40


async def test_at_most_two_batches_are_in_flight() -> None:
    line = Line()
    batch = Batcher(line.send, max_items=1, max_in_flight=2)
    calls = [batch.call(n) for n in range(5)]
    await eventually(lambda: len(line.flights) == 2)
    await asyncio.sleep(0)
    assert line.flights == [[0], [1]]
    await line.land(1)
    await eventually(lambda: len(line.flights) == 3)
    for flight in (0, 2, 3, 4):
        await line.land(flight)
    assert await asyncio.gather(*calls) == [0, 10, 20, 30, 40]


async def test_a_batch_respects_its_byte_limit_but_takes_at_least_one_item() -> None:
    flights: list[list[int]] = []

    async def send(items: list[int]) -> Sequence[int]:
        flights.append(items)
        return items

    batch: Batcher[int, int] = Batcher(send, max_bytes=10, size=lambda item: item)
    await asyncio.gather(*(batch.call(n) for n in (4, 6, 1, 99, 3, 7)))
    assert flights == [[4, 6], [1], [99], [3, 7]]


async def test_an_error_reaches_the_callers_of_its_batch_only() -> None:
    async def send(items: list[int]) -> Sequence[int]:
        if 1 in items:
            raise Unavailable("away")
        return items

    batch = Batcher(send, max_items=2)
    answers = await asyncio.gather(*(batch.call(n) for n in (0, 1, 2, 3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable, Unavailable, int, int]
    assert await batch.call(4) == 4


async def test_an_error_for_absent_callers_logs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent = asyncio.Event()

    async def send(items: list[int]) -> Sequence[int]:
        sent.set()
        raise Unavailable("away")

    Batcher(send).call(1)
    await sent.wait()
    await asyncio.sleep(0)
    gc.collect()
    assert caplog.records == []


async def test_a_missing_answer_raises_instead_of_blocking() -> None:
    async def send(items: list[int]) -> Sequence[int]:
        return items[1:]

    batch = Batcher(send)
    answers = await asyncio.gather(*(batch.call(n) for n in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [RuntimeError] * 3


async def test_a_call_cancelled_before_the_flight_is_not_sent() -> None:
    batch, flights = counted(tens)
    calls = [batch.call(n) for n in range(4)]
    calls[1].cancel()
    assert await asyncio.gather(calls[0], *calls[2:]) == [0, 20, 30]
    assert flights == [[0, 2, 3]]


async def test_a_call_cancelled_in_flight_leaves_the_others_alone() -> None:
    line = Line()
    batch = Batcher(line.send)
    calls = [batch.call(n) for n in range(3)]
    await eventually(lambda: line.flights)
    calls[1].cancel()
    await line.land(0)
    assert [await calls[0], await calls[2]] == [0, 20]


async def test_all_calls_of_a_batch_can_be_cancelled() -> None:
    batch, flights = counted(tens)
    batch.call(1).cancel()
    assert await batch.call(2) == 20
    gone = batch.call(3)
    gone.cancel()
    await asyncio.sleep(0)
    assert await batch.call(4) == 40
    assert flights == [[2], [4]]


async def test_the_number_of_waiting_calls_is_bounded() -> None:
    line = Line()
    batch = Batcher(line.send, max_items=1, max_in_flight=1, max_waiting=2)
    calls = [batch.call(0)]
    await eventually(lambda: line.flights)
    calls += [batch.call(1), batch.call(2)]
    with pytest.raises(Unavailable):
        batch.call(3)
    for flight in range(3):
        await line.land(flight)
    assert await asyncio.gather(*calls) == [0, 10, 20]


async def test_on_batch_gets_the_count_and_the_time_waited() -> None:
    line, batches = Line(), list[tuple[int, float]]()
    batch = Batcher(
        line.send,
        max_items=2,
        max_in_flight=1,
        on_batch=lambda count, seconds: batches.append((count, seconds)),
    )
    calls = [asyncio.ensure_future(batch.call(n)) for n in range(3)]
    await line.land(0)
    assert await calls[1] == 10
    assert [count for count, _ in batches] == [2]
    await line.land(1)
    await asyncio.gather(*calls)
    assert [count for count, _ in batches] == [2, 1]
    assert min(seconds for _, seconds in batches) > 0


async def test_cancelling_a_flight_cancels_its_callers() -> None:
    line = Line()
    batch = Batcher(line.send)
    call = batch.call(1)
    await eventually(lambda: line.flights)
    for task in batch._in_flight:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_equal_waiting_items_are_sent_once() -> None:
    line = Line()
    batch = Batcher(line.send, max_items=2, max_in_flight=1, coalesce=True)
    first = [asyncio.ensure_future(batch.call(n)) for n in (1, 1, 2, 1)]
    await line.land(0)
    assert await asyncio.gather(*first) == [10, 10, 20, 10]
    assert line.flights == [[1, 2]]


async def test_an_item_in_flight_is_sent_again() -> None:
    line = Line()
    batch = Batcher(line.send, max_items=1, max_in_flight=2, coalesce=True)
    old = asyncio.ensure_future(batch.call(1))
    await eventually(lambda: line.flights == [[1]])
    new = asyncio.ensure_future(batch.call(1))
    await eventually(lambda: line.flights == [[1], [1]])
    await line.land(1)
    assert await new == 10
    assert not old.done(), "its answer may be older than the second call"
    await line.land(0)
    assert await old == 10


async def test_cancelling_one_coalesced_call_keeps_the_others() -> None:
    line = Line()
    batch = Batcher(line.send, coalesce=True)
    one, other = (asyncio.ensure_future(batch.call(1)) for _ in range(2))
    await eventually(lambda: line.flights)
    one.cancel()
    await line.land(0)
    assert await other == 10
    assert one.cancelled()


async def test_an_error_reaches_all_coalesced_callers_and_logs_nothing() -> None:
    async def fail(_items: list[int]) -> Sequence[int]:
        raise Unavailable("away")

    batch = Batcher(fail, coalesce=True)
    gone, *others = (asyncio.ensure_future(batch.call(1)) for _ in range(3))
    gone.cancel()
    for other in others:
        with pytest.raises(Unavailable):
            await other
    gc.collect()
