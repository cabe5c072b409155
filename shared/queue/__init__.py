"""The queue: Redis is the truth for everything that is not final yet.

Only this package touches the queue's keys, and only its scripts change them (see the .lua files, one a transition):

    job:<id>                the record                      park:<reason>    jobs that may not run now
    q:<queue>:<priority>    due jobs, by due ms             parked           the reasons, keys aside
    later                   scheduled and retrying ones     suspects         due jobs that lost two workers
    leases                  running ones, by lease end      expiries         of jobs that have not started
    key:<tenant>:<key>      holders of a concurrency key    idem:<hash>      idempotency key → id and content
    out:<id>                progress, logs and output       events           every transition, for the ledger
    bell:<queue or worker>  doorbells                       news:<id>        channel of a job's changes
    worker:<incarnation>    a live worker, `workers`        tasks:<digest>   what workers can run
    catalogue, versions     what tasks there are            counts, clock    of jobs by queue and state; of the shard

Final records expire (TANDEM_KEEP), where a ledger follows the events once it has them; what it has read is cut off.

Every record that is not final stands in exactly one of q, later, leases, park and suspects.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from time import perf_counter
from typing import Any

from redis.asyncio import Redis

from shared import catalogue
from shared.errors import KeyReused
from shared.jobs import FIELDS, PRIORITIES, Record, Submission, parse
from shared.queue.batch import Batch
from shared.queue.bells import Bells
from shared.queue.connections import connect, pool
from shared.queue.events import Events, Facts, Lag, Taken
from shared.queue.heart import Heart
from shared.queue.messages import (
    Chunk,
    Claim,
    Claimed,
    Finish,
    QueueStats,
    Report,
    Submitted,
    WorkerInfo,
    submit_args,
    submitted,
)
from shared.queue.scripts import CLOCK, Arg, Scripts, reach, send
from shared.queue.watch import Change, Watch

__all__ = [
    "Batch", "Bells", "Change", "Chunk", "Claim", "Claimed", "Events", "Facts", "Finish", "Heart", "Lag", "Queue",
    "QueueStats", "Report", "Submitted", "Taken", "WorkerInfo", "connect", "pool",
]  # fmt: skip

MOST = 500  # jobs a script call
ROOM = 1 << 20  # bytes a script call, about


class Queue:
    """One shard of the queue. Every method raises Unavailable when Redis does not answer; repeating one is safe."""

    def __init__(
        self,
        redis: "Redis",
        *,
        shard: str = "a",
        lease: float = 10.0,
        keep: float = 7 * 86400.0,
        grace: float = 5.0,
        clock: str = CLOCK,
    ) -> None:
        self.prefix = f"tandem:{{{shard}}}:"
        self.lease, self.grace = lease, grace
        self._redis = redis
        self._scripts = Scripts(redis, self.prefix, lease=lease, keep=keep, grace=grace, clock=clock)
        self.events = Events(redis, self.prefix, self._scripts)  # for the ledger
        self._watch = Watch(redis, self.prefix)
        self._submits = Batch(self._submit, limit=MOST, room=ROOM, size=lambda job: len(job.payload) + 512)
        self._gets = Batch(self._read, limit=MOST)

    async def close(self) -> None:
        """Ends the watch; the client belongs to who opened it."""
        await self._watch.close()

    # ------------------------------------------------------------------------------------------------- for clients

    async def submit(self, job: Submission) -> Submitted:
        """Enqueues one job; calls that come together go together. Raises KeyReused."""
        answer = await self._submits.call(job)
        if isinstance(answer, KeyReused):
            raise answer
        return answer

    async def submit_many(self, jobs: Sequence[Submission]) -> list[Submitted | KeyReused]:
        """Enqueues any number of jobs, in order; a key reused for other content is told in its place."""
        answers: list[Submitted | KeyReused] = []
        portion: list[Submission] = []
        size = 0
        for job in jobs:
            if portion and (len(portion) == MOST or size + len(job.payload) > ROOM):
                answers += await self._submit(portion)
                portion, size = [], 0
            portion.append(job)
            size += len(job.payload) + 512
        if portion:
            answers += await self._submit(portion)
        return answers

    async def _submit(self, jobs: Sequence[Submission]) -> list[Submitted | KeyReused]:
        args: list[Arg] = []
        for job in jobs:
            args += submit_args(job)
        return submitted(await self._scripts.run("submit", args))

    async def get(self, id: str, *, tenant: str = "default") -> Record | None:
        """The job; None if there is none, or if it is another tenant's."""
        record = await self._gets.call(id)
        return record if record is not None and record.tenant == tenant else None

    async def get_many(self, ids: Sequence[str], *, tenant: str = "default") -> list[Record | None]:
        """The same for many jobs, in order."""
        found: list[Record | None] = []
        for start in range(0, len(ids), MOST):
            found += await self._read(ids[start : start + MOST])
        return [one if one is not None and one.tenant == tenant else None for one in found]

    async def _read(self, ids: Sequence[str]) -> list[Record | None]:
        async def call() -> list[list[bytes | None]]:
            pipe = self._redis.pipeline(transaction=False)
            for id in ids:
                pipe.hmget(f"{self.prefix}job:{id}", FIELDS)
            return await pipe.execute()

        return [parse(id, values) for id, values in zip(ids, await reach(call), strict=True)]

    async def payload(self, id: str, *, tenant: str = "default") -> bytes | None:
        """The job's payload as it came, JSON; None as with `get`."""
        values = await self._get(f"job:{id}", "payload", "tenant")
        return values[0] if values[1] == tenant.encode() else None

    async def _get(self, key: str, *fields: str) -> list[bytes | None]:
        values: list[bytes | None] = await reach(lambda: self._redis.hmget(f"{self.prefix}{key}", list(fields)))
        return values

    def watch(self, id: str) -> AbstractAsyncContextManager[Change]:
        """A change that is marked whenever the job, its progress or its output changes."""
        return self._watch.job(id)

    async def cancel(self, id: str, *, tenant: str = "default") -> Record | None:
        """Cancels the job, whatever its state, and returns it; None as with `get`."""
        if not await self._scripts.run("cancel", [id, tenant]):
            return None
        return await self.get(id, tenant=tenant)

    async def output(self, id: str, after: int = 0, limit: int = 100) -> list[Chunk]:
        """Entries with a stamp above `after`, oldest first."""
        low = f"({after}-0" if after else "-"
        rows: Any = await reach(lambda: self._redis.xrange(f"{self.prefix}out:{id}", min=low, count=limit))
        return [
            Chunk(
                stamp=int(position.partition(b"-")[0]),
                type=fields[b"t"].decode(),
                attempt=int(fields[b"a"]),
                items=fields[b"d"].split(b"\n"),
            )
            for position, fields in rows
        ]

    # ------------------------------------------------------------------------------------------------- for workers

    async def register(
        self, worker: WorkerInfo, entries: Sequence[catalogue.Entry], hidden: Sequence[catalogue.Entry] = ()
    ) -> None:
        """Says who the worker is and publishes what it can run; `hidden` tasks it can run but does not publish."""
        facts: list[Arg] = []
        for name, value in (
            ("host", worker.host), ("pid", worker.pid), ("queues", ",".join(worker.queues)),
            ("version", worker.version), ("concurrency", worker.concurrency),
            ("started", int(worker.started_at * 1000)),
        ):  # fmt: skip
            facts += [name, value]
        tasks: list[Arg] = []
        for entry in entries:
            tasks += [entry.name, entry.version, catalogue.encode(entry)]
        for entry in hidden:
            tasks += [entry.name, entry.version, ""]
        digest = catalogue.digest([*entries, *hidden])
        await self._scripts.run("register", [worker.id, digest, len(facts) // 2, *facts, *tasks])

    async def claim(
        self,
        worker: str,
        number: int,
        *,
        slots: int,
        tasks: str,
        queues: Sequence[str],
        room: int = ROOM,
    ) -> Claim:
        """Takes up to `slots` due jobs; `number` grows by one a call, and a repeated one gets the same jobs again."""
        reply = await self._scripts.run("claim", [worker, number, min(slots, MOST), room, tasks, *queues])
        known, more, due, settled, foreign, *flat = reply
        jobs = [
            Claimed(
                flat[i].decode(), flat[i + 1].decode(), int(flat[i + 2]), int(flat[i + 3]),
                flat[i + 4].decode(), flat[i + 5].decode(), flat[i + 6], flat[i + 7], int(flat[i + 8]),
            )
            for i in range(0, len(flat), 9)
        ]  # fmt: skip
        return Claim(
            bool(known),
            bool(more),
            None if due < 0 else due / 1000,
            settled,
            bool(foreign),
            jobs,
        )

    async def finish(self, outcomes: Sequence[Finish]) -> list[str]:
        """Ends attempts; 'ok', 'lost' (somebody else has the job) or 'gone' (no such record) for each. At most 500."""
        args: list[Arg] = []
        for one in outcomes:
            args += [
                one.id, one.token, one.to.value, one.outcome, one.body, int(one.delay * 1000), one.files,
            ]  # fmt: skip
        return [word.decode() for word in await self._scripts.run("finish", args)]

    async def report(self, reports: Sequence[Report], *, limit: int) -> list[str]:
        """Progress, logs and output; 'ok', 'lost', or 'full' when the job has said more than `limit` bytes."""
        args: list[Arg] = [limit]
        for one in reports:
            args += [one.id, one.token, one.number, one.type, one.body]
        return [word.decode() for word in await self._scripts.run("report", args)]

    async def beat(
        self,
        worker: str,
        tasks: str,
        held: Sequence[tuple[str, str]],
        *,
        draining: bool = False,
    ) -> tuple[bool, list[str], list[str]]:
        """Renews leases as the heart's thread does: (known, lost ids, ids to cancel). At most 500."""
        pairs = [part for pair in held for part in pair]
        known, *words = await self._scripts.run("beat", [worker, tasks, int(draining), *pairs])
        said = [(words[i], words[i + 1].decode()) for i in range(0, len(words), 2)]
        lost = [id for word, id in said if word == b"lost"]
        return bool(known), lost, [id for word, id in said if word == b"cancel"]

    async def retire(self, worker: str) -> None:
        """The worker has handed back all it held and goes."""
        await self._scripts.run("retire", [worker])

    def bells(self, *names: str) -> Bells:
        """A connection to sleep on, until one of these queues or workers is rung."""
        return Bells(self._redis, self.prefix, names)

    async def foreign(self, limit: int = 100, skip: Collection[str] = ()) -> list[tuple[str, float, bytes | None]]:
        """Jobs that plain arq clients enqueued, `skip` aside: (arq's id, due time in seconds, its bytes)."""

        async def call() -> list[tuple[str, float, bytes | None]]:
            found = await self._redis.zrange("arq:queue", 0, limit + len(skip) - 1, withscores=True)
            wanted = [(name, due) for id, due in found if (name := id.decode(errors="replace")) not in skip]
            bodies = await self._redis.mget([f"arq:job:{id}" for id, _ in wanted]) if wanted else []
            return [(id, due / 1000, body) for (id, due), body in zip(wanted, bodies, strict=True)]

        found: list[tuple[str, float, bytes | None]] = await reach(call)
        return found

    async def adopt(self, jobs: Sequence[tuple[str, Submission]]) -> list[str]:
        """Moves plain arq jobs over, atomically: our id for each, '' if another worker was first."""
        args: list[Arg] = []
        for foreign, job in jobs:
            args += [foreign, *submit_args(job)]
        return [id.decode() for id in await self._scripts.run("adopt", args)]

    # ----------------------------------------------------------------------------------------------- for operators

    async def tick(self) -> int:
        """Lets time pass: ended leases, due jobs, expiries. Returns how many leases were settled."""
        return int(await self._scripts.run("tick", []))

    async def ping(self) -> float:
        """Seconds that a write takes there and back."""
        start = perf_counter()
        await reach(lambda: send(self._redis, "HSET", f"{self.prefix}clock", "ping", 1))
        return perf_counter() - start

    async def entries(self) -> list[catalogue.Entry]:
        """The catalogue: the newest entry of each task that any worker published, by name."""
        rows: Any = await reach(lambda: self._redis.hgetall(f"{self.prefix}catalogue"))
        return sorted(
            (catalogue.decode(data) for data in rows.values()),
            key=lambda entry: entry.name,
        )

    async def catalogue_stamp(self) -> bytes:
        """Changes whenever a worker publishes something new."""
        return (await self._get("clock", "catalogue"))[0] or b""

    async def stats(self) -> list[QueueStats]:
        """Every queue that ever had a job."""
        rows: Any = await reach(lambda: self._redis.hgetall(f"{self.prefix}counts"))
        counts: dict[str, dict[str, int]] = {}
        for field, value in rows.items():
            queue, _, state = field.decode().partition(" ")
            counts.setdefault(queue, {})[state] = int(value)

        async def call() -> list[Any]:
            pipe = self._redis.pipeline(transaction=False)
            pipe.time()
            for queue in counts:
                for priority in PRIORITIES:
                    pipe.zrange(f"{self.prefix}q:{queue}:{priority}", 0, 0, withscores=True)
            return await pipe.execute()

        (sec, micro), *heads = await reach(call)
        stats = []
        for index, (queue, states) in enumerate(counts.items()):
            dues = [head[0][1] / 1000 for head in heads[3 * index : 3 * index + 3] if head]
            age = round(max(0.0, sec + micro / 1e6 - min(dues)), 3) if dues else None
            kinds = ("waiting", "scheduled", "queued", "running", "retrying")
            stats.append(
                QueueStats(
                    name=queue,
                    paused=False,
                    oldest_age=age,
                    **{kind: states.get(kind, 0) for kind in kinds},
                )
            )
        return sorted(stats, key=lambda one: one.name)

    async def workers(self) -> list[WorkerInfo]:
        """Every live worker, and what each runs."""

        async def call() -> tuple[Any, Any]:
            pipe = self._redis.pipeline(transaction=False)
            pipe.zrange(f"{self.prefix}workers", 0, -1, withscores=True)
            pipe.zrange(f"{self.prefix}leases", 0, 9999)
            seen, ids = await pipe.execute()
            for worker, _ in seen:
                pipe.hgetall(f"{self.prefix}worker:{worker.decode()}")
            for id in ids:
                pipe.hget(f"{self.prefix}job:{id.decode()}", "token")
            found = await pipe.execute()
            holders = [(token or b"").partition(b".")[2] for token in found[len(seen) :]]
            return list(zip(seen, found[: len(seen)], strict=True)), list(zip(holders, ids, strict=True))

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
