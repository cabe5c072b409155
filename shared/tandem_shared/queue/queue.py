"""The queue of one shard: its methods, and the batches in which calls reach Redis."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from time import perf_counter
from typing import Any

from redis.asyncio import Redis

from tandem_shared import catalogue
from tandem_shared.errors import Conflict
from tandem_shared.jobs.record import Record, Submission
from tandem_shared.jobs.replay import ReplayInput
from tandem_shared.jobs.waiting import Serving
from tandem_shared.queue.arq import ArqQueue
from tandem_shared.queue.batch import Batcher
from tandem_shared.queue.bells import Bells
from tandem_shared.queue.clock import RedisClock
from tandem_shared.queue.events import JobEvents
from tandem_shared.queue.integrity import Integrity
from tandem_shared.queue.locks import Locks
from tandem_shared.queue.messages import (
    Beat,
    Chunk,
    Claim,
    Finish,
    QueueStats,
    Refusal,
    Report,
    Reported,
    Segment,
    Submitted,
    WorkerInfo,
    finish_args,
    parse_beat,
    parse_chunk,
    parse_claim,
    parse_reported,
    parse_segment,
)
from tandem_shared.queue.pubsub import ChangeSignal, JobSubscriptions
from tandem_shared.queue.reads import HEAD_FIELDS, read_fields, read_records
from tandem_shared.queue.recent import Repeats
from tandem_shared.queue.scripts import (
    CLOCK,
    MAX_CALL_BYTES,
    MAX_CALL_JOBS,
    Arg,
    Scripts,
    execute,
    flatten,
    translate_errors,
)
from tandem_shared.queue.stats import Waiting, read_serving, read_stats, read_workers
from tandem_shared.queue.steps import StepRecords
from tandem_shared.queue.submitter import Submitter

# Of a job's stream: when its oldest part should move to the file store, and what it may hold.
ARCHIVE_FROM_BYTES = 2 << 20
MAX_TAIL_BYTES = 3 << 20
MAX_READ_STREAMS = 32  # per round trip
MAX_TICK_CALLS = 100  # in a row, while more is due


def _of_tenant(tenant: str, records: Sequence[Record | None]) -> list[Record | None]:
    return [one if one is not None and one.tenant == tenant else None for one in records]


class Queue:
    """One shard. Every method raises Unavailable if Redis does not answer; repeating one is safe.

    lease, keep (retention of final records) and grace (of a cancel) are seconds. `backlog` is the
    number of unfinished jobs at which a queue accepts no more, 0 for no limit. `on_batch` gets the
    kind of each batch of calls ("submit", "read" for records, "output"), its number of answers, and
    the seconds that its callers waited, added up.
    """

    def __init__(
        self,
        redis: "Redis",
        *,
        shard: str = "a",
        lease: float = 10.0,
        keep: float = 7 * 86400.0,
        grace: float = 5.0,
        backlog: int = 0,
        clock: str = CLOCK,
        on_batch: Callable[[str, int, float], None] | None = None,
    ) -> None:
        self.shard, self.prefix = shard, f"tandem:{{{shard}}}:"
        self.lease, self.grace = lease, grace
        self._redis: Any = redis
        self.repeats = Repeats(redis)
        self._scripts = Scripts(redis, self.prefix, (lease, keep, grace), clock=clock)
        self._subscriptions = JobSubscriptions(redis, self.prefix, self._scripts)
        self.events = JobEvents(redis, self.prefix, self._scripts)  # for the ledger
        self.steps = StepRecords(self._scripts)
        self.locks = Locks(self._scripts, self._subscriptions, self.repeats)
        self.arq = ArqQueue(redis, self._scripts)
        self.clock = RedisClock(redis)
        self.waiting = Waiting(redis, self.prefix, self._scripts)
        self.integrity = Integrity(redis, self.prefix, self._scripts)

        submit, read, output = (
            on_batch and partial(on_batch, kind) for kind in ("submit", "read", "output")
        )
        self._submitter = Submitter(self._scripts, self.repeats, backlog=backlog, on_batch=submit)
        self._reads = Batcher(partial(read_records, self._scripts), coalesce=True, on_batch=read)
        self._outputs = Batcher(
            self._read_output,
            max_items=MAX_READ_STREAMS,
            max_in_flight=4,
            coalesce=True,
            on_batch=output,
        )

    async def close(self) -> None:
        """Ends the subscriptions; the client belongs to the caller."""
        await self.repeats.close()
        await self._subscriptions.close()

    async def submit(self, job: Submission) -> Submitted:
        """Enqueues one job; concurrent calls share a round trip. Raises KeyReused and Full."""
        return await self._submitter.submit(job)

    async def submit_many(self, jobs: Sequence[Submission]) -> list[Submitted | Refusal]:
        """Enqueues any number of jobs, in order; a refused one has the reason in its place."""
        return await self._submitter.submit_many(jobs)

    async def get(self, id: str, *, tenant: str = "default") -> Record | None:
        """The job; None if it does not exist, or belongs to another tenant."""
        record = await self._reads.call(id)
        return record if record is not None and record.tenant == tenant else None

    async def get_many(
        self, ids: Sequence[str], *, tenant: str = "default", max_bytes: float = math.inf
    ) -> list[Record | None]:
        """`get` for many jobs, in order; for the first ones only once `max_bytes` are read."""
        return _of_tenant(tenant, await read_records(self._scripts, ids, max_bytes))

    async def get_heads(
        self, ids: Sequence[str], *, tenant: str = "default", max_bytes: float
    ) -> list[Record | None]:
        """The same without what may be large: progress, result, files and attempts."""
        heads = await read_records(self._scripts, ids, max_bytes, HEAD_FIELDS)
        return _of_tenant(tenant, heads)

    async def exists(self, id: str) -> bool:
        """Whether the job has a record, for any tenant."""
        return await self._reads.call(id) is not None

    async def payload(self, id: str, *, tenant: str = "default") -> bytes | None:
        """The job's payload, JSON as it was submitted; None as for `get`."""
        (found,) = await self.replay_inputs([id], tenant=tenant)
        return found and found.payload

    async def replay_inputs(
        self, ids: Sequence[str], *, tenant: str = "default"
    ) -> list[ReplayInput | None]:
        """What replays of at most 500 jobs need; None for each as for `get`."""
        return [
            ReplayInput(payload, key and key.decode(), limit and int(limit))
            if payload is not None and owner == tenant.encode()
            else None
            for owner, payload, key, limit in await read_fields(
                self._scripts, ("tenant", "payload", "ck", "cl"), ids
            )
        ]

    async def forget(self, id: str, *, tenant: str = "default") -> bool:
        """Deletes a final job with all it has, False where `get` is None. May raise Conflict."""
        deleted = await self._scripts.run("forget", id, tenant)
        if deleted < 0:
            raise Conflict("the job is not final; cancel it first")
        self._submitter.forgotten(id)
        return bool(deleted)

    def subscribe(self, id: str) -> AbstractAsyncContextManager[ChangeSignal]:
        """A signal that is set when the job, its progress or its output changes, or may have."""
        return self._subscriptions.subscribe(id)

    async def cancel(self, id: str, *, tenant: str = "default") -> Record | None:
        """Cancels the job in whatever state and returns it; None as for `get`."""
        if not await self._scripts.run("cancel", id, tenant):
            return None
        record = await self.get(id, tenant=tenant)
        if record is not None and record.cancel is not None:  # else it was final before
            self._submitter.cancelled(id, tenant)
        return record

    async def output(self, id: str, after: int = 0, limit: int = 100) -> list[Chunk]:
        """Entries in Redis with stamps above `after`, oldest first; `segments` has those that left.

        Equal calls made together are sent once.
        """
        return await self._outputs.call((id, after, limit))

    async def _read_output(self, calls: Sequence[tuple[str, int, int]]) -> list[list[Chunk]]:
        with translate_errors():
            pipe = self._redis.pipeline(transaction=False)
            for id, after, limit in calls:
                pipe.xrange(f"{self.prefix}out:{id}", min=f"({after}-0", count=limit)
            return [[parse_chunk(*entry) for entry in rows] for rows in await pipe.execute()]

    async def segments(self, id: str, after: int = 0, limit: int = 64) -> list[Segment]:
        """Segments of the job's output with entries above the stamp `after`, oldest first."""
        with translate_errors():
            key = f"{self.prefix}cold:{id}"
            rows = await self._redis.xrange(key, min=f"({after}-0", count=limit)
        return [parse_segment(*entry) for entry in rows]

    async def register(
        self,
        worker: WorkerInfo,
        entries: Sequence[catalogue.CatalogueEntry],
        hidden: Sequence[catalogue.CatalogueEntry] = (),
    ) -> None:
        """Announces the worker and publishes its tasks, except `hidden` ones that it also runs."""
        facts = (
            "host", worker.host, "pid", worker.pid, "queues", ",".join(worker.queues),
            "version", worker.version, "concurrency", worker.concurrency,
            "started", int(worker.started_at * 1000), "setup", worker.setup,
        )  # fmt: skip
        tasks: list[Arg] = []
        for entry in entries:
            limits = catalogue.parse_limits(
                entry.defaults.get("concurrency"), entry.defaults.get("rate")
            )
            tasks += (entry.name, entry.version, catalogue.encode(entry), *limits)
        for entry in hidden:
            tasks += (entry.name, entry.version, "", 0, 0, 0)
        digest = catalogue.digest([*entries, *hidden])
        await self._scripts.run("register", worker.id, digest, len(facts) // 2, *facts, *tasks)

    async def claim(
        self,
        worker: str,
        number: int,
        *,
        slots: int,
        tasks: str,
        queues: Sequence[str],
        free: int | None = None,
        running: int = 0,
        started: int = 0,
        max_bytes: int = MAX_CALL_BYTES,
    ) -> Claim:
        """Takes up to `slots` due jobs. `number` grows per call; a repeat returns the same jobs.

        Those beyond the `free` slots start later, so only jobs without limits are. `running`
        attempts are held; those that began up to the stamp `started` have started.
        """
        slots = min(slots, MAX_CALL_JOBS)
        direct = slots if free is None else free
        args = number, slots, direct, running, started, max_bytes, tasks
        reply = await self._scripts.run("claim", worker, *args, *queues)
        self.repeats.confirm()
        return parse_claim(reply)

    async def finish(
        self, outcomes: Sequence[Finish], *, again: bool = False, accepted: bool = False
    ) -> list[str]:
        """Ends at most 500 attempts.

        The answers: 'ok'; 'cancelled' or 'failed', if that is what the job became instead; 'lost',
        to another attempt; 'behind', since Redis has lost reports of the attempt; 'gone', no
        record. `again`: after a fault; attempts that Redis has forgotten, because it came back
        older, end nevertheless. `accepted`: so do all of these, which were accepted and are final,
        whatever has become of their jobs since.
        """
        args = finish_args(outcomes)
        if again or accepted:
            words = await self._scripts.run("finish_again", int(accepted), *args)
        else:
            words = await self._scripts.run("finish", *args)
        return [word.decode() for word in words]

    async def report(
        self,
        reports: Sequence[Report],
        *,
        limit: int,
        archive_from: int = ARCHIVE_FROM_BYTES,
        max_tail: int = MAX_TAIL_BYTES,
    ) -> list[Reported]:
        """Writes progress, logs and output of running jobs; sizes are bytes of one job.

        The answers: 'ok'; 'long', written, and the oldest part should be archived, since
        `archive_from` bytes are in Redis; 'wait', not written until that is done, nor are the job's
        next ones, since there would be more than `max_tail`; 'full', above `limit` in all;
        'behind', since Redis has lost the report before; 'lost'.
        """
        bounds = limit, archive_from, max_tail
        reply = await self._scripts.run("report", *bounds, *flatten(reports))
        return [parse_reported(answer) for answer in reply]

    async def archive(self, id: str, token: str, segment: Segment, weight: int) -> int | None:
        """Drops the job's oldest entries, of that weight in all, which are now in the file store.

        Returns the weight of those that are left; None if this token no longer holds the job.
        """
        left = int(await self._scripts.run("archive", id, token, *segment, weight))
        return left if left >= 0 else None

    async def beat(
        self,
        worker: str,
        tasks: str,
        held: Sequence[tuple[str, str]],
        *,
        draining: bool = False,
        started: int = 0,
        zombies: int = 0,
    ) -> Beat:
        """Renews the leases of at most 500 jobs (id, token), as the heartbeat thread does."""
        args = worker, tasks, int(draining), started, zombies
        return parse_beat(await self._scripts.run("beat", *args, *flatten(held)), held)

    async def retire(self, worker: str) -> None:
        """Removes a worker that has handed back all its jobs."""
        await self._scripts.run("retire", worker)

    def bells(self, *names: str) -> Bells:
        """A connection to block on until one of these queues or workers is rung."""
        return Bells(self._redis, self.prefix, names)

    async def tick(self) -> int:
        """Settles ended leases, due jobs and expiries; returns the number of ended leases."""
        total = 0
        for _ in range(MAX_TICK_CALLS):
            settled, more = await self._scripts.run("tick")
            total += settled
            if not more:
                break
        self.repeats.confirm()
        return total

    async def ping(self) -> float:
        """Seconds for the round trip of a write that needs no memory."""
        start = perf_counter()
        with translate_errors():
            await execute(self._redis, "HDEL", f"{self.prefix}clock", "ping")
        return perf_counter() - start

    async def catalogue_entries(self) -> list[catalogue.CatalogueEntry]:
        """The newest entry of each task that a worker has published, by name."""
        with translate_errors():
            rows = await self._redis.hgetall(f"{self.prefix}catalogue")
        return catalogue.decode_all(rows)

    async def catalogue_stamp(self) -> bytes:
        """Changes whenever a worker publishes something new."""
        with translate_errors():
            return await self._redis.hget(f"{self.prefix}clock", "catalogue") or b""

    async def serving(self) -> Serving:
        """What live workers can run, and what is paused; `waiting.serving` may be a second old."""
        return await read_serving(self._scripts)

    async def pause(self, queue: str, *, on: bool) -> None:
        """Stops new starts of the queue's jobs, or (`on` false) allows them again."""
        await self._scripts.run("pause", queue, int(on))
        self.waiting.forget()

    async def stats(self, names: Sequence[str] | None = None) -> list[QueueStats]:
        """These queues, or every queue that has unfinished jobs or live workers, or is paused."""
        return await read_stats(self._redis, self.prefix, self._scripts, names)

    async def workers(self, *, with_jobs: bool = True) -> list[WorkerInfo]:
        """Every live worker, with the jobs that it runs."""
        return await read_workers(self._redis, self.prefix, with_jobs=with_jobs)
