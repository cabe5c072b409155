"""How faults are injected in a chaos run, and how dead workers are restarted."""

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
from tests.chaos.check.evidence import AOF_LOSS_SECONDS, Silence, Span
from tests.chaos.relay import Relay
from tests.chaos.schedule import ScheduledFault
from tests.chaos.stage import APIS, LEASE_SECONDS, PREFIX, WORKERS, Process, Stage

HARMLESS = {
    "late finishes",
    "pause queue",
    "shift worker",
    "shift api",
}  # no worker may lose a job because of these
SHIFT_DAYS = 40  # by which a host's clock is wrong for a while
LATE_JOBS = 20  # that an intruder tries to finish


class Faults:
    """Injects faults, but never two at once into the same target."""

    def __init__(self, stage: Stage) -> None:
        self.done: Counter[str] = Counter()  # how often each kind was injected
        self.times: list[Span] = []  # of the faults that may cost a worker its jobs
        self.crashes: list[float] = []  # of Redis, in seconds since the epoch
        self.rewinds: list[float] = []  # when Redis was put back, the same
        self.deaths: list[Span] = []  # of APIs and workers that were killed or exited
        self.silences: list[Silence] = []  # in which a worker may miss what it has claimed
        self.pauses: list[Span] = []
        self.bad_exits: list[str] = []  # processes that did not exit cleanly after SIGTERM
        self._stage = stage
        self._affected: set[str] = set()  # names of the targets that are under a fault

    async def run(self, faults: Sequence[ScheduledFault]) -> None:
        """Inject the whole schedule; returns once every fault is over."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, start + fault.at - loop.time()))
                group.create_task(self._inject(fault))
        await self._switch_queue("resume")  # a crash of Redis may have undone the last resume

    async def supervise(self) -> None:
        """Restart workers that have exited by themselves, until cancelled."""
        while True:
            for worker in self._stage.workers:
                if not worker.alive and worker.name not in self._affected:
                    self.done["died"] += 1
                    self.times.append((time.time() - 1, time.time()))
                    self.deaths.append(self.times[-1])
                    self.silences.append(Silence(*self.times[-1], worker.pid))
                    worker.start()
            await asyncio.sleep(0.2)

    async def _inject(self, fault: ScheduledFault) -> None:
        what, _, whom = fault.kind.partition(" ")
        target, name = fault.target, whom
        if whom in ("worker", "disk"):
            target = fault.target % WORKERS
            name = f"worker-{target}"
        elif whom == "api":
            target = fault.target % APIS
            name = f"api-{target}"
        if name in self._affected:
            return
        self._affected.add(name)
        start = time.time()
        pid = self._stage.workers[target].pid if whom == "worker" else 0
        try:
            await self._act(what, whom, target, fault)
            self.done[fault.kind] += 1
        finally:
            if fault.kind not in HARMLESS:
                self.times.append((start, time.time()))
                if whom in ("worker", "redis"):
                    self.silences.append(Silence(start, time.time(), pid))
            if what in ("kill", "end") and whom in ("worker", "api"):
                self.deaths.append((start, time.time()))
            self._affected.discard(name)

    async def _act(self, what: str, whom: str, target: int, fault: ScheduledFault) -> None:
        stage = self._stage
        match (what, whom):
            case ("no", "disk"):
                await self._no_disk(stage.workers[target], fault.seconds)
            case (_, "worker"):
                worker = stage.workers[target]
                await self._interrupt(what, worker, worker.start, fault)
            case (_, "api"):
                await self._interrupt(
                    what, stage.apis[target], lambda: stage.start_api(target), fault
                )
            case ("rewind", "redis"):
                await self._rewind(fault)
            case ("kill" | "stop", "redis"):
                await self._interrupt(what, stage.redis, stage.redis.start, fault)
            case ("end", "database"):
                await stage.postgres.end(signal.SIGQUIT)
                await asyncio.sleep(fault.seconds)
                stage.postgres.start()
            case ("cut" | "slow" | "stall", _):
                await self._disturb(what, stage.to_redis if whom == "redis" else stage.front, fault)
            case ("late", "finishes"):
                await self._late_finishes()
            case ("pause", "queue"):
                start = await self._switch_queue("pause")
                await asyncio.sleep(fault.seconds)
                self.pauses.append((start, time.time()))
                await self._switch_queue("resume")
            case _:
                raise ValueError(f"unknown fault {fault.kind!r}: add it to faults.py")

    async def _interrupt(
        self, what: str, process: Process, start: Callable[[], None], fault: ScheduledFault
    ) -> None:
        """Suspend a process or shift its clock for a while, or end it and start it again."""
        if what == "shift":
            process.set_clock(SHIFT_DAYS if fault.dice < 0.5 else -SHIFT_DAYS)
            await asyncio.sleep(fault.seconds)
            process.set_clock(0)
            return
        if what in ("stop", "suspend"):
            process.send(signal.SIGSTOP)
            await asyncio.sleep(fault.seconds)
            process.send(signal.SIGCONT)
            return
        served = self._stage.serves(process)
        if what == "kill" and process is self._stage.redis:
            self.crashes.append(time.time())
        code = await process.end(signal.SIGKILL if what == "kill" else signal.SIGTERM)
        # A process that does not serve yet has nothing to hand back: SIGTERM may simply kill it.
        clean = (0, None) if served else (0, None, -signal.SIGTERM)
        if what == "end" and code not in clean:
            self.bad_exits.append(f"{process.name} exited with code {code} after SIGTERM")
        await asyncio.sleep(fault.dice * fault.seconds / 2)
        start()

    async def _rewind(self, fault: ScheduledFault) -> None:
        """Bring Redis back as it was two seconds before its end."""
        redis = self._stage.redis
        self.rewinds.append(time.time())
        await redis.end(signal.SIGKILL)
        self._stage.history.cut_back(AOF_LOSS_SECONDS)
        await asyncio.sleep(fault.dice * fault.seconds / 4)
        redis.start()

    async def _disturb(self, what: str, relay: Relay, fault: ScheduledFault) -> None:
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

    async def _no_disk(self, process: Process, seconds: float) -> None:
        """Keep the process's files from growing, as if the disk were full."""
        pid = process.pid
        if not process.alive:
            return
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
        await asyncio.sleep(seconds)
        if process.alive and process.pid == pid:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    async def _switch_queue(self, action: str) -> float:
        """Pause or resume the queue, however often it must be tried; when it was answered."""
        url = f"http://127.0.0.1:{self._stage.front.port}/v1/queues/default/{action}"
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
        """Finish jobs again, with stale tokens: that must change nothing."""
        redis = connect(f"unix://{self._stage.redis_socket}?db=0")
        queue = Queue(redis, lease=LEASE_SECONDS)
        try:
            held: dict[str, bytes] = {}
            for id in await redis.zrange(f"{PREFIX}leases", 0, LATE_JOBS):
                token, _ = await _fence(redis, id.decode())
                if token:
                    held[id.decode()] = token
            await asyncio.sleep(1.5 * LEASE_SECONDS)
            for id, token in held.items():
                now, state = await _fence(redis, id)
                if (now, state) == (token, b"running"):
                    continue  # the token is still valid
                body = b'{"type":"late","message":"too late","retryable":false,"attempt":1}'
                late = Finish(id, token.decode(), State.FAILED, "failed", body)
                await queue.finish([late, late])
                self.done["finished again" if now == token else "finished with a stale token"] += 1
        except (Unavailable, RedisError, OSError):  # Redis may be down itself
            self.done["late finishes without Redis"] += 1
        finally:
            await queue.close()
            await redis.aclose()


async def _fence(redis: Any, id: str) -> tuple[bytes, bytes]:
    """A job's (token, state)."""
    token, state = await redis.hmget(f"{PREFIX}job:{id}", "token", "state")
    return token or b"", state or b""
