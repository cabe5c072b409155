"""Steps of the state machine: running jobs keep results of steps and take locks."""

from abc import abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from tandem_shared.queue.locks import Acquisition
from tandem_shared.queue.messages import Claimed
from tandem_shared.queue.steps import Step
from tests.shared.queue.model.shard import Shard, Snapshot, Worker

T = TypeVar("T")


class Keeping:
    """What workers do for the code of their jobs."""

    shard: Shard
    claims: list[tuple[Worker, Claimed]]
    now: Snapshot

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, dict[str, bytes]] = {}
        self.locked: set[Acquisition] = set()  # asked for and not released
        self.last: dict[str, dict[str, str]] = {}  # the last holder of each lock

    @abstractmethod
    def run(self, coroutine: Coroutine[Any, Any, T]) -> T: ...

    @abstractmethod
    def look(self) -> Snapshot: ...

    @abstractmethod
    def pick(self, options: Sequence[T]) -> T: ...

    @abstractmethod
    def holds(self, claimed: Claimed) -> bool: ...

    def keep(self) -> None:
        if held := [one for _, one in self.claims if self.holds(one)]:
            self.keep_of(self.pick(held))

    def keep_late(self) -> None:
        if self.claims:
            self.keep_of(self.pick(self.claims)[1])

    def keep_of(self, claimed: Claimed) -> None:
        """Later attempts find what an attempt keeps of its steps, and only attempts change it."""
        kept = self.steps.setdefault(claimed.id, {})
        name, body = self.pick("xyz"), str(len(self.claims)).encode()
        answer = self.run(self.shard.queue.steps.keep(Step(claimed.id, claimed.token, name, body)))
        if self.holds(claimed):
            assert answer == ("ok", kept.setdefault(name, body))
        else:
            assert answer == ("lost", body)
        found = self.run(self.shard.queue.steps.load(claimed.id, claimed.token))
        assert found == (kept if self.holds(claimed) else None)

    def lock(self) -> None:
        if held := [one for _, one in self.claims if self.holds(one)]:
            self.lock_of(self.pick(held))

    def lock_late(self) -> None:
        if self.claims:
            self.lock_of(self.pick(self.claims)[1])

    def lock_of(self, claimed: Claimed) -> None:
        name, number = self.pick((("l", 1), ("l", 1), ("l", 2), ("m", 3)))
        one = Acquisition(claimed.id, claimed.token, number, name)
        answers = [self.run(self.shard.queue.locks.acquire(one)) for _ in range(self.pick((1, 2)))]
        self.now = self.look()
        for asked in answers:
            assert (asked is None) is not self.holds(claimed)
            if asked is not None:
                self.locked.add(one)
                if asked.fence is not None:
                    expected = {
                        "holder": f"{one.id} {one.token} {number}",
                        "fence": str(asked.fence),
                    }
                    assert self.held_by(self.now)[name] == expected

    def unlock(self) -> None:
        if self.locked:
            one = self.pick(sorted(self.locked))
            self.locked.discard(one)
            for _ in range(self.pick((1, 2))):
                record = self.now.jobs[one.id]
                holds = (record["state"], record["token"]) == ("running", one.token)
                assert self.run(self.shard.queue.locks.release(one)) is holds

    def held_by(self, now: Snapshot) -> dict[str, dict[str, str]]:
        """Holder and fence of each lock."""
        found = {key: value for key, value in now.values.items() if key.startswith("lock:")}
        return {
            key.rpartition(":")[2]: dict(zip(value[::2], value[1::2], strict=True))
            for key, value in found.items()
        }

    def check_fences(self, now: Snapshot) -> None:
        """Each holder of a lock has a larger fence than all holders before."""
        for name, held in self.held_by(now).items():
            last = self.last.setdefault(name, held)
            assert held == last or int(held["fence"]) > int(last["fence"])
            self.last[name] = held
