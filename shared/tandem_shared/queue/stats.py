"""Queues and workers as operators see them, and what jobs wait for.

All of it is read in portions that keep Redis free for others.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.states import OPEN, State
from tandem_shared.jobs.waiting import WAITING_STATES, Limit, Serving, explained, limit_of
from tandem_shared.queue.messages import QueueStats, WorkerInfo, parse_serving
from tandem_shared.queue.scripts import MAX_CALL_BYTES, Scripts, translate_errors

CALL_QUEUES = 200  # read per call
MAX_RUNNING_JOBS = 10_000  # further running jobs are not shown with their workers
VIEW_SECONDS = 1.0  # what jobs wait for is at most this old
MAX_LIMITS = 1000  # known at once, of up to about 600 bytes each


class Waiting:
    """Tells what jobs wait for. Redis is asked about all of them once in VIEW_SECONDS."""

    def __init__(self, redis: Any, prefix: str, scripts: Scripts) -> None:
        self._redis, self._prefix, self._scripts = redis, prefix, scripts
        self._serving = Serving()
        self._limits: dict[str, Limit] = {}
        self._until = 0.0
        self._reading = asyncio.Lock()

    def forget(self) -> None:
        """Makes the next caller ask Redis again."""
        self._until = 0.0

    async def serving(self) -> Serving:
        """What can run, at most VIEW_SECONDS ago. Raises Unavailable."""
        if time.monotonic() >= self._until:
            async with self._reading:
                start = time.monotonic()
                if start >= self._until:
                    self._serving = await read_serving(self._scripts)
                    self._limits.clear()
                    self._until = start + VIEW_SECONDS
        return self._serving

    async def explain(self, record: Record) -> Record:
        """The job as clients see it."""
        if record.state not in WAITING_STATES:
            return record
        if record.state is State.QUEUED and time.monotonic() < self._until:
            return explained(record, self._serving, {})  # the most frequent case
        (shown,) = await self.explain_all([record])
        return shown

    async def explain_all(self, records: Sequence[Record]) -> list[Record]:
        """The jobs as clients see them: those that wait are shown with the reason."""
        try:
            serving = await self.serving()
            await self._read_limits({name for one in records if (name := limit_of(one))})
        except Unavailable:
            return list(records)  # the jobs themselves were read, so they are shown without it
        return [explained(one, serving, self._limits) for one in records]

    async def _read_limits(self, wanted: Iterable[str]) -> None:
        names = [name for name in wanted if name not in self._limits]
        if not names:
            return
        with translate_errors():
            pipe = self._redis.pipeline(transaction=False)
            for name in names:
                fields = ["slots", "every", "burst", "tat"]
                pipe.hmget(f"{self._prefix}limit:{name}", fields)
                pipe.scard(f"{self._prefix}slots:{name}")
            found = await pipe.execute()
        if len(self._limits) + len(names) > MAX_LIMITS:
            self._limits.clear()
        for name, (slots, *rate), running in zip(names, found[::2], found[1::2], strict=True):
            if slots is None:
                continue  # no job waits for it any more
            every, burst, on_time = (int(value or 0) for value in rate)
            next_start = (on_time - max(0, burst - 1) * every) / 1000  # as in lua/lib/limits.lua
            self._limits[name] = Limit(int(slots), running, next_start)


async def read_serving(scripts: Scripts) -> Serving:
    """What live workers can run, and what is paused."""
    return parse_serving(await scripts.run("serving", MAX_CALL_BYTES))


async def read_stats(
    redis: Any, prefix: str, scripts: Scripts, names: Sequence[str] | None = None
) -> list[QueueStats]:
    """These queues; without `names`, every queue with jobs, workers or a pause, by name."""
    serving = await read_serving(scripts)
    with translate_errors():
        counts = await _counts(redis, f"{prefix}counts", names)
    if names is None:
        names = sorted({*counts, *serving.queues, *serving.paused})
    stats = []
    for start in range(0, len(names), CALL_QUEUES):
        some = names[start : start + CALL_QUEUES]
        now, *dues = await scripts.run("oldest_due", *some)
        stats += [
            QueueStats(
                name=name,
                paused=name in serving.paused,
                oldest_age=max(0.0, (int(now) - int(due)) / 1000) if due else None,
                workers=serving.queues.get(name, 0),
                **_shown(counts.get(name, {}), held=serving.holds(name)),
            )
            for name, due in zip(some, dues, strict=True)
        ]
    return stats


def _shown(states: dict[str, int], *, held: bool) -> dict[str, int]:
    """Jobs by state; of a queue that is held they wait instead of being queued."""
    shown = {str(state): states.get(state, 0) for state in OPEN}
    if held:
        shown["waiting"] += shown["queued"]
        shown["queued"] = 0
    return shown


async def _counts(redis: Any, key: str, names: Sequence[str] | None) -> dict[str, dict[str, int]]:
    """The numbers of unfinished jobs by queue and state, read in portions."""
    counts: dict[str, dict[str, int]] = {}
    if names is None:
        pairs = [pair async for pair in redis.hscan_iter(key, count=CALL_QUEUES)]
    else:
        fields = [f"{name} {state}".encode() for name in names for state in OPEN]
        pairs = list(zip(fields, await redis.hmget(key, fields), strict=True))
    for field, value in pairs:
        name, _, state = field.decode().partition(" ")
        counts.setdefault(name, {})[state] = int(value or 0)
    return counts


async def read_workers(redis: Any, prefix: str, *, with_jobs: bool) -> list[WorkerInfo]:
    """Every live worker, with the jobs that it runs if they are asked for."""
    with translate_errors():
        pipe = redis.pipeline(transaction=False)
        pipe.zrange(f"{prefix}workers", 0, -1, withscores=True)
        if with_jobs:
            pipe.zrange(f"{prefix}leases", 0, MAX_RUNNING_JOBS - 1)
        workers, *rest = await pipe.execute()
        jobs = rest[0] if with_jobs else []
        for worker, _ in workers:
            pipe.hgetall(f"{prefix}worker:{worker.decode()}")
        for job in jobs:
            pipe.hget(f"{prefix}job:{job.decode()}", "token")
        found = await pipe.execute()
    running: dict[bytes, list[str]] = defaultdict(list)
    for job, token in zip(jobs, found[len(workers) :], strict=True):
        running[(token or b"").partition(b".")[2]].append(job.decode())
    return [
        _worker(id, seen, facts, running[id])
        for (id, seen), facts in zip(workers, found[: len(workers)], strict=True)
        if b"host" in facts
    ]


def _worker(id: bytes, seen: float, facts: dict[bytes, bytes], running: list[str]) -> WorkerInfo:
    return WorkerInfo(
        id=id.decode(),
        host=facts[b"host"].decode(),
        pid=int(facts[b"pid"]),
        queues=tuple(facts[b"queues"].decode().split(",")),
        concurrency=int(facts[b"concurrency"]),
        version=facts[b"version"].decode(),
        started_at=int(facts[b"started"]) / 1000,
        last_seen=seen / 1000,
        draining=facts.get(b"draining") == b"1",
        running=tuple(running),
        setup=facts.get(b"setup", b"").decode(),
        zombies=int(facts.get(b"zombies", 0)),
    )
