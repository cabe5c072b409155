"""What is done to the processes of a chaos run, by a seed: the same seed, the same schedule."""

import asyncio
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

from shared.jobs import State
from shared.queue import Finish, Queue
from shared.queue.connections import connect
from tests.chaos.stage import APIS, LEASE, WORKERS, Process, Stage

WEIGHTS = {
    "kill worker": 5, "stop worker": 4, "end worker": 3, "kill api": 3, "end api": 3, "stop api": 2, "kill redis": 2,
    "stop redis": 2, "cut redis": 4, "slow redis": 2, "stall redis": 2, "cut clients": 4, "slow clients": 2,
    "stall clients": 2, "end database": 1, "no disk": 2, "late finishes": 4,
}  # fmt: skip


class Fault(NamedTuple):
    """What happens `at` so many seconds after the begin, to which of its kind, for how long."""

    at: float
    kind: str
    target: int
    seconds: float


def schedule(seed: int, seconds: float, pause: float, weights: dict[str, int]) -> list[Fault]:
    """Faults for that many seconds, `pause` apart on average."""
    chance = random.Random(seed)
    faults, at = [], 1.0
    while at < seconds:
        kind = chance.choices(list(weights), list(weights.values()))[0]
        # Longer than a lease as well as shorter: zombies are made by the former.
        faults.append(Fault(at, kind, chance.randrange(12), chance.uniform(0.2, 2.5) * LEASE))
        at += chance.uniform(0.5, 1.5) * pause
    return faults


class Faults:
    """Does them. A target that is still under an earlier fault is left alone; `done` counts what happened."""

    def __init__(self, stage: Stage) -> None:
        self.done: Counter[str] = Counter()
        self.times: list[tuple[float, float]] = []  # seconds since the epoch, of each
        self.codes: list[str] = []  # of processes that were told to end and did not do so well
        self._stage = stage
        self._under: set[str] = set()

    async def run(self, faults: list[Fault]) -> None:
        """The whole schedule, and then until everything is as it was."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, begun + fault.at - loop.time()))
                group.create_task(self._one(fault))
            keep = group.create_task(self._keep_workers())
            await asyncio.sleep(max(0.0, begun + (faults[-1].at if faults else 0) - loop.time()))
            keep.cancel()
        for one in self._stage.workers:  # poison may have had the last word
            if not one.alive:
                one.start()

    async def _keep_workers(self) -> None:
        """As a supervisor does: a worker that ended by itself is started again."""
        while True:
            for one in self._stage.workers:
                if not one.alive and one.name not in self._under:
                    self.done["died"] += 1
                    self.times.append((time.time() - 1, time.time()))
                    one.start()
            await asyncio.sleep(0.2)

    async def _one(self, fault: Fault) -> None:
        stage = self._stage
        what, _, whom = fault.kind.partition(" ")
        target, name = fault.target, whom
        if whom in ("worker", "disk"):
            target = fault.target % WORKERS
            name = f"worker-{target}"
        elif whom == "api":
            target = fault.target % APIS
            name = f"api-{target}"
        if name in self._under or (whom in ("redis", "clients") and f"relay {whom}" in self._under):
            return
        self._under.add(name)
        begun = time.time()
        try:
            await self._act(what, whom, target, fault.seconds, stage)
            self.done[fault.kind] += 1
        finally:
            self.times.append((begun, time.time()))
            self._under.discard(name)

    async def _act(self, what: str, whom: str, target: int, seconds: float, stage: Stage) -> None:
        relay = stage.to_redis if whom == "redis" else stage.front
        match (what, whom):
            case ("kill" | "end" | "stop", "worker"):
                one = stage.workers[target]
                await self._treat(what, one, one.start, seconds)
            case ("kill" | "end" | "stop", "api"):
                await self._treat(what, stage.apis[target], lambda: stage.start_api(target), seconds)
            case ("kill" | "stop", "redis"):
                await self._treat(what, stage.redis, stage.redis.start, seconds)
            case ("end", "database"):
                await stage.postgres.end(signal.SIGQUIT)
                await asyncio.sleep(seconds)
                stage.postgres.start()
            case ("cut", _):
                relay.cut(random.choice((0.3, 1.0)))
            case ("slow", _):
                relay.delay = random.uniform(0.005, 0.1)
                await asyncio.sleep(seconds)
                relay.delay = 0.0
            case ("stall", _):
                relay.stall()
                await asyncio.sleep(seconds)
                relay.flow()
            case ("no", "disk"):
                await self._no_disk(stage.workers[target], seconds)
            case ("late", "finishes"):
                await self._late_finishes()

    async def _treat(self, what: str, one: Process, start: Callable[[], None], seconds: float) -> None:
        if what == "stop":
            one.send(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            one.send(signal.SIGCONT)
            return
        young = monotonic() - one.started < 3  # perhaps too young to have heard the signal
        code = await one.end(signal.SIGKILL if what == "kill" else signal.SIGTERM)
        if what == "end" and code not in (0, None) and not young:
            self.codes.append(f"{one.name} ended with {code} after SIGTERM")
        await asyncio.sleep(random.uniform(0, seconds) / 2)
        start()

    async def _no_disk(self, one: Process, seconds: float) -> None:
        """Its files may not grow beyond a few kilobytes, as if the disk were full."""
        pid = one.pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, before[1]))
        await asyncio.sleep(seconds)
        if one.alive and one.pid == pid:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    async def _fence(self, redis: Any, id: str) -> tuple[str, str]:
        """Token and state of a job."""
        token, state = await redis.hmget(f"tandem:{{a}}:job:{id}", "token", "state")
        return (token or b"").decode(), (state or b"").decode()

    async def _late_finishes(self) -> None:
        """Somebody who had a job finishes it again, and once more, long after it was taken away."""
        redis = connect(f"unix://{self._stage.redis_socket}?db=0")
        queue = Queue(redis, lease=LEASE)
        try:
            held: dict[str, str] = {}
            for id in await redis.zrange("tandem:{a}:leases", 0, 20):
                token, _ = await self._fence(redis, id.decode())
                if token:
                    held[id.decode()] = token
            await asyncio.sleep(1.5 * LEASE)
            for id, token in held.items():
                if await self._fence(redis, id) == (token, "running"):
                    continue  # it still has it
                body = b'{"type":"late","message":"too late","retryable":false,"attempt":1}'
                late = Finish(id, token, State.FAILED, "failed", body)
                await queue.finish([late, late])
        except Exception as error:  # noqa: BLE001 - Redis may be the one that is under a fault
            self.done[f"late finishes: {type(error).__name__}"] += 1
        finally:
            await queue.close()
            await redis.aclose()
