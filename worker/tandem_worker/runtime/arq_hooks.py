"""arq's hooks around a job: `on_job_start`, `on_job_end`, `after_job_end`.

They get arq's context of the job and run on the worker's event loop, all before the outcome is
written. A hook that fails or takes too long is logged; job and worker continue.
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


def has_hooks(shell: arq.worker.Worker) -> bool:
    """Whether the worker has hooks around jobs; most workers have none."""
    return any((shell.on_job_start, shell.on_job_end, shell.after_job_end))


async def attempt_with_hooks(shell: arq.worker.Worker, run: Run) -> Finish | None:
    """`run.attempt()` between the worker's hooks."""
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
