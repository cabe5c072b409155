"""One run: everything is started, driven and hurt, then left alone until it is quiet, and looked at."""

import asyncio
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import asyncpg
import msgspec
from redis.exceptions import RedisError

from tests.chaos import submissions
from tests.chaos.check.checker import check
from tests.chaos.check.evidence import Evidence, summary
from tests.chaos.clients import Clients
from tests.chaos.faults import Faults
from tests.chaos.journal import events
from tests.chaos.schedule import WEIGHTS, schedule
from tests.chaos.stage import LEASE, PREFIX, Stage, open_stage

# seconds within which everything that was accepted has to end once nothing is hurt any more
QUIET = 180.0
# Where jobs stand that are not final, and who holds what.
PLACES = (
    "q:*",
    "later",
    "leases",
    "park:*",
    "suspects",
    "key:*",
    "slots:*",
    "waits:*",
    "parked",
    "expiries",
)
MANY = 1000  # keys that are read at once
GONE = -2  # Redis' TTL of a key that has ended since it was listed


class Plan(NamedTuple):
    """What to do in a run."""

    seed: int = 1
    seconds: float = 60.0
    pause: float = 2.5  # between two faults, on average
    clients: int = 16
    fsync: str = "always"
    worker: str = "tandem_worker"  # the module that is run as the worker
    faults: Mapping[str, int] = WEIGHTS
    work: Mapping[str, float] = submissions.WEIGHTS
    patience: float = QUIET


class Result(NamedTuple):
    """What came of it."""

    broken: list[str]
    figures: dict[str, Any]


async def perform(plan: Plan, directory: Path | None = None) -> Result:
    """The run; its processes' logs are in `directory` if one is given."""
    async with AsyncExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-")))
        directory.chmod(0o711)  # PostgreSQL's own user passes through it
        stage = await stack.enter_async_context(
            open_stage(directory, fsync=plan.fsync, worker_module=plan.worker)
        )
        await _table(stage)
        clients = Clients(f"http://127.0.0.1:{stage.front.port}", plan.seed, weights=plan.work)
        stack.push_async_callback(clients.close)
        faults = Faults(stage)
        supervisor = asyncio.create_task(faults.supervise())
        stack.callback(supervisor.cancel)
        begun = monotonic()
        clients.start(plan.clients)
        await faults.run(schedule(plan.seed, plan.seconds, plan.pause, plan.faults, lease=LEASE))
        await asyncio.sleep(max(0.0, begun + plan.seconds - monotonic()))
        driven = monotonic() - begun
        hanging = await _quiet(stage, clients, plan.patience)
        quiet = monotonic() - begun - driven
        evidence = await _evidence(stage, clients, faults, lossy=plan.fsync != "always")
        broken = [*hanging, *check(evidence), *faults.codes]
        figures = {
            "seconds": round(driven, 1),
            "faults": sum(faults.done[kind] for kind in plan.faults),
            "by kind": dict(sorted(faults.done.items())),
            "requests": clients.requests,
            "requests repeated": clients.repeats,
            "quiet after": round(quiet, 1),
            **summary(evidence),
        }
        return Result(broken, figures)


async def _table(stage: Stage) -> None:
    connection = await asyncpg.connect(stage.database, timeout=10)
    try:
        await connection.execute("CREATE TABLE applied (key text)")
    finally:
        await connection.close()


async def _quiet(stage: Stage, clients: Clients, patience: float) -> list[str]:
    """Lets everything end, and the ledger catch up; what did not in time, in words."""
    try:
        async with asyncio.timeout(patience):
            await clients.stop()
            while not await _all_ended(stage):
                await asyncio.sleep(0.2)
    except TimeoutError:
        return [f"not everything ended within {patience:g} s of quiet"]
    return []


async def _all_ended(stage: Stage) -> bool:
    client = stage.client()
    try:
        counts = await client.hgetall(f"{PREFIX}counts")
        return not any(map(int, counts.values())) and await client.xlen(f"{PREFIX}events") == 0
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()


async def _evidence(stage: Stage, clients: Clients, faults: Faults, *, lossy: bool) -> Evidence:
    found = Evidence(
        told=clients.told,
        effects=[msgspec.json.decode(line) for line in stage.effects.read_bytes().splitlines()],
        faults=faults.times,
        pauses=faults.pauses,
        crashes=faults.crashes if lossy else (),
        logged=stage.said("[error"),
    )
    client = stage.client()
    try:
        found.records, found.keys, found.members = await _keys(client)
        found.counts = {
            name: int(count) for name, count in (await client.hgetall(f"{PREFIX}counts")).items()
        }
    finally:
        await client.aclose()
    found.events = list(events(stage.directory))
    connection = await asyncpg.connect(stage.database, timeout=10)
    try:
        found.applied = [row["key"] for row in await connection.fetch("SELECT key FROM applied")]
        rows = await connection.fetch("SELECT id, state, stamp FROM tandem_jobs")
        found.ledger = {row["id"]: (row["state"], row["stamp"]) for row in rows}
    finally:
        await connection.close()
    return found


async def _keys(client: Any) -> tuple[dict[str, dict[str, str]], dict[str, int], dict[str, int]]:
    """Records by job id, TTLs by key, sizes of the places by name."""
    records: dict[str, dict[str, str]] = {}
    ttls: dict[str, int] = {}
    members: dict[str, int] = {}
    names = [name async for name in client.scan_iter(f"{PREFIX}*", count=MANY)]
    for start in range(0, len(names), MANY):
        portion = names[start : start + MANY]
        pipe = client.pipeline(transaction=False)
        for name in portion:
            pipe.pttl(name)
            pipe.type(name)
        answers = await pipe.execute()
        kinds = dict(zip(portion, answers[1::2], strict=True))
        found = dict(zip(portion, answers[::2], strict=True))
        portion = [name for name in portion if found[name] != GONE]
        ttls |= {name: found[name] for name in portion}
        for name in portion:
            if name.startswith(f"{PREFIX}job:"):
                pipe.hgetall(name)
            elif _place(name.removeprefix(PREFIX)):
                (pipe.scard if kinds[name] == "set" else pipe.zcard)(name)
            else:
                pipe.exists(name)
        for name, value in zip(portion, await pipe.execute(), strict=True):
            short = name.removeprefix(PREFIX)
            if short.startswith("job:"):
                records[short.removeprefix("job:")] = value
            elif _place(short):
                members[short] = value
    return records, ttls, members


def _place(name: str) -> bool:
    return any(
        name == place or (place.endswith("*") and name.startswith(place[:-1])) for place in PLACES
    )
