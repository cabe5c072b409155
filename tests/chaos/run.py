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

from tests.chaos import checker
from tests.chaos.checker import Evidence
from tests.chaos.clients import Clients
from tests.chaos.faults import WEIGHTS, Faults, schedule
from tests.chaos.recorder import Recorder
from tests.chaos.stage import Stage, open_stage

PREFIX = "tandem:{a}:"
QUIET = 120.0  # seconds within which everything that was accepted has to end once nothing is hurt any more
PLACES = ("q:*", "later", "leases", "park:*", "suspects", "key:*", "parked")


class Plan(NamedTuple):
    """What to do in a run."""

    seed: int = 1
    seconds: float = 60.0
    pause: float = 2.5  # between two faults, on average
    clients: int = 16
    fsync: str = "always"
    worker: str = "worker"  # the module that is run as the worker
    faults: Mapping[str, int] = WEIGHTS
    work: Mapping[str, int] = {}  # other weights of the kinds of work
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
        stage = await stack.enter_async_context(open_stage(directory, fsync=plan.fsync, worker_module=plan.worker))
        await _table(stage)
        recorder = Recorder(stage.client)
        recorder.start()
        clients = Clients(f"http://127.0.0.1:{stage.front.port}", plan.seed, weights=dict(plan.work))
        stack.push_async_callback(clients.close)
        faults = Faults(stage)
        begun = monotonic()
        clients.start(plan.clients)
        await faults.run(schedule(plan.seed, plan.seconds, plan.pause, dict(plan.faults)))
        await asyncio.sleep(max(0.0, begun + plan.seconds - monotonic()))
        driven = monotonic() - begun
        hanging = await _quiet(stage, clients, plan.patience)
        await recorder.stop()
        evidence = await _evidence(stage, clients, recorder, faults)
        broken = [*hanging, *checker.check(evidence), *faults.codes]
        figures = {
            "seconds": round(driven, 1),
            "faults": sum(faults.done.values()),
            "faults by kind": dict(sorted(faults.done.items())),
            "requests": clients.requests,
            "requests repeated": clients.repeats,
            "quiet after": round(monotonic() - begun - driven, 1),
            **checker.summary(evidence),
        }
        return Result(broken, figures)


async def _table(stage: Stage) -> None:
    connection = await asyncpg.connect(stage.database, timeout=10)
    try:
        await connection.execute("CREATE TABLE applied (key text)")
    finally:
        await connection.close()


async def _quiet(stage: Stage, clients: Clients, patience: float) -> list[str]:
    """Lets everything end; what did not in time, in words."""
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
        # What a ledger has still to read has no end before it has: that is a moment later.
        read = not await client.hexists(f"{PREFIX}clock", "ledger") or await client.xlen(f"{PREFIX}events") == 0
        return read and all(int(count) == 0 for count in counts.values())
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()


async def _evidence(stage: Stage, clients: Clients, recorder: Recorder, faults: Faults) -> Evidence:
    client = stage.client()
    try:
        records: dict[str, dict[str, str]] = {}
        keys: dict[str, int] = {}
        members: dict[str, int] = {}
        async for key in client.scan_iter(f"{PREFIX}*", count=1000):
            name = key.removeprefix(PREFIX)
            keys[key] = await client.pttl(key)
            if name.startswith("job:"):
                records[name.removeprefix("job:")] = await client.hgetall(key)
            elif any(name == place or (place.endswith("*") and name.startswith(place[:-1])) for place in PLACES):
                sized = client.scard if await client.type(key) == "set" else client.zcard
                members[name] = await sized(key)
        counts = {name: int(count) for name, count in (await client.hgetall(f"{PREFIX}counts")).items()}
    finally:
        await client.aclose()
    connection = await asyncpg.connect(stage.database, timeout=10)
    try:
        applied = [row["key"] for row in await connection.fetch("SELECT key FROM applied")]
    finally:
        await connection.close()
    return Evidence(
        told=clients.told,
        effects=[msgspec.json.decode(line) for line in stage.effects.read_bytes().splitlines()],
        events=recorder.events,
        records=records,
        keys=keys,
        members=members,
        counts=counts,
        applied=applied,
        faults=faults.times,
        crashed=stage.said("[error"),
    )
