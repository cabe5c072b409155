"""Item 6: the queue's scripts while many jobs wait."""

from asyncio import sleep
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from bench.figures import OURS, Figure
from bench.peers.tandem import job
from bench.processes import open_redis
from tandem_shared import catalogue
from tandem_shared.jobs.states import State
from tandem_shared.queue.connections import connect
from tandem_shared.queue.messages import Finish, WorkerInfo
from tandem_shared.queue.queue import Queue

DEPTHS = (10, 10_000, 1_000_000)
SHALLOW = (10, 10_000, 100_000)  # where there is little time
BATCH = 100  # what a worker claims and finishes at once
TURN = 0.25  # seconds
PORTION = 10_000  # jobs that wait for their submission in memory
ENTRY = catalogue.CatalogueEntry(
    name="bench.noop", summary="", payload_schema={}, result_schema={}, defaults={}
)
WORKER = WorkerInfo(
    id="b-1", host="b", pid=1, queues=("default",), concurrency=9999, version="1", started_at=1e9
)


class Depth:
    """One client that is also the worker, so that the number of waiting jobs stays what it is."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._digest = catalogue.digest([ENTRY])
        self._calls = self._deep = self._jobs = 0
        self._submitting = self._claiming = 0.0

    async def reach(self, depth: int) -> None:
        while self._deep < depth:
            count = min(PORTION, depth - self._deep)
            await self._queue.submit_many([job() for _ in range(count)])
            self._deep += count

    async def turns(self, seconds: float) -> None:
        """Goes on for so long."""
        late = perf_counter() + seconds
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
            self._submitting += between - began
            self._claiming += ended - between
            self._jobs += len(claim.jobs)
            await self._queue.finish(
                [
                    Finish(one.id, one.token, State.SUCCEEDED, "succeeded", b"null")
                    for one in claim.jobs
                ]
            )

    def rates(self) -> tuple[float, float]:
        """Jobs submitted and claimed per second of the time that each took, since the last call."""
        found = self._jobs / self._submitting, self._jobs / self._claiming
        self._submitting = self._claiming = 0.0
        self._jobs = 0
        return found


async def measure(seconds: float) -> AsyncIterator[Figure]:
    """Rates at each depth, each on a Redis of its own and all in short turns, so that they have the same neighbours."""
    async with AsyncExitStack() as stack:
        depths: dict[int, Depth] = {}
        for count in DEPTHS if seconds >= 3 else SHALLOW:
            data = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
            redis = connect(await stack.enter_async_context(open_redis(data)))
            stack.push_async_callback(redis.aclose)
            queue = Queue(redis, lease=600)  # nobody beats here
            stack.push_async_callback(queue.close)
            await queue.register(WORKER, [ENTRY])
            depths[count] = Depth(queue)
            await depths[count].reach(count)
            await depths[count].turns(TURN)
            depths[count].rates()
        await sleep(2)  # the append-only files have been written
        for _ in range(max(1, round(seconds / TURN))):
            for depth in depths.values():
                await depth.turns(TURN)
        rates = {count: depth.rates() for count, depth in depths.items()}
        for at, what in enumerate(("submitted", "claimed")):
            for count, found in rates.items():
                yield Figure(f"{what} by 100, {count:,} waiting", "jobs/s", OURS, found[at])
            first, last = min(rates), max(rates)
            words = f"{what}, {last:,} waiting against {first}"
            yield Figure(words, "×", OURS, rates[last][at] / rates[first][at])
