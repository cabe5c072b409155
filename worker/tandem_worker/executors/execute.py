"""Runs one task where it belongs: on the loop, in a thread or in a process."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from tandem_worker.errors import TaskError
from tandem_worker.executors.pools import Pools
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.logs import LogCapture
from tandem_worker.task import Task


async def execute(
    task: Task, job: Job, payload: Any, pools: Pools, begun: Callable[[], None] = lambda: None
) -> Any:
    """Run the task's function and return its result: None for a generator, whose items are emitted.

    `begun` is called when a job that had to wait for a process has got one. Raises what the
    function raises. On cancellation the job is marked `cancelled` and
    CancelledError is raised: at once for code on the loop and in threads (a thread cannot be
    stopped: its next report ends it), after the end of the process for `cpu=True`. Code that calls
    sys.exit() or cancels itself fails like any other.
    """
    soon = asyncio.get_running_loop().call_soon_threadsafe
    try:
        match task.signature.kind:
            case "async":
                with LogCapture(job, job.sink.log, soon):
                    return await task.function(*task.arguments(job, payload))
            case "stream":
                with LogCapture(job, job.sink.log, soon):
                    async with aclosing(task.function(*task.arguments(job, payload))) as items:
                        async for item in items:
                            await job.emit(item)
            case "thread":
                return await pools.threads.run(task, job, payload)
            case "process":
                return await pools.processes.run(task, job, payload, begun)
    except asyncio.CancelledError:
        job.cancelled = True
        running = asyncio.current_task()
        if running is not None and running.cancelling() == 0:
            message = "the task's code was cancelled from within"
            raise TaskError("exception:CancelledError", message, retryable=True) from None
        raise
    except (SystemExit, KeyboardInterrupt) as error:
        # It would end the event loop, and with it every other job of the worker.
        name = type(error).__name__
        did = "called sys.exit()" if name == "SystemExit" else f"raised {name}"
        raise TaskError(f"exception:{name}", f"the task's code {did}", retryable=True) from None
