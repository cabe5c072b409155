"""Tandem with all that it does for every job: record, events, news, leases, fences, metrics and the SQL ledger."""

import asyncio
from collections.abc import Sequence

import msgspec
import uvloop

from bench.peers import driver
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.jobs.states import State
from tandem_shared.queue.connections import connect
from tandem_shared.queue.queue import Queue

WORKER = ("-m", "tandem_worker")
OPTIONS = JobOptions(timeout=30.0, retry={"max_attempts": 3})


def job(seconds: float = 0.0) -> Submission:
    if seconds:
        return Submission(
            id=new_id(), task="bench.sleep", payload=b'{"seconds":%f}' % seconds, options=OPTIONS
        )
    return Submission(
        id=new_id(), task="bench.noop", payload=msgspec.json.encode(driver.PAYLOAD), options=OPTIONS
    )


class Client:
    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    async def ready(self) -> int:
        return len(await self.queue.workers())

    async def submit(self, count: int, sleep: float) -> list[str]:
        jobs = [job(sleep) for _ in range(count)]
        await self.queue.submit_many(jobs)
        return [one.id for one in jobs]

    async def finished(self, ids: Sequence[str]) -> bool:
        stats = await self.queue.stats()
        return not any(
            one.waiting or one.scheduled or one.queued or one.running or one.retrying
            for one in stats
        )

    async def succeeded(self, ids: Sequence[str]) -> int:
        good = 0
        for start in range(0, len(ids), 5000):
            records = await self.queue.get_many(ids[start : start + 5000])
            good += sum(one is not None and one.state is State.SUCCEEDED for one in records)
        return good

    async def once(self) -> None:
        wanted = job()
        async with self.queue.subscribe(wanted.id) as change:
            await self.queue.submit(wanted)
            while (record := await self.queue.get(wanted.id)) is None or not record.done:
                await change.wait()
        if record.state is not State.SUCCEEDED:
            raise RuntimeError(f"the job ended as {record.state}")

    async def recorded(self) -> bool:
        lag = await self.queue.events.lag()
        return lag is not None and lag.entries == 0


async def open_client() -> Client:
    return Client(Queue(connect(driver.URL)))


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    driver.serve(open_client, WORKER)
