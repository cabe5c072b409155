"""Cancelling a task and waiting for its end."""

import asyncio
import time

import pytest

from tandem_shared import cancellation
from tandem_shared.cancellation import cancel_and_wait


async def test_a_task_has_ended_when_the_wait_returns() -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    await cancel_and_wait(task)
    assert task.cancelled()


async def test_a_task_that_swallows_cancellations_is_cancelled_again() -> None:
    swallowed = 0

    async def stubborn() -> str:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        return "obeyed"

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await cancel_and_wait(task)
    assert task.result() == "obeyed"
    assert swallowed == 2


async def test_the_error_a_task_ended_with_is_raised() -> None:
    async def failing() -> None:
        raise ValueError("a bug")

    task = asyncio.create_task(failing())
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="a bug"):
        await cancel_and_wait(task)


async def test_the_wait_gives_up_on_a_task_that_never_obeys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cancellation, "ATTEMPTS", 3)
    monkeypatch.setattr(cancellation, "ATTEMPT_SECONDS", 0.01)
    stop = False

    async def deaf() -> None:
        while not stop:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    started = time.monotonic()
    await cancel_and_wait(task)
    assert not task.done()
    assert time.monotonic() - started < 5
    stop = True
    task.cancel()
    await asyncio.wait({task})
