"""Tandem with all features on: records, events, leases, fencing, metrics and the SQL ledger."""

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


def new_job(seconds: float = 0.0) -> Submission:
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
        jobs = [new_job(sleep) for _ in range(count)]
        await self.queue.submit_many(jobs)
        return [job.id for job in jobs]

    async def finished(self, ids: Sequence[str]) -> bool:
        return not any(
            queue.waiting or queue.scheduled or queue.queued or queue.running or queue.retrying
            for queue in await self.queue.stats()
        )

    async def succeeded(self, ids: Sequence[str]) -> int:
        succeeded = 0
        for start in range(0, len(ids), 5000):
            records = await self.queue.get_many(ids[start : start + 5000])
            states = [record.state for record in records if record is not None]
            succeeded += states.count(State.SUCCEEDED)
        return succeeded

    async def round_trip(self) -> None:
        job = new_job()
        async with self.queue.subscribe(job.id) as change:
            await self.queue.submit(job)
            while (record := await self.queue.get(job.id)) is None or not record.done:
                await change.wait()
        if record.state is not State.SUCCEEDED:
            raise RuntimeError(f"the job ended as {record.state}")

    async def ledger_is_current(self) -> bool:
        lag = await self.queue.events.lag()
        return lag is not None and lag.entries == 0


async def open_client() -> Client:
    return Client(Queue(connect(driver.URL)))


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    driver.serve(open_client, WORKER)
