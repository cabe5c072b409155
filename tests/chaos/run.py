"""One chaos run: start everything, drive it, inject faults, let it come to rest, and check it."""

import asyncio
import sys
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
from tests.chaos.journal import History, transitions
from tests.chaos.schedule import WEIGHTS, schedule
from tests.chaos.stage import FAKETIME, LEASE_SECONDS, PREFIX, Stage, open_stage

REST_SECONDS = 180.0  # within which every accepted job must end after the last fault
# The places of open jobs, and of what jobs hold.
PLACES = (
    *("q:*", "later", "leases", "park:*", "suspects"),
    *("key:*", "slots:*", "waits:*", "parked", "expiries"),
)
BATCH_KEYS = 1000  # that are read together
# Errors that tasks cause: jobs that fail, which their records show, and a loop that one blocks.
EXPECTED_ERRORS = ("] job failed ", "] the event loop is blocked beyond the job's timeout")
EXPIRED = -2  # the TTL that Redis returns for a key that no longer exists


class Plan(NamedTuple):
    """The parameters of a run."""

    seed: int = 1
    seconds: float = 60.0
    pause: float = 2.5  # average seconds between two faults
    clients: int = 16
    fsync: str = "always"
    worker: str = "tandem_worker"  # the module to run as the worker
    faults: Mapping[str, int] = WEIGHTS
    work: Mapping[str, float] = submissions.WEIGHTS
    rest: float = REST_SECONDS


class Result(NamedTuple):
    """The broken promises, and the figures."""

    broken: list[str]
    figures: dict[str, Any]


async def perform(plan: Plan, directory: Path | None = None) -> Result:
    """Perform a run; logs and data are kept if a directory is given."""
    async with AsyncExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-")))
        directory.chmod(0o711)  # PostgreSQL's user must reach its data
        stage = await stack.enter_async_context(
            open_stage(directory, fsync=plan.fsync, worker_module=plan.worker)
        )
        await _create_table(stage)
        clients = Clients(f"http://127.0.0.1:{stage.front.port}", plan.seed, weights=plan.work)
        stack.push_async_callback(clients.close)
        faults = Faults(stage)
        supervisor = asyncio.create_task(faults.supervise())
        stack.callback(supervisor.cancel)
        watcher = asyncio.create_task(_watch(stage.history))
        stack.callback(watcher.cancel)
        start = monotonic()
        clients.start(plan.clients)
        await faults.run(
            schedule(
                plan.seed, plan.seconds, plan.pause, _possible(plan.faults), lease=LEASE_SECONDS
            )
        )
        await asyncio.sleep(max(0.0, start + plan.seconds - monotonic()))
        driven = monotonic() - start
        unfinished = await _rest(stage, clients, plan.rest)
        rested = monotonic() - start - driven
        evidence = await _evidence(stage, clients, faults, lossy=plan.fsync != "always")
        broken = [*unfinished, *check(evidence), *faults.bad_exits]
        figures = {
            "seconds": round(driven, 1),
            "faults": sum(faults.done[kind] for kind in plan.faults),
            "by kind": dict(sorted(faults.done.items())),
            "requests": clients.requests,
            "requests repeated": clients.repeats,
            "at rest after": round(rested, 1),
            **summary(evidence),
        }
        return Result(broken, figures)


def _possible(faults: Mapping[str, int]) -> Mapping[str, int]:
    """The faults that this machine can inject."""
    if FAKETIME is not None:
        return faults
    sys.stderr.write("faketime is not installed: the clocks of hosts stay right\n")
    return {kind: weight for kind, weight in faults.items() if not kind.startswith("shift")}


async def _watch(history: History) -> None:
    while True:
        history.note()
        await asyncio.sleep(0.05)


async def _create_table(stage: Stage) -> None:
    connection = await asyncpg.connect(stage.database, timeout=10)
    try:
        await connection.execute("CREATE TABLE applied (key text)")
    finally:
        await connection.close()


async def _rest(stage: Stage, clients: Clients, seconds: float) -> list[str]:
    """Wait until every job has ended and the ledger has caught up; a sentence if that fails."""
    try:
        async with asyncio.timeout(seconds):
            await clients.stop()
            while not await _all_ended(stage):
                await asyncio.sleep(0.2)
    except TimeoutError:
        return [f"jobs were still open {seconds:g} s after the last fault"]
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
    evidence = Evidence(
        submissions=clients.submissions,
        effects=[msgspec.json.decode(line) for line in stage.effects.read_bytes().splitlines()],
        faults=faults.times,
        pauses=faults.pauses,
        crashes=sorted([*faults.rewinds, *(faults.crashes if lossy else ())]),
        deaths=faults.deaths,
        silences=faults.silences,
        errors=[
            line
            for line in stage.logged("[error")
            if not any(text in line for text in EXPECTED_ERRORS)
        ],
    )
    client = stage.client()
    try:
        evidence.records, evidence.keys, evidence.members = await _keys(client)
        evidence.counts = {
            name: int(count) for name, count in (await client.hgetall(f"{PREFIX}counts")).items()
        }
    finally:
        await client.aclose()
    evidence.transitions = list(transitions(stage.directory))
    connection = await asyncpg.connect(stage.database, timeout=10)
    try:
        evidence.applied = [row["key"] for row in await connection.fetch("SELECT key FROM applied")]
        rows = await connection.fetch("SELECT id, state, stamp FROM tandem_jobs")
        evidence.ledger = {row["id"]: (row["state"], row["stamp"]) for row in rows}
    finally:
        await connection.close()
    return evidence


async def _keys(client: Any) -> tuple[dict[str, dict[str, str]], dict[str, int], dict[str, int]]:
    """(records by job id, TTLs by key, sizes of the places by name)."""
    records: dict[str, dict[str, str]] = {}
    ttls: dict[str, int] = {}
    members: dict[str, int] = {}
    names = [name async for name in client.scan_iter(f"{PREFIX}*", count=BATCH_KEYS)]
    for start in range(0, len(names), BATCH_KEYS):
        batch = names[start : start + BATCH_KEYS]
        pipe = client.pipeline(transaction=False)
        for name in batch:
            pipe.pttl(name)
            pipe.type(name)
        answers = await pipe.execute()
        kinds = dict(zip(batch, answers[1::2], strict=True))
        expiries = dict(zip(batch, answers[::2], strict=True))
        batch = [name for name in batch if expiries[name] != EXPIRED]
        ttls |= {name: expiries[name] for name in batch}
        for name in batch:
            if name.startswith(f"{PREFIX}job:"):
                pipe.hgetall(name)
            elif _place(name.removeprefix(PREFIX)):
                (pipe.scard if kinds[name] == "set" else pipe.zcard)(name)
            else:
                pipe.exists(name)
        for name, value in zip(batch, await pipe.execute(), strict=True):
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
