"""Steps of the state machine: operators pause and resume queues."""

from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from tests.shared.queue.model.shard import Shard

T = TypeVar("T")


class Machine(Protocol):
    """What these steps need of the state machine."""

    shard: Shard
    paused: frozenset[str]

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T: ...
    def pick(self, options: Sequence[T]) -> T: ...


class Pausing:
    """`paused` are the queues whose jobs may not start."""

    paused: frozenset[str] = frozenset()

    def pause(self: Machine) -> None:
        queue = self.pick("aab")
        for _ in range(self.pick((1, 2))):  # the reply may be lost
            self.run(self.shard.queue.pause(queue, on=True))
        self.paused |= {queue}

    def resume(self: Machine) -> None:
        queue = self.pick("ab")
        for _ in range(self.pick((1, 2))):
            self.run(self.shard.queue.pause(queue, on=False))
        self.paused -= {queue}

    def resume_all(self: Machine) -> None:
        for queue in self.paused:
            self.run(self.shard.queue.pause(queue, on=False))
        self.paused = frozenset()
