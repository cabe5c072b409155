"""arq's hooks of a job: `on_job_start`, `on_job_end`, `after_job_end`, each with arq's context of the job.

One that fails, or takes too long, is told, and ends neither the job nor the worker. All three run
on the worker's loop around the attempt, before its outcome is written.
"""

import asyncio
import contextlib
from typing import Any

import arq.worker
import structlog

from tandem_shared.queue.messages import Finish
from tandem_worker.runtime.run import Run

LONGEST = 5.0  # seconds a hook may take

log = structlog.get_logger("worker")


class Hooks:
    """Those of `shell`; false if it has none."""

    def __init__(self, shell: arq.worker.Worker) -> None:
        self._shell = shell

    def __bool__(self) -> bool:
        shell = self._shell
        return bool(shell.on_job_start or shell.on_job_end or shell.after_job_end)

    async def attempt(self, run: Run) -> Finish | None:
        """The run's attempt with the hooks around it."""
        shell = self._shell
        ctx = {
            **shell.ctx,
            "job_id": run.claimed.id,
            "job_try": run.claimed.attempt,
            "enqueue_time": None,
            "score": run.job.stamp // 1000,
        }
        await _call(shell.on_job_start, ctx)
        finish = await run.attempt()
        with contextlib.suppress(asyncio.CancelledError):  # too late: what is done is done
            await _call(shell.on_job_end, ctx)
            await _call(shell.after_job_end, ctx)
        return None if run.cause == "lost" else finish


async def _call(hook: Any, ctx: dict[str, Any]) -> None:
    if hook is not None:
        try:
            async with asyncio.timeout(LONGEST):
                await hook(ctx)
        except Exception:
            log.exception("a hook failed", job_id=ctx["job_id"])
