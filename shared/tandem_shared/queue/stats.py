"""Queues and workers as operators see them, read in few round trips."""

from collections import defaultdict

from redis.asyncio import Redis

from tandem_shared.jobs.states import OPEN, PRIORITIES
from tandem_shared.queue.messages import QueueStats, WorkerInfo
from tandem_shared.queue.scripts import translate_errors

MAX_RUNNING_JOBS = 10_000  # further running jobs are not shown with their workers


async def read_stats(redis: "Redis", prefix: str) -> list[QueueStats]:
    """Every queue that has had a job or is paused, by name."""
    with translate_errors():
        pipe = redis.pipeline(transaction=False)
        pipe.hgetall(f"{prefix}counts")
        pipe.hgetall(f"{prefix}paused")
        counts, paused = await pipe.execute()
        queues: dict[str, dict[str, int]] = {name.decode(): {} for name in paused}
        for field, value in counts.items():
            name, _, state = field.decode().partition(" ")
            queues.setdefault(name, {})[state] = int(value)
        pipe = redis.pipeline(transaction=False)
        pipe.time()
        for name in queues:
            for priority in PRIORITIES:
                pipe.zrange(f"{prefix}q:{name}:{priority}", 0, 0, withscores=True)
        (seconds, micros), *heads = await pipe.execute()
    now, width = seconds + micros / 1e6, len(PRIORITIES)
    stats = []
    for at, (name, states) in zip(range(0, len(heads), width), queues.items(), strict=True):
        dues = [head[0][1] / 1000 for head in heads[at : at + width] if head]
        paused_here = name.encode() in paused
        stats.append(
            QueueStats(
                name=name,
                paused=paused_here,
                oldest_age=round(max(0.0, now - min(dues)), 3) if dues else None,
                **_shown(states, held=paused_here),
            )
        )
    return sorted(stats, key=lambda queue: queue.name)


def _shown(states: dict[str, int], *, held: bool) -> dict[str, int]:
    """Jobs by state; of a queue that is held they wait instead of being queued."""
    shown = {str(state): states.get(state, 0) for state in OPEN}
    if held:
        shown["waiting"] += shown["queued"]
        shown["queued"] = 0
    return shown


async def read_workers(redis: "Redis", prefix: str) -> list[WorkerInfo]:
    """Every live worker, with the jobs that it runs."""
    with translate_errors():
        pipe = redis.pipeline(transaction=False)
        pipe.zrange(f"{prefix}workers", 0, -1, withscores=True)
        pipe.zrange(f"{prefix}leases", 0, MAX_RUNNING_JOBS - 1)
        workers, jobs = await pipe.execute()
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
    )
