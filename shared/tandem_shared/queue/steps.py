"""Results of a job's steps, kept between attempts and written under the attempt's token."""

from collections.abc import Sequence
from typing import NamedTuple

from tandem_shared.queue.batch import Batcher
from tandem_shared.queue.scripts import Scripts, flatten

MAX_JOB_STEPS = 1000
MAX_STEP_BYTES = 256 << 10
MAX_JOB_STEP_BYTES = 4 << 20  # results and names of one job


class Step(NamedTuple):
    """A result to keep; `body` is JSON."""

    id: str
    token: str
    name: str
    body: bytes


class KeptStep(NamedTuple):
    """`word` is 'ok', 'lost' or 'full'; `body` is what Redis keeps under the name."""

    word: str
    body: bytes


class StepRecords:
    """Steps of one shard's jobs. Calls raise Unavailable if Redis is away; repeats are safe."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._keeps = Batcher(self._keep, max_items=100, size=lambda step: len(step.body) + 256)

    async def load(self, id: str, token: str) -> dict[str, bytes] | None:
        """Results of earlier attempts by step name; None if this attempt has lost the job."""
        word, *flat = await self._scripts.run("steps", id, token)
        if word != b"ok":
            return None
        return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}

    async def keep(self, step: Step) -> KeptStep:
        """Keeps a result unless its name has one; concurrent calls share a round trip."""
        return await self._keeps.call(step)

    async def _keep(self, steps: Sequence[Step]) -> list[KeptStep]:
        bounds = MAX_JOB_STEPS, MAX_JOB_STEP_BYTES
        reply = await self._scripts.run("step", *bounds, *flatten(steps))
        return [
            KeptStep(word.decode(), body or step.body)
            for step, word, body in zip(steps, reply[::2], reply[1::2], strict=True)
        ]
