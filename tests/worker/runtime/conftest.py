"""Tasks whose code waits, and what it experiences."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tandem_shared.retry_policy import RetryPolicy
from tandem_worker import task
from tandem_worker.jobs.job import Job

ONCE = RetryPolicy(max_attempts=1)


@dataclass
class Seen:
    """What a test's task has experienced."""

    begun: list[int] = field(default_factory=list)  # attempt numbers
    cancelled: list[int] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
async def seen() -> AsyncIterator[Seen]:
    seen = Seen()
    yield seen
    seen.go_on.set()  # or code that swallows cancellations would outlive its test


@pytest.fixture
def waits(seen: Seen) -> Callable[..., Any]:
    """A task that obeys a cancellation, and otherwise ends when the test decides."""

    @task("waits", retry=ONCE)
    async def waits(job: Job) -> str:
        seen.begun.append(job.attempt)
        try:
            await seen.go_on.wait()
        except asyncio.CancelledError:
            seen.cancelled.append(job.attempt)
            raise
        return "done"

    return waits


@pytest.fixture
def stubborn(seen: Seen) -> Callable[..., Any]:
    """A task that swallows every cancellation until the test lets it end."""

    @task("stubborn", retry=ONCE)
    async def stubborn(job: Job) -> str:
        seen.begun.append(job.attempt)
        while not seen.go_on.is_set():
            try:
                await seen.go_on.wait()
            except asyncio.CancelledError:
                seen.cancelled.append(job.attempt)
        return "done all the same"

    return stubborn
