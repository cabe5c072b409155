"""arq's hooks of a job: `on_job_start`, `on_job_end`, `after_job_end`, each with arq's context of the job.

A hook that fails or takes too long is logged, and ends neither the job nor the worker. All three
run on the worker's loop around the attempt, before its outcome is written.
"""

import asyncio
import contextlib
from typing import Any

import arq.worker
import structlog

from tandem_shared.queue.messages import Finish
from tandem_worker.runtime.run import Run

MAX_HOOK_SECONDS = 5.0

log = structlog.get_logger("worker")


def find_hooks(shell: arq.worker.Worker) -> "ArqHooks | None":
    """The worker's hooks of jobs; None if it has none, as most do."""
    if shell.on_job_start or shell.on_job_end or shell.after_job_end:
        return ArqHooks(shell)
    return None


class ArqHooks:
    """Runs attempts with the hooks of `shell` around them."""

    def __init__(self, shell: arq.worker.Worker) -> None:
        self._shell = shell

    async def attempt(self, run: Run) -> Finish | None:
        """`run.attempt()` between its hooks."""
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
        with contextlib.suppress(asyncio.CancelledError):  # too late: the attempt has ended
            await _call(shell.on_job_end, ctx)
            await _call(shell.after_job_end, ctx)
        return None if run.cause == "lost" else finish


async def _call(hook: Any, ctx: dict[str, Any]) -> None:
    if hook is not None:
        try:
            async with asyncio.timeout(MAX_HOOK_SECONDS):
                await hook(ctx)
        except Exception:
            log.exception("an arq hook failed", hook=repr(hook), job_id=ctx["job_id"])
