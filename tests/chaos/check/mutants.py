"""Workers that are broken on purpose: `python -m tests.chaos.check.mutants <name>`. Who checks a run must catch each."""

import asyncio
import sys
from collections.abc import Callable

from tandem_shared.jobs.states import State
from tandem_shared.queue import heartbeat, scripts
from tandem_shared.queue.messages import Finish
from tandem_worker import __main__ as command
from tandem_worker.runtime.run import Run


def without_fence() -> None:
    """Whoever finishes a job that runs may: the token is not looked at."""
    original = scripts.source
    fence = "  if token and r.token ~= token then\n    return 'lost'\n  end\n"

    def source(name: str, clock: str = scripts.CLOCK) -> str:
        text = original(name, clock)
        if name == "finish":
            assert fence in text, "the fence is written otherwise now"
            text = text.replace(fence, "")
        return text

    scripts.source = source  # type: ignore[assignment] # it was cached, which does not matter here


def finish_before_commit() -> None:
    """The job is told to have succeeded first, and then done."""
    original = Run._outcome
    kept: set[asyncio.Task[Finish | None]] = set()

    async def outcome(self: Run) -> Finish | None:
        if self.claimed.task not in ("sql.execute", "chaos.slow", "chaos.quick"):
            return await original(self)
        self.handle = None  # nothing stops the code from now on
        going = asyncio.get_running_loop().create_task(original(self))
        kept.add(going)
        going.add_done_callback(kept.discard)
        return Finish(
            self.claimed.id,
            self.claimed.token,
            State.SUCCEEDED,
            "succeeded",
            str(self.job.stamp).encode(),
        )

    Run._outcome = outcome  # type: ignore[method-assign] # what a mutant is


def without_heartbeat() -> None:
    """Leases are never renewed."""
    original = heartbeat.Heartbeat.beat

    def beat(self: heartbeat.Heartbeat) -> None:
        held, self.held = self.held, {}
        try:
            original(self)
        finally:
            self.held = held

    heartbeat.Heartbeat.beat = beat  # type: ignore[method-assign] # likewise


MUTANTS: dict[str, Callable[[], None]] = {
    "without-fence": without_fence,
    "finish-before-commit": finish_before_commit,
    "without-heartbeat": without_heartbeat,
}

if __name__ == "__main__":
    MUTANTS[sys.argv[1]]()
    command.main([])
