"""A step of the state machine: clients delete final jobs with all that belongs to them."""

from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import pytest

from tandem_shared.errors import Conflict
from tandem_shared.jobs.record import Submission
from tandem_shared.jobs.states import FINAL, State
from tandem_shared.queue.locks import Acquisition
from tandem_shared.queue.messages import Claimed
from tests.shared.queue.model.shard import Shard, Snapshot, Worker

T = TypeVar("T")


class Machine(Protocol):
    """What this step needs of the state machine."""

    shard: Shard
    workers: list[Worker]
    claims: list[tuple[Worker, Claimed]]
    now: Snapshot
    jobs: dict[str, Submission]
    keys: dict[str, Submission]
    final: dict[str, dict[str, str]]
    steps: dict[str, dict[str, bytes]]
    locked: set[Acquisition]

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T: ...
    def look(self) -> Snapshot: ...
    def pick(self, options: Sequence[T]) -> T: ...


class Forgetting:
    """Deletes final jobs; others are refused."""

    def forget(self: Machine) -> None:
        if not self.jobs:
            return
        id = self.pick([*self.final] or [*self.jobs])
        if State(self.now.jobs[id]["state"]) not in FINAL:
            with pytest.raises(Conflict):
                self.run(self.shard.queue.forget(id))
            assert self.look().jobs == self.now.jobs
            return
        assert not self.run(self.shard.queue.forget(id, tenant="somebody else's"))
        assert self.run(self.shard.queue.forget(id))
        assert not self.run(self.shard.queue.forget(id))
        after = self.look()
        assert after.jobs == {
            other: record for other, record in self.now.jobs.items() if other != id
        }
        assert not [key for key in after.ttl if id in key]
        assert id not in [
            value.split()[0] for key, value in after.values.items() if key.startswith("idem:")
        ]
        self.jobs.pop(id)
        self.final.pop(id, None)
        self.steps.pop(id, None)
        self.keys = {key: first for key, first in self.keys.items() if first.id != id}
        self.claims = [(worker, one) for worker, one in self.claims if one.id != id]
        self.locked = {one for one in self.locked if one.id != id}
        for worker in self.workers:
            worker.held.pop(id, None)
