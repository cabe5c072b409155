"""Queues and workers as operators see them: read in few round trips, changed by nobody here."""

from typing import Any

from redis.asyncio import Redis

from tandem_shared.jobs.states import OPEN, PRIORITIES
from tandem_shared.queue.messages import QueueStats, WorkerInfo
from tandem_shared.queue.scripts import reach


async def read_stats(redis: "Redis", prefix: str) -> list[QueueStats]:
    """Every queue that ever had a job or is paused."""
    rows: Any = await reach(lambda: redis.hgetall(f"{prefix}counts"))
    counts: dict[str, dict[str, int]] = {}
    for field, value in rows.items():
        queue, _, state = field.decode().partition(" ")
        counts.setdefault(queue, {})[state] = int(value)
    held: Any = await reach(lambda: redis.hgetall(f"{prefix}paused"))
    for name in held:
        counts.setdefault(name.decode(), {})

    async def call() -> list[Any]:
        pipe = redis.pipeline(transaction=False)
        pipe.time()
        for queue in counts:
            for priority in PRIORITIES:
                pipe.zrange(f"{prefix}q:{queue}:{priority}", 0, 0, withscores=True)
                pipe.zrange(f"{prefix}park:queue:{queue}:{priority}", 0, 0, withscores=True)
        return await pipe.execute()

    (sec, micro), *heads = await reach(call)
    stats = []
    for index, (queue, states) in enumerate(counts.items()):
        dues = [head[0][1] / 1000 for head in heads[6 * index : 6 * index + 6] if head]
        age = round(max(0.0, sec + micro / 1e6 - min(dues)), 3) if dues else None
        stats.append(
            QueueStats(
                name=queue,
                paused=held.get(queue.encode()) == b"1",
                oldest_age=age,
                **{state: states.get(state, 0) for state in OPEN},
            )
        )
    return sorted(stats, key=lambda one: one.name)


async def read_workers(redis: "Redis", prefix: str) -> list[WorkerInfo]:
    """Every live worker, and what each runs."""

    async def call() -> tuple[Any, Any]:
        pipe = redis.pipeline(transaction=False)
        pipe.zrange(f"{prefix}workers", 0, -1, withscores=True)
        pipe.zrange(f"{prefix}leases", 0, 9999)
        seen, ids = await pipe.execute()
        for worker, _ in seen:
            pipe.hgetall(f"{prefix}worker:{worker.decode()}")
        for id in ids:
            pipe.hget(f"{prefix}job:{id.decode()}", "token")
        found = await pipe.execute()
        holders = [(token or b"").partition(b".")[2] for token in found[len(seen) :]]
        return list(zip(seen, found[: len(seen)], strict=True)), list(
            zip(holders, ids, strict=True)
        )

    workers, held = await reach(call)
    return [
        WorkerInfo(
            id=id.decode(),
            host=facts[b"host"].decode(),
            pid=int(facts[b"pid"]),
            queues=tuple(facts[b"queues"].decode().split(",")),
            concurrency=int(facts[b"concurrency"]),
            version=facts[b"version"].decode(),
            started_at=int(facts[b"started"]) / 1000,
            last_seen=seen / 1000,
            draining=facts.get(b"draining") == b"1",
            running=tuple(job.decode() for holder, job in held if holder == id),
        )
        for (id, seen), facts in workers
        if b"host" in facts
    ]
