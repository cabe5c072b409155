"""What operators do to a shard in its random life: they pause queues and let them go on."""

from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from tests.shared.queue.model.shard import Shard

T = TypeVar("T")


class Living(Protocol):
    """The part of a life that this needs."""

    shard: Shard
    paused: frozenset[str]

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T: ...
    def pick(self, options: Sequence[T]) -> T: ...


class Pausing:
    """Steps of a life; `paused` names the queues of which nothing may start."""

    paused: frozenset[str] = frozenset()

    def pause(self: Living) -> None:
        queue = self.pick("aab")
        for _ in range(self.pick((1, 2))):  # the answer may have been lost
            self.run(self.shard.queue.pause(queue, on=True))
        self.paused |= {queue}

    def resume(self: Living) -> None:
        queue = self.pick("ab")
        for _ in range(self.pick((1, 2))):
            self.run(self.shard.queue.pause(queue, on=False))
        self.paused -= {queue}

    def resume_all(self: Living) -> None:
        for queue in self.paused:
            self.run(self.shard.queue.pause(queue, on=False))
        self.paused = frozenset()
