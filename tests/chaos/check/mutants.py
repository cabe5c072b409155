"""Workers that are broken on purpose: the checker must catch each of them.

python -m tests.chaos.check.mutants without-fence
"""

import asyncio
import sys
from collections.abc import Callable

from tandem_shared.jobs.states import State
from tandem_shared.queue import heartbeat, scripts
from tandem_shared.queue.messages import Finish
from tandem_worker import __main__ as command
from tandem_worker.runtime.run import Run


def without_fence() -> None:
    """Let any worker finish a running job: the script no longer compares the token."""
    original = scripts.source
    fence = "  if token and r.token ~= token then\n    return 'lost'\n  end\n"

    def source(name: str, clock: str = scripts.CLOCK) -> str:
        text = original(name, clock)
        if name == "finish":
            assert fence in text, "the script compares the token elsewhere: update this mutant"
            text = text.replace(fence, "")
        return text

    scripts.source = source  # type: ignore[assignment] # the original is cached, this one is not


def finish_before_commit() -> None:
    """Report success first, and do the work afterwards."""
    original = Run._outcome
    running: set[asyncio.Task[Finish | None]] = set()

    async def outcome(self: Run) -> Finish | None:
        if self.claimed.task not in ("sql.execute", "chaos.slow", "chaos.quick"):
            return await original(self)
        self.handle = None  # so that nothing can stop the code
        work = asyncio.get_running_loop().create_task(original(self))
        running.add(work)
        work.add_done_callback(running.discard)
        result = str(self.job.stamp).encode()
        claimed = self.claimed
        return Finish(claimed.id, claimed.token, State.SUCCEEDED, "succeeded", result)

    Run._outcome = outcome  # type: ignore[method-assign] # a mutant replaces methods


def without_heartbeat() -> None:
    """Never renew a lease."""
    original = heartbeat.Heartbeat.beat

    def beat(self: heartbeat.Heartbeat) -> None:
        held, self.held = self.held, {}
        try:
            original(self)
        finally:
            self.held = held

    heartbeat.Heartbeat.beat = beat  # type: ignore[method-assign] # a mutant replaces methods


MUTANTS: dict[str, Callable[[], None]] = {
    "without-fence": without_fence,
    "finish-before-commit": finish_before_commit,
    "without-heartbeat": without_heartbeat,
}

if __name__ == "__main__":
    MUTANTS[sys.argv[1]]()
    command.main([])
