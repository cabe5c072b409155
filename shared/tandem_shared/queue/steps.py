"""What jobs keep of their steps from one attempt to the next: `steps:<id>`, written under the attempt's token."""

from collections.abc import Sequence
from typing import NamedTuple

from tandem_shared.queue.batch import Batch
from tandem_shared.queue.scripts import Arg, Scripts

MOST_STEPS = 1000  # a job
LARGEST_STEP = 256 << 10  # bytes of one result
ALL_STEPS = 4 << 20  # bytes of a job's results and their names


class Step(NamedTuple):
    """A result to be kept; `body` is JSON."""

    id: str
    token: str
    name: str
    body: bytes


class Kept(NamedTuple):
    """The answer: 'ok', 'lost' or 'full', and what is kept under the name."""

    word: str
    body: bytes


class Steps:
    """The steps of one shard's jobs. Every method raises Unavailable when Redis does not answer; repeating is safe."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._keeps = Batch(
            self._keep, limit=100, room=1 << 20, size=lambda step: len(step.body) + 256
        )

    async def load(self, id: str, token: str) -> dict[str, bytes] | None:
        """What earlier attempts have kept, by name; None: this attempt is no longer the job's."""
        word, *flat = await self._scripts.run("steps", [id, token])
        if word != b"ok":
            return None
        return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}

    async def keep(self, step: Step) -> Kept:
        """Keeps a result, unless one of that name is kept already; calls that come together go together."""
        return await self._keeps.call(step)

    async def _keep(self, steps: Sequence[Step]) -> list[Kept]:
        args: list[Arg] = [MOST_STEPS, ALL_STEPS]
        for step in steps:
            args += step
        reply = await self._scripts.run("step", args)
        return [
            Kept(reply[2 * i].decode(), reply[2 * i + 1] or step.body)
            for i, step in enumerate(steps)
        ]
