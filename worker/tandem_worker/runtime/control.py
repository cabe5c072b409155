"""Messages for a worker: cancelled jobs, lost leases, and jobs that only it can run.

They arrive on the worker's own bell and, in case that is missed, with the answers to heartbeats,
which also show when Redis has forgotten the worker.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from tandem_shared.backoff import Backoff
from tandem_shared.cancellation import cancel_and_wait
from tandem_shared.errors import Unavailable
from tandem_shared.queue.heartbeat import Heartbeat
from tandem_shared.queue.messages import Held
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import Settings
from tandem_worker.runtime.claims import Claims
from tandem_worker.runtime.registration import Registration
from tandem_worker.runtime.slots import Slots

BELL_SECONDS = 15.0  # of one wait on the bell


class Control:
    """Receives messages from the bell and the heartbeat; stops and claims jobs accordingly."""

    def __init__(
        self,
        queue: Queue,
        settings: Settings,
        registration: Registration,
        slots: Slots,
        claims: Claims,
    ) -> None:
        self._queue, self._registration = queue, registration
        self._slots, self._claims = slots, claims
        self._loop = asyncio.get_event_loop()
        self._registering: asyncio.Task[bool] | None = None
        self.heartbeat = Heartbeat(
            settings.redis_url,
            queue.prefix,
            slots.leases.held,
            worker=registration.id,
            catalogue=registration.digest,
            lease=queue.lease,
            keep=settings.keep,
            grace=queue.grace,
            started=lambda: slots.started,
            zombies=slots.zombies,
            on_beat=self._on_loop(slots.on_heartbeat),
            on_unknown=self._on_loop(self._forgotten),
        )

    def _on_loop(self, function: Callable[..., None]) -> Callable[..., None]:
        """The function as the heartbeat's thread may call it."""

        def call(*args: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(function, *args)

        return call

    async def listen(self) -> None:
        """Act on the bell until cancelled."""
        bells = self._queue.bells(self._registration.id)
        backoff = Backoff()
        try:
            while True:
                try:
                    message = await bells.wait(BELL_SECONDS)
                    backoff.reset()
                    if message is not None:
                        await self._act(message)
                except Unavailable:
                    self._slots.leases.doubtful = True
                    await backoff.sleep()
        finally:
            await bells.close()

    async def _act(self, message: str) -> None:
        kind, *names = message.split(" ")
        if kind == "cancel":
            one = Held(*names)
            if one.id not in self._slots.runs:
                async with self._claims.lock:  # the claim that took the job may not have returned
                    pass
            self._slots.stop([one], "cancel")
        else:
            await self._claims.claim()

    async def announce_drain(self) -> None:
        """Mark the worker as draining in Redis; if that fails, the next heartbeat does it."""
        self.heartbeat.draining = True
        with contextlib.suppress(Unavailable):
            await self._queue.beat(
                self._registration.id,
                self._registration.digest,
                [],
                draining=True,
                zombies=len(self._slots.zombies),
            )

    def _forgotten(self) -> None:
        # Redis lost its data, or the worker was silent for too long.
        if self._registering is None or self._registering.done():
            self._registering = asyncio.create_task(self._registration.register())

    async def end(self) -> None:
        """Stop the heartbeat: leases that are still held will expire."""
        self.heartbeat.stop()
        if self._registering is not None:
            await cancel_and_wait(self._registering)
