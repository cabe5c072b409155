"""Item 6: the queue's scripts at different sizes of the backlog."""

from asyncio import sleep
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from bench.figures import OURS, Figure
from bench.peers.tandem import new_job
from bench.processes import open_redis
from tandem_shared import catalogue
from tandem_shared.jobs.states import State
from tandem_shared.queue.connections import connect
from tandem_shared.queue.messages import Finish, WorkerInfo
from tandem_shared.queue.queue import Queue

DEPTHS = (10, 10_000, 1_000_000)
SHALLOW_DEPTHS = (10, 10_000, 100_000)  # for short measurements
BATCH_JOBS = 100  # what a worker claims and finishes at once
TURN_SECONDS = 0.25
FILL_JOBS = 10_000  # jobs that are created and submitted together
ENTRY = catalogue.CatalogueEntry(
    name="bench.noop", summary="", payload_schema={}, result_schema={}, defaults={}
)
WORKER = WorkerInfo(
    id="b-1", host="b", pid=1, queues=("default",), concurrency=9999, version="1", started_at=1e9
)


class Backlog:
    """One client that is also the worker, so that the number of waiting jobs stays constant."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._digest = catalogue.digest([ENTRY])
        self._calls = self._depth = self._jobs = 0
        self._submitting = self._claiming = 0.0

    async def fill(self, depth: int) -> None:
        """Submit jobs until `depth` are waiting."""
        while self._depth < depth:
            count = min(FILL_JOBS, depth - self._depth)
            await self._queue.submit_many([new_job() for _ in range(count)])
            self._depth += count

    async def run(self, seconds: float) -> None:
        """Submit, claim and finish jobs for this long."""
        end = perf_counter() + seconds
        while perf_counter() < end:
            jobs = [new_job() for _ in range(BATCH_JOBS)]
            start = perf_counter()
            await self._queue.submit_many(jobs)
            submitted = perf_counter()
            self._calls += 1
            claim = await self._queue.claim(
                WORKER.id, self._calls, slots=BATCH_JOBS, tasks=self._digest, queues=WORKER.queues
            )
            self._submitting += submitted - start
            self._claiming += perf_counter() - submitted
            self._jobs += len(claim.jobs)
            await self._queue.finish(
                [
                    Finish(one.id, one.token, State.SUCCEEDED, "succeeded", b"null")
                    for one in claim.jobs
                ]
            )

    def rates(self) -> tuple[float, float]:
        """Jobs submitted and claimed per second spent on each, since the last call."""
        rates = self._jobs / self._submitting, self._jobs / self._claiming
        self._submitting = self._claiming = 0.0
        self._jobs = 0
        return rates


async def measure(seconds: float) -> AsyncIterator[Figure]:
    """Rates at each depth: each has its own Redis, and all take short turns under the same load."""
    async with AsyncExitStack() as stack:
        backlogs: dict[int, Backlog] = {}
        for count in DEPTHS if seconds >= 3 else SHALLOW_DEPTHS:
            data = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
            url, _ = await stack.enter_async_context(open_redis(data))
            redis = connect(url)
            stack.push_async_callback(redis.aclose)
            queue = Queue(redis, lease=600)  # without a heartbeat
            stack.push_async_callback(queue.close)
            await queue.register(WORKER, [ENTRY])
            backlogs[count] = Backlog(queue)
            await backlogs[count].fill(count)
            await backlogs[count].run(TURN_SECONDS)
            backlogs[count].rates()  # forgets the warm-up
        await sleep(2)  # until the append-only files have been written
        for _ in range(max(1, round(seconds / TURN_SECONDS))):
            for backlog in backlogs.values():
                await backlog.run(TURN_SECONDS)
        rates = {count: backlog.rates() for count, backlog in backlogs.items()}
        for index, what in enumerate(("submitted", "claimed")):
            for count, pair in rates.items():
                name = f"{what} in batches of {BATCH_JOBS}, {count:,} waiting"
                yield Figure(name, "jobs/s", OURS, pair[index])
            first, last = min(rates), max(rates)
            name = f"{what}, {last:,} waiting compared with {first}"
            yield Figure(name, "×", OURS, rates[last][index] / rates[first][index])
