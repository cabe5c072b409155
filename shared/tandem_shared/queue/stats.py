"""Queues and workers as operators see them, read in portions that keep Redis free for others."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tandem_shared.jobs.states import OPEN
from tandem_shared.queue.messages import QueueStats, WorkerInfo, parse_serving
from tandem_shared.queue.scripts import Scripts, translate_errors

CALL_QUEUES = 200  # read per call
MAX_RUNNING_JOBS = 10_000  # further running jobs are not shown with their workers


async def read_stats(
    redis: Any, prefix: str, scripts: Scripts, names: Sequence[str] | None = None
) -> list[QueueStats]:
    """These queues; without `names`, every queue with jobs, workers or a pause, by name."""
    serving = parse_serving(await scripts.run("serving")).queues
    with translate_errors():
        paused = await redis.hgetall(f"{prefix}paused")
        counts = await _counts(redis, f"{prefix}counts", names)
    if names is None:
        names = sorted({*counts, *serving, *(name.decode() for name in paused)})
    stats = []
    for start in range(0, len(names), CALL_QUEUES):
        some = names[start : start + CALL_QUEUES]
        now, *dues = await scripts.run("oldest_due", *some)
        stats += [
            QueueStats(
                name=name,
                paused=name.encode() in paused,
                oldest_age=max(0.0, (int(now) - int(due)) / 1000) if due else None,
                workers=serving.get(name, 0),
                **_shown(counts.get(name, {}), held=name.encode() in paused),
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
    )
