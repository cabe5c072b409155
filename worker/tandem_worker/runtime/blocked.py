"""What becomes of a worker's jobs while one of them blocks the event loop, see Watchdog."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from redis.exceptions import RedisError

from tandem_shared.queue.heartbeat import Heartbeat
from tandem_shared.queue.messages import Finish
from tandem_worker.executors.zombies import Zombies
from tandem_worker.runtime.outcomes import released
from tandem_worker.runtime.prefetch import Prefetch
from tandem_worker.runtime.run import Run

log = structlog.get_logger("worker")


class BlockedJobs:
    """The jobs of a worker, as its watchdog may look at them; all methods run in its thread.

    The loop stands still meanwhile. Should it go on, both may write the outcome of an attempt: the
    first one counts.
    """

    def __init__(
        self,
        runs: Mapping[str, Run],
        prefetch: Prefetch,
        zombies: Zombies,
        heartbeat: Heartbeat,
        grace: float,
    ) -> None:
        self._runs, self._prefetch, self._zombies = runs, prefetch, zombies
        self._heartbeat, self._grace = heartbeat, grace

    def about(self, task: "asyncio.Task[Any] | None") -> dict[str, Any]:
        """See Work."""
        run = self._run(task)
        if run is None:
            return {}
        job = run.claimed
        return {"job_id": job.id, "task": job.task, "attempt": job.attempt}

    def overstayed(self, task: "asyncio.Task[Any] | None") -> bool:
        """See Work. Of a job that is not known, once this is true of all that run."""
        run = self._run(task)
        runs = list(self._runs.values()) if run is None else [run]
        return bool(runs) and all(self._is_over(one) for one in runs)

    def hand_back_waiting(self) -> None:
        """See Work."""
        self._write([released(one) for one in self._prefetch.take_all()])

    def hand_back_all(self) -> None:
        """See Work. Attempts whose time is over are timeouts, the others go back uncharged."""
        outcomes = [
            run.given_up() if self._is_over(run) else released(run.claimed)
            for run in list(self._runs.values())
        ]
        self._write([one for one in outcomes if one is not None])

    def _run(self, task: "asyncio.Task[Any] | None") -> Run | None:
        left = [one for one in self._zombies.all() if isinstance(one, Run)]  # may block, too
        return next((run for run in [*self._runs.values(), *left] if run.handle is task), None)

    def _is_over(self, run: Run) -> bool:
        return time.monotonic() > run.due + self._grace

    def _write(self, outcomes: Sequence[Finish]) -> None:
        if not outcomes:
            return
        try:
            self._heartbeat.finish(outcomes)
        except (RedisError, OSError) as error:
            # Their leases end with this worker's heartbeat.
            log.warning("cannot hand jobs back", jobs=len(outcomes), error=type(error).__name__)
