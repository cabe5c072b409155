"""How the processes of a chaos run are hurt, and started again by a supervisor."""

import asyncio
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
from redis.exceptions import RedisError

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import State
from tandem_shared.queue.connections import connect
from tandem_shared.queue.messages import Finish
from tandem_shared.queue.queue import Queue
from tests.chaos.relay import Relay
from tests.chaos.schedule import Fault
from tests.chaos.stage import APIS, LEASE, PREFIX, WORKERS, Process, Stage

HARMLESS = {"late finishes", "pause queue"}  # nobody may lose a job by these
LOOKED = 20  # jobs that somebody else tries to finish


class Faults:
    """Does them. A target that is still under an earlier fault is left alone; `done` counts what happened."""

    def __init__(self, stage: Stage) -> None:
        self.done: Counter[str] = Counter()
        self.times: list[tuple[float, float]] = []  # seconds since the epoch, of each that hurts
        self.crashes: list[float] = []  # of Redis
        self.pauses: list[tuple[float, float]] = []
        self.codes: list[str] = []  # of processes that were told to end and did not do so well
        self._stage = stage
        self._under: set[str] = set()

    async def run(self, faults: Sequence[Fault]) -> None:
        """The whole schedule, and then until everything is as it was."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, begun + fault.at - loop.time()))
                group.create_task(self._one(fault))
        await self._turn("resume")  # a crash of Redis may have forgotten that it was

    async def supervise(self) -> None:
        """Until it is cancelled: a worker that ended by itself is started again."""
        while True:
            for one in self._stage.workers:
                if not one.alive and one.name not in self._under:
                    self.done["died"] += 1
                    self.times.append((time.time() - 1, time.time()))
                    one.start()
            await asyncio.sleep(0.2)

    async def _one(self, fault: Fault) -> None:
        what, _, whom = fault.kind.partition(" ")
        target, name = fault.target, whom
        if whom in ("worker", "disk"):
            target = fault.target % WORKERS
            name = f"worker-{target}"
        elif whom == "api":
            target = fault.target % APIS
            name = f"api-{target}"
        if name in self._under:
            return
        self._under.add(name)
        begun = time.time()
        try:
            await self._act(what, whom, target, fault)
            self.done[fault.kind] += 1
        finally:
            if fault.kind not in HARMLESS:
                self.times.append((begun, time.time()))
            self._under.discard(name)

    async def _act(self, what: str, whom: str, target: int, fault: Fault) -> None:
        stage = self._stage
        match (what, whom):
            case ("kill" | "end" | "stop", "worker"):
                one = stage.workers[target]
                await self._treat(what, one, one.start, fault)
            case ("kill" | "end" | "stop", "api"):
                await self._treat(what, stage.apis[target], lambda: stage.start_api(target), fault)
            case ("kill" | "stop", "redis"):
                await self._treat(what, stage.redis, stage.redis.start, fault)
            case ("end", "database"):
                await stage.postgres.end(signal.SIGQUIT)
                await asyncio.sleep(fault.seconds)
                stage.postgres.start()
            case ("cut" | "slow" | "stall", _):
                await self._disturb(what, stage.to_redis if whom == "redis" else stage.front, fault)
            case ("no", "disk"):
                await self._no_disk(stage.workers[target], fault.seconds)
            case ("late", "finishes"):
                await self._late_finishes()
            case ("pause", "queue"):
                begun = await self._turn("pause")
                await asyncio.sleep(fault.seconds)
                self.pauses.append((begun, time.time()))
                await self._turn("resume")
            case _:
                raise ValueError(f"there is no fault {fault.kind!r}")

    async def _treat(
        self, what: str, one: Process, start: Callable[[], None], fault: Fault
    ) -> None:
        if what == "stop":
            one.send(signal.SIGSTOP)
            await asyncio.sleep(fault.seconds)
            one.send(signal.SIGCONT)
            return
        served = self._stage.serves(one)
        if what == "kill" and one is self._stage.redis:
            self.crashes.append(time.time())
        code = await one.end(signal.SIGKILL if what == "kill" else signal.SIGTERM)
        # Until it serves, and so has something to hand back, SIGTERM may end it as it ends any
        # program.
        if what == "end" and code not in (0, None, *((-signal.SIGTERM,) if not served else ())):
            self.codes.append(f"{one.name} ended with {code} after SIGTERM")
        await asyncio.sleep(fault.dice * fault.seconds / 2)
        start()

    async def _disturb(self, what: str, relay: Relay, fault: Fault) -> None:
        if what == "cut":
            relay.cut(0.3 if fault.dice < 0.5 else 1.0, random.Random(fault.dice))
        elif what == "slow":
            relay.delay = 0.005 + 0.095 * fault.dice
            await asyncio.sleep(fault.seconds)
            relay.delay = 0.0
        else:
            relay.stall()
            await asyncio.sleep(fault.seconds)
            relay.flow()

    async def _no_disk(self, one: Process, seconds: float) -> None:
        """Its files may not grow, as if the disk were full."""
        pid = one.pid
        if not one.alive:
            return
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
        await asyncio.sleep(seconds)
        if one.alive and one.pid == pid:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    async def _turn(self, word: str) -> float:
        """Pauses or resumes the queue, however often that has to be asked for; when it was answered."""
        url = f"http://127.0.0.1:{self._stage.front.port}/v1/queues/default/{word}"
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            while True:
                try:
                    async with session.post(url) as answer:
                        if answer.status == 200:
                            return time.time()
                except (aiohttp.ClientError, TimeoutError, OSError):
                    pass
                await asyncio.sleep(0.1)

    async def _late_finishes(self) -> None:
        """Who has, or had, a job finishes it otherwise, twice: after it ended, or after somebody else has got it."""
        redis = connect(f"unix://{self._stage.redis_socket}?db=0")
        queue = Queue(redis, lease=LEASE)
        try:
            held: dict[str, bytes] = {}
            for id in await redis.zrange(f"{PREFIX}leases", 0, LOOKED):
                token, _ = await _fence(redis, id.decode())
                if token:
                    held[id.decode()] = token
            await asyncio.sleep(1.5 * LEASE)
            for id, token in held.items():
                now, state = await _fence(redis, id)
                if (now, state) == (token, b"running"):
                    continue  # it still has it
                body = b'{"type":"late","message":"too late","retryable":false,"attempt":1}'
                late = Finish(id, token.decode(), State.FAILED, "failed", body)
                await queue.finish([late, late])
                self.done["finished again" if now == token else "finished by who lost it"] += 1
        except (Unavailable, RedisError, OSError):  # Redis may be the one that is under a fault
            self.done["finished in vain"] += 1
        finally:
            await queue.close()
            await redis.aclose()


async def _fence(redis: Any, id: str) -> tuple[bytes, bytes]:
    """Token and state of a job."""
    token, state = await redis.hmget(f"{PREFIX}job:{id}", "token", "state")
    return token or b"", state or b""
