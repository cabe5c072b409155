"""Item 6: the queue's scripts while many jobs wait."""

from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from bench.figures import OURS, Figure
from bench.peers.tandem import job
from bench.processes import open_redis
from shared import catalogue
from shared.jobs import State
from shared.queue import Finish, Queue, WorkerInfo, connect

DEPTHS = (10, 10_000, 1_000_000)
SHALLOW = (10, 10_000, 100_000)  # where there is little time
BATCH = 100  # what a worker claims and finishes at once
PORTION = 10_000  # jobs that wait for their submission in memory
ENTRY = catalogue.Entry(name="bench.noop", summary="", payload_schema={}, result_schema={}, defaults={})
WORKER = WorkerInfo(id="b-1", host="b", pid=1, queues=("default",), concurrency=9999, version="1", started_at=1e9)


class Depth:
    """One client that is also the worker, so that the number of waiting jobs stays what it is."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._digest = catalogue.digest([ENTRY])
        self._calls = self._deep = 0

    async def reach(self, depth: int) -> None:
        while self._deep < depth:
            count = min(PORTION, depth - self._deep)
            await self._queue.submit_many([job() for _ in range(count)])
            self._deep += count

    async def turns(self, seconds: float) -> tuple[float, float]:
        """Jobs submitted and claimed per second of the time that each took."""
        submitting = claiming = 0.0
        jobs, late = 0, perf_counter() + seconds
        while perf_counter() < late:
            wanted = [job() for _ in range(BATCH)]
            began = perf_counter()
            await self._queue.submit_many(wanted)
            between = perf_counter()
            self._calls += 1
            claim = await self._queue.claim(
                WORKER.id, self._calls, slots=BATCH, tasks=self._digest, queues=WORKER.queues
            )
            ended = perf_counter()
            submitting += between - began
            claiming += ended - between
            jobs += len(claim.jobs)
            await self._queue.finish(
                [Finish(one.id, one.token, State.SUCCEEDED, "succeeded", b"null") for one in claim.jobs]
            )
        return jobs / submitting, jobs / claiming


async def measure(seconds: float) -> AsyncIterator[Figure]:
    """Rates at each depth, and the deepest against the first."""
    with TemporaryDirectory(prefix="bench-") as data:
        async with open_redis(Path(data)) as url:
            redis = connect(url)
            queue = Queue(redis, lease=600)  # nobody beats here
            await queue.register(WORKER, [ENTRY])
            depth = Depth(queue)
            await depth.turns(0.3)
            claimed, submitted = [], []
            deepest = DEPTHS if seconds >= 3 else SHALLOW
            for count in deepest:
                await depth.reach(count)
                submits, claims = await depth.turns(seconds)
                submitted.append(submits)
                claimed.append(claims)
                yield Figure(f"claimed by 100, {count:,} waiting", "jobs/s", OURS, claims)
                yield Figure(f"submitted by 100, {count:,} waiting", "jobs/s", OURS, submits)
            words = f"{deepest[-1]:,} waiting against {deepest[0]}"
            yield Figure(f"claimed, {words}", "×", OURS, claimed[-1] / claimed[0])
            yield Figure(f"submitted, {words}", "×", OURS, submitted[-1] / submitted[0])
            await queue.close()
            await redis.aclose()
