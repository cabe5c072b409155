"""Backoff: pauses that double up to a bound, with jitter, and start over."""

import random

import pytest

from tandem_shared.backoff import Backoff, until_available
from tandem_shared.errors import Conflict, Unavailable


def test_pauses_double_up_to_the_maximum() -> None:
    random.seed(7)
    backoff = Backoff(first_seconds=0.1, max_seconds=1.0)
    for full in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        assert full / 2 <= backoff.next() <= full


def test_pauses_are_jittered() -> None:
    pauses = {Backoff(first_seconds=1.0).next() for _ in range(50)}
    assert len(pauses) > 40
    assert max(pauses) - min(pauses) > 0.2


def test_a_reset_starts_over() -> None:
    backoff = Backoff(first_seconds=0.1, max_seconds=10.0)
    for _ in range(5):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 0.1


async def test_a_call_is_repeated_while_it_raises_unavailable() -> None:
    answers: list[Exception | str] = [Unavailable("away"), Unavailable("away"), "here"]

    async def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await until_available(call) == "here"
    assert answers == []


async def test_any_other_error_is_raised_at_once() -> None:
    async def call() -> None:
        raise Conflict("taken")

    with pytest.raises(Conflict):
        await until_available(call)
