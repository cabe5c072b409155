"""The queue: Redis is the truth for everything that is not final yet.

Only this package touches the queue's keys, and only its scripts change them (see the .lua files,
one a transition):

    job:<id>                the record                      park:<reason>    jobs that may not run
    now q:<queue>:<priority>    due jobs, by due ms             parked           the reasons, keys
    aside
    later                   scheduled and retrying ones     suspects         due jobs that lost two
                            workers
    leases                  running ones, by lease end      expiries         of jobs that have not
                            started key:<tenant>:<key>      holders of a concurrency key
                            idem:<hash>      idempotency key → id and content slots:<task>
                            holders of a task's slots       limit:<task>     what limits a task,
                            where its rate stands limited:<task>          where jobs wait for them
                            gates            when to look at such tasks again out:<id>
                            progress, logs and output       events           every transition, for
                            the ledger steps:<id>              results of its steps
                            lock:<tenant>:<name>   holder and fence of a lock waits:<tenant>:<name>
                            who waits for a lock            news:<id>:<number>     channel: a lock
                            is handed on cold:<id>               index of what has left out:<id> for
                            the file store, by last stamp bell:<queue or worker>  doorbells
                            news:<id>        channel of a job's changes worker:<incarnation>    a
                            live worker, `workers`        tasks:<digest>   what workers can run
    paused                  queues that are, or whose jobs are on their way back
    catalogue, versions     what tasks there are            counts, clock    of jobs by queue and
                            state; of the shard

Final records expire (TANDEM_KEEP), where a ledger follows the events once it has them; what it has
read is cut off.

Every record that is not final stands in exactly one of q, later, leases, park and suspects.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from time import perf_counter
from typing import Any

from redis.asyncio import Redis

from tandem_shared import catalogue
from tandem_shared.errors import Conflict, TandemError
from tandem_shared.jobs.record import FIELDS, Record, Submission, parse
from tandem_shared.jobs.replay import Material
from tandem_shared.queue.batch import Batch
from tandem_shared.queue.bells import Bells
from tandem_shared.queue.events import Events
from tandem_shared.queue.integrity import Checkup
from tandem_shared.queue.locks import Locks
from tandem_shared.queue.messages import (
    Chunk,
    Claim,
    Claimed,
    Finish,
    QueueStats,
    Refusal,
    Report,
    Segment,
    Submitted,
    WorkerInfo,
    chunk,
    submit_args,
    submitted,
)
from tandem_shared.queue.pubsub import Change, Watch
from tandem_shared.queue.scripts import CLOCK, Arg, Scripts, reach, send
from tandem_shared.queue.stats import read_stats, read_workers
from tandem_shared.queue.steps import Steps

MOST = 500  # jobs a script call
ROOM = 1 << 20  # bytes a script call, about
LONG = (
    2 << 20
)  # bytes of a job's stream in Redis from which on its oldest part should move to the file store
TAIL = 3 << 20  # bytes that it holds at most
PLACES = 32  # of streams, read together


class Queue:
    """One shard of the queue. Every method raises Unavailable when Redis does not answer; repeating one is safe.

    `backlog`: how many jobs of one queue may be not final for more to enter, 0: any number. `heard`
    is told how many answers came together to "submit", "read" (records) or "output", and the
    seconds that these were waited for in all.
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
        heard: Callable[[str, int, float], None] | None = None,
    ) -> None:
        self.shard, self.prefix = shard, f"tandem:{{{shard}}}:"
        self.lease, self.grace = lease, grace
        self._backlog = backlog
        self._redis = redis
        self._scripts = Scripts(
            redis, self.prefix, lease=lease, keep=keep, grace=grace, clock=clock
        )
        self.events = Events(redis, self.prefix, self._scripts)  # for the ledger
        self._watch = Watch(redis, self.prefix)
        self.steps = Steps(self._scripts)
        self.locks = Locks(self._scripts, self._watch)
        self.checkup = Checkup(redis, self.prefix, self._scripts)
        told = [heard and partial(heard, call) for call in ("submit", "read", "output")]
        self._submits = Batch(
            self._submit,
            limit=MOST,
            room=ROOM,
            size=lambda job: len(job.payload) + 512,
            heard=told[0],
        )
        self._gets = Batch(self._read, limit=MOST, once=True, heard=told[1])
        self._outputs = Batch(self._read_output, limit=PLACES, flights=4, once=True, heard=told[2])

    async def close(self) -> None:
        """Ends the watch; the client belongs to who opened it."""
        await self._watch.close()

    # ---------------------------------------------------------------------------------- for clients

    async def submit(self, job: Submission) -> Submitted:
        """Enqueues one job; calls that come together go together. Raises KeyReused, and Full."""
        answer = await self._submits.call(job)
        if isinstance(answer, TandemError):
            raise answer
        return answer

    async def submit_many(self, jobs: Sequence[Submission]) -> list[Submitted | Refusal]:
        """Enqueues any number of jobs, in order; what keeps one from entering is told in its place."""
        answers: list[Submitted | Refusal] = []
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

    async def _submit(self, jobs: Sequence[Submission]) -> list[Submitted | Refusal]:
        return submitted(
            await self._scripts.run("submit", [self._backlog, *submit_args(jobs)]), jobs
        )

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
        # By a script: the client takes longer for each answer of a pipeline than Redis for all of
        # this.
        found = await self._scripts.run("look", [len(FIELDS), *FIELDS, *ids])
        return [parse(id, values) for id, values in zip(ids, found, strict=True)]

    async def known(self, id: str) -> bool:
        """Whether there is such a job, whoever's it is."""
        return await self._gets.call(id) is not None

    async def payload(self, id: str, *, tenant: str = "default") -> bytes | None:
        """The job's payload as it came, JSON; None as with `get`."""
        values = await self._get(f"job:{id}", "payload", "tenant")
        return values[0] if values[1] == tenant.encode() else None

    async def _get(self, key: str, *fields: str) -> list[bytes | None]:
        values: list[bytes | None] = await reach(
            lambda: self._redis.hmget(f"{self.prefix}{key}", list(fields))
        )
        return values

    async def materials(
        self, ids: Sequence[str], *, tenant: str = "default"
    ) -> list[Material | None]:
        """What replays of these jobs need, at most 500; None for each as with `get`."""

        async def call() -> list[list[bytes | None]]:
            pipe = self._redis.pipeline(transaction=False)
            for id in ids:
                pipe.hmget(f"{self.prefix}job:{id}", ["tenant", "payload", "ck", "cl"])
            return await pipe.execute()

        return [
            None
            if payload is None or owner != tenant.encode()
            else Material(
                payload,
                None if key is None else key.decode(),
                None if limit is None else int(limit),
            )
            for owner, payload, key, limit in await reach(call)
        ]

    async def forget(self, id: str, *, tenant: str = "default") -> bool:
        """Drops a final job and all that belongs to it; False as `get` says None. Raises Conflict for others."""
        done = await self._scripts.run("forget", [id, tenant])
        if done < 0:
            raise Conflict("the job is not final: cancel it first")
        return bool(done)

    def watch(self, id: str) -> AbstractAsyncContextManager[Change]:
        """A change that is marked whenever the job, its progress or its output changes, or may have."""
        return self._watch.job(id)

    async def cancel(self, id: str, *, tenant: str = "default") -> Record | None:
        """Cancels the job, whatever its state, and returns it; None as with `get`."""
        if not await self._scripts.run("cancel", [id, tenant]):
            return None
        return await self.get(id, tenant=tenant)

    async def output(self, id: str, after: int = 0, limit: int = 100) -> list[Chunk]:
        """Entries with a stamp above `after` that Redis holds, oldest first; older ones may stand in `segments`.

        They are read once for all who ask for the same together.
        """
        return await self._outputs.call((id, after, limit))

    async def _read_output(self, places: Sequence[tuple[str, int, int]]) -> list[list[Chunk]]:
        async def call() -> list[Any]:
            pipe = self._redis.pipeline(transaction=False)
            for id, after, limit in places:
                pipe.xrange(f"{self.prefix}out:{id}", min=_above(after), count=limit)
            return await pipe.execute()

        return [[chunk(place, fields) for place, fields in rows] for rows in await reach(call)]

    async def segments(self, id: str, after: int = 0, limit: int = 64) -> list[Segment]:
        """Those with entries above the stamp `after`, oldest first."""
        key = f"{self.prefix}cold:{id}"
        return [
            Segment(int(fields[b"f"]), int(last.partition(b"-")[0]), int(fields[b"s"]))
            for last, fields in await reach(
                lambda: self._redis.xrange(key, min=_above(after), count=limit)
            )
        ]

    # ---------------------------------------------------------------------------------- for workers

    async def register(
        self,
        worker: WorkerInfo,
        entries: Sequence[catalogue.CatalogueEntry],
        hidden: Sequence[catalogue.CatalogueEntry] = (),
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
            limits = catalogue.parse_limits(
                entry.defaults.get("concurrency"), entry.defaults.get("rate")
            )
            tasks += [entry.name, entry.version, catalogue.encode(entry), *limits]
        for entry in hidden:
            tasks += [entry.name, entry.version, "", 0, 0, 0]
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
        reply = await self._scripts.run(
            "claim", [worker, number, min(slots, MOST), room, tasks, *queues]
        )
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

    async def report(
        self, reports: Sequence[Report], *, limit: int, long: int = LONG, most: int = TAIL
    ) -> list[str]:
        """Progress, logs and output; 'ok', 'lost', or 'full' when the job has said more than `limit` bytes.

        'long' is ok, and the oldest part of the job's stream should be archived: `long` bytes or
        more stand in Redis. 'wait' is not written, nor are the job's next ones, before that is
        done: more than `most` bytes would.
        """
        args: list[Arg] = [limit, long, most]
        for one in reports:
            args += [one.id, one.token, one.number, one.type, one.body]
        return [word.decode() for word in await self._scripts.run("report", args)]

    async def archive(self, id: str, token: str, segment: Segment, weight: int) -> int | None:
        """The job's oldest entries, of that weight together, are in the file store now: Redis drops them.

        Returns the weight of those that are left, None for a job that is no longer held under this
        token.
        """
        args: list[Arg] = [id, token, *segment, weight]
        left = int(await self._scripts.run("archive", args))
        return left if left >= 0 else None

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

    async def foreign(
        self, limit: int = 100, skip: Collection[str] = ()
    ) -> list[tuple[str, float, bytes | None]]:
        """Jobs that plain arq clients enqueued, `skip` aside: (arq's id, due time in seconds, its bytes)."""

        async def call() -> list[tuple[str, float, bytes | None]]:
            found = await self._redis.zrange("arq:queue", 0, limit + len(skip) - 1, withscores=True)
            wanted = [
                (name, due)
                for id, due in found
                if (name := id.decode(errors="replace")) not in skip
            ]
            bodies = await self._redis.mget([f"arq:job:{id}" for id, _ in wanted]) if wanted else []
            return [(id, due / 1000, body) for (id, due), body in zip(wanted, bodies, strict=True)]

        found: list[tuple[str, float, bytes | None]] = await reach(call)
        return found

    async def adopt(self, jobs: Sequence[tuple[str, Submission]]) -> list[str]:
        """Moves plain arq jobs over, atomically: our id for each, '' if another worker was first."""
        args = [
            len(jobs),
            *(foreign for foreign, _ in jobs),
            *submit_args([job for _, job in jobs]),
        ]
        return [id.decode() for id in await self._scripts.run("adopt", args)]

    # -------------------------------------------------------------------------------- for operators

    async def tick(self) -> int:
        """Lets time pass: ended leases, due jobs, expiries. Returns how many leases were settled."""
        return int(await self._scripts.run("tick", []))

    async def ping(self) -> float:
        """Seconds that a write takes there and back, one that needs no memory."""
        start = perf_counter()
        await reach(lambda: send(self._redis, "HDEL", f"{self.prefix}clock", "ping"))
        return perf_counter() - start

    async def entries(self) -> list[catalogue.CatalogueEntry]:
        """The catalogue: the newest entry of each task that any worker published, by name."""
        rows: Any = await reach(lambda: self._redis.hgetall(f"{self.prefix}catalogue"))
        return catalogue.decode_all(rows)

    async def catalogue_stamp(self) -> bytes:
        """Changes whenever a worker publishes something new."""
        return (await self._get("clock", "catalogue"))[0] or b""

    async def pause(self, queue: str, *, on: bool) -> None:
        """Lets no more jobs of the queue start, or (`on` false) lets them start again."""
        await self._scripts.run("pause", [queue, int(on)])

    async def stats(self) -> list[QueueStats]:
        """Every queue that ever had a job or is paused."""
        return await read_stats(self._redis, self.prefix)

    async def workers(self) -> list[WorkerInfo]:
        """Every live worker, and what each runs."""
        return await read_workers(self._redis, self.prefix)


def _above(stamp: int) -> str:
    return f"({stamp}-0" if stamp else "-"
