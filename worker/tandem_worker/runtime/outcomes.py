"""How attempts ended, until Redis has it: many a round trip, and kept while Redis is away."""

import asyncio
import time
from collections.abc import Callable

import structlog

from tandem_shared.backoff import Backoff
from tandem_shared.errors import Unavailable
from tandem_shared.queue.batch import Batcher
from tandem_shared.queue.messages import Finish
from tandem_shared.queue.queue import Queue
from tandem_worker.runtime.metrics import Tally

MOST = 2000  # outcomes that may wait to be written before no more jobs are claimed

log = structlog.get_logger("worker")


class Outcomes:
    """Writes outcomes. A job stays in `held`, and so keeps its lease, until its outcome is written.

    `away` is called at every fault of Redis, `room` when so much is written that jobs may be
    claimed again.
    """

    def __init__(
        self,
        queue: Queue,
        held: dict[str, tuple[str, float]],
        *,
        away: Callable[[], None],
        room: Callable[[], None],
        tally: Tally,
    ) -> None:
        self.unwritten = 0
        self._none = asyncio.Event()  # nothing is unwritten any more
        self._queue, self._held, self._away, self._room, self._tally = (
            queue,
            held,
            away,
            room,
            tally,
        )
        self._batch = Batcher(
            self._write,
            size=lambda one: len(one[0].body) + 256,
            max_waiting=1 << 20,
        )

    @property
    def full(self) -> bool:
        """Too much is unwritten: claim no more."""
        return self.unwritten >= MOST

    def let_go(self, id: str, token: str) -> None:
        """The lease of that attempt is kept no longer. Another one of the same job may be here by now."""
        held = self._held.get(id)
        if held is not None and held[0] == token:
            del self._held[id]

    def put(self, finish: Finish) -> None:
        """Has it written, for as long as it takes."""
        self.unwritten += 1
        self._batch.call((finish, time.monotonic()))

    async def all_written(self) -> None:
        """Returns when nothing is unwritten."""
        while self.unwritten:
            self._none.clear()
            await self._none.wait()

    async def _write(self, load: list[tuple[Finish, float]]) -> list[str]:
        # What follows is done here for all of them, since a callback each takes longer than the
        # rest of it.
        outcomes = [finish for finish, _ in load]
        answers: list[str] = []
        try:
            answers = await self._answers(outcomes)
            now = time.monotonic()
            for (finish, since), answer in zip(load, answers, strict=True):
                self._tally.written(now - since)
                if answer != "ok":
                    log.warning(
                        "an outcome came too late",
                        job_id=finish.id,
                        outcome=finish.outcome,
                        answer=answer,
                    )
        except Exception:
            log.exception("outcomes could not be written", jobs=[finish.id for finish in outcomes])
            raise
        finally:
            self._free(outcomes)
        return answers

    def _free(self, outcomes: list[Finish]) -> None:
        """They are written, or never will be: their leases are let go, and there is room for more."""
        for finish in outcomes:
            self.let_go(finish.id, finish.token)
        was_full = self.full
        self.unwritten -= len(outcomes)
        if was_full and not self.full:
            self._room()
        if not self.unwritten:
            self._none.set()

    async def _answers(self, outcomes: list[Finish]) -> list[str]:
        # The fence decides what an outcome is worth that comes late.
        backoff = Backoff()
        while True:
            began = time.monotonic()
            try:
                words = await self._queue.finish(outcomes)
            except Unavailable as error:
                self._away()
                log.warning(
                    "Redis is away", during="finish", outcomes=len(outcomes), error=str(error)
                )
                await backoff.sleep()
            else:
                self._tally.spent("finish", time.monotonic() - began, len(outcomes))
                return words
