"""The doctor on the ledger: a lag, rows that missed a change, and rows of lost jobs."""

import time
from pathlib import Path

import msgspec

from tandem_shared.doctor.findings import Finding
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.states import State
from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.ledger.rows import row_from_values
from tandem_shared.settings import load_settings
from tests.conftest import eventually
from tests.shared.doctor.system import System
from tests.shared.ledger.rows import facts


async def test_a_row_that_missed_the_end_of_its_job(ledgered: System) -> None:
    id = await ledgered.add()
    await ledgered.project()
    await ledgered.end(await ledgered.claim())
    assert not await ledgered.found()  # the ledger has yet to read of it
    await ledgered.redis.xtrim(ledgered.key("events"), maxlen=0)
    assert set(await ledgered.found()) == {("row-behind", id), ("final-stays", id)}
    assert (await ledgered.row(id)).state is State.QUEUED
    assert [one.fixed for one in await ledgered.heal()] == [True, True]
    assert (await ledgered.row(id)).state is State.SUCCEEDED
    assert await ledgered.redis.pttl(ledgered.key(f"job:{id}")) > 0


async def test_a_row_of_a_job_that_redis_has_lost(ledgered: System) -> None:
    lost, kept = await ledgered.add(), await ledgered.add()
    await ledgered.project()
    await ledgered.redis.delete(ledgered.key(f"job:{lost}"))
    assert set(await ledgered.found()) == {
        ("row-without-record", lost),
        ("entry-misplaced", f"q:default:normal {lost}"),
        ("counts-differ", "default queued"),
    }
    assert all(one.fixed for one in await ledgered.heal())
    record = await ledgered.row(lost)
    assert record.state is State.FAILED
    assert record.ended is not None
    assert abs(record.ended / 1e6 - time.time()) < 60
    assert msgspec.json.decode(record.error or b"")["type"] == "record_lost"
    assert (await ledgered.row(kept)).state is State.QUEUED
    assert (await ledgered.claim()).id == kept


async def test_no_job_is_ended_if_this_redis_has_never_seen_the_ledger(
    system: System,
) -> None:
    id = new_id()
    await system.ledger.save([row_from_values(id, facts())])
    await system.redis.hdel(system.key("clock"), "ledger")
    findings = (await system.examine(fix=True)).findings
    assert [(one.code, one.subject, one.fixed) for one in findings] == [
        ("row-without-record", id, False)
    ]
    assert (await system.row(id)).state is State.QUEUED


async def test_jobs_of_other_shards_are_ignored(system: System) -> None:
    await system.ledger.save([row_from_values(new_id(shard="b"), facts())])
    assert not await system.found()


async def test_a_final_record_that_the_ledger_missed(system: System) -> None:
    await system.add()
    id = await system.end(await system.claim())
    await system.redis.xtrim(system.key("events"), maxlen=0)
    assert await system.found() == [("final-stays", id)]
    assert [one.fixed for one in (await system.examine(fix=True)).findings] == [True]
    await system.project()
    assert not await system.found()
    assert (await system.row(id)).state is State.SUCCEEDED
    assert await system.redis.pttl(system.key(f"job:{id}")) > 0


async def test_a_ledger_that_is_minutes_behind(system: System) -> None:
    await system.add()

    async def behind() -> list[Finding]:
        return (await system.examine(max_lag=0.001)).findings

    (finding,) = await eventually(behind)
    assert (finding.code, finding.fixed) == ("ledger-behind", False)
    await system.project()
    assert not await behind()


async def test_an_unavailable_database_is_reported_and_hides_nothing_else(
    system: System, tmp_path: Path
) -> None:
    await system.redis.zadd(system.key("leases"), {"unknown": 1e15})
    (tmp_path / "file").touch()
    async with open_ledger(
        load_settings(database_url=f"sqlite://{tmp_path}/file/tandem.db")
    ) as away:
        system.ledger = away
        found = await system.examine()
    assert found.exit_code == 2
    assert [one.code for one in found.findings] == [
        "entry-misplaced",
    ]
    assert "the ledger" in found.unchecked[0]
