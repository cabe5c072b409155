"""Repeats the checks of the setup while a process runs, and logs what changes."""

import asyncio
import time

import structlog

from tandem_shared.setup.checks import Concern, SetupChecks

CHECK_SECONDS = 10.0  # between two looks at Redis, and at stores with which something is wrong
STORES_SECONDS = 60.0  # between two looks at stores that were fine
START_SECONDS = 5.0  # for which a start waits, so that what is wrong comes first in its log

log = structlog.get_logger("setup")


class SetupWatch:
    """Runs the checks until it is cancelled; `concerns` are those of the last time."""

    def __init__(self, checks: SetupChecks) -> None:
        self.concerns: tuple[Concern, ...] = ()
        self._checks = checks
        self._checked = asyncio.Event()

    async def run(self) -> None:
        """Check, log, wait, forever."""
        stores: list[Concern] = []
        next_look = 0.0
        while True:
            if stores or time.monotonic() >= next_look:
                stores = await self._checks.of_stores()
                next_look = time.monotonic() + STORES_SECONDS
            found = (*await self._checks.of_redis(), *stores)
            for concern in found:
                if concern not in self.concerns:
                    log.warning(concern.detail, part=concern.part)
            for concern in self.concerns:
                if concern not in found:
                    log.info("no longer wrong", part=concern.part, detail=concern.detail)
            self.concerns = found
            self._checked.set()
            await asyncio.sleep(CHECK_SECONDS)

    async def first(self) -> None:
        """Wait for the first checks, at most START_SECONDS."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._checked.wait()
        except TimeoutError:
            log.warning("starting without an answer of all stores", seconds=START_SECONDS)
