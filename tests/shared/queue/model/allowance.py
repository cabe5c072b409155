"""What the limits of one task allow, computed independently of the queue."""

from collections.abc import Mapping, Sequence
from typing import Any

from tandem_shared.catalogue import Limits, parse_limits
from tandem_shared.queue.messages import Claimed
from tests.shared.queue.model.shard import Shard, Snapshot, pairs

# Limits of the task `t` that workers publish during a run of the state machine.
LIMITS: tuple[dict[str, Any], ...] = (
    {}, {"concurrency": 1}, {"concurrency": 2}, {"rate": "2/5s"}, {"rate": "40/s"},
    {"concurrency": 2, "rate": "1/s"},
)  # fmt: skip


class Allowance:
    """Gets every registration and every start, and fails on starts beyond the limits."""

    def __init__(self, shard: Shard, task: str) -> None:
        self._shard, self._task = shard, task
        self._newest = 0  # registered version
        self.published: Mapping[str, Any] = {}  # its limits
        self._registered = {parse_limits(None, None)}
        self._limits = parse_limits(None, None)  # those that hold
        self._due = 0  # µs of `shard.lived` at which the next start would be on time
        self._slotted: set[tuple[str, str]] = set()  # attempts that began under a concurrency limit

    def publish(self, version: int, given: Mapping[str, Any]) -> None:
        """A worker registers. The limits of one of the live ones with the newest version hold."""
        if version >= self._newest:
            self._newest, self.published = version, given
        self._registered.add(parse_limits(given.get("concurrency"), given.get("rate")))

    def look(self, snapshot: Snapshot) -> None:
        """Notes the limits that hold now."""
        kept = pairs(snapshot.values.get(f"limit:task:{self._task}", []))
        limits = Limits(*(int(kept.get(name, 0)) for name in ("slots", "every", "burst")))
        if not (limits.slots or limits.every):
            limits = parse_limits(None, None)
        assert limits in self._registered
        if limits != self._limits:
            self._limits = limits
            self._due = min(self._due, self._shard.lived + limits.burst * limits.every)

    def start(self, claimed: Sequence[Claimed], after: Snapshot) -> None:
        """Checks that the limits allow these starts."""
        self.look(after)
        own = [one for one in claimed if one.task == self._task]
        slots, every, burst = self._limits
        if own and slots:
            self._slotted |= {(one.id, one.token) for one in own}
            assert len(self.running(after)) <= slots
        for _ in own if every else ():
            assert self._shard.lived >= self._due - (burst - 1) * every, "too many starts"
            self._due = max(self._due, self._shard.lived) + every

    def running(self, snapshot: Snapshot) -> set[tuple[str, str]]:
        """Attempts that hold a slot."""
        return self._slotted & {
            (id, record["token"])
            for id, record in snapshot.jobs.items()
            if record["state"] == "running"
        }

    def startable(self, snapshot: Snapshot) -> list[str]:
        """Jobs that wait only for the rate of their task, while it has free slots."""
        self.look(snapshot)
        if self._limits.slots and len(self.running(snapshot)) >= self._limits.slots:
            return []
        return [
            id for id, record in snapshot.jobs.items()
            if record["state"] == "waiting" and record["park"].startswith("limit:")
            and not {"ck", "exp"} & record.keys() and int(record.get("losses", 0)) < 2
        ]  # fmt: skip
