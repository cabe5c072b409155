"""The doctor on the ledger and the file store: lost rows, orphaned files and missing files."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tandem_shared import catalogue
from tandem_shared.doctor.doctor import Check, Diagnosis, examine, queue_checks
from tandem_shared.doctor.files import FilesCheck
from tandem_shared.doctor.findings import Finding
from tandem_shared.doctor.ledger import LedgerCheck
from tandem_shared.files.names import job_path
from tandem_shared.files.store import FileStore, open_store
from tandem_shared.files.uploads import begin_upload, new_upload_id, save_upload
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.states import State
from tandem_shared.ledger.ledger import Ledger, open_ledger
from tandem_shared.ledger.rows import row_from_values
from tandem_shared.queue.messages import Claimed, Finish, Report, WorkerInfo
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import load_settings
from tandem_shared.streams.segments import segment_path, write_segment
from tandem_worker.runtime.ledger import Projection
from tests.conftest import eventually
from tests.shared.ledger.rows import facts
from tests.shared.queue.model.shard import entry, job

ENTRY = entry("t")


class System:
    """A queue, a ledger, a store, and a worker that the test plays."""

    def __init__(self, queue: Queue, redis: Any, ledger: Ledger, store: FileStore) -> None:
        self.queue, self.redis, self.ledger, self.store = queue, redis, ledger, store
        self.projection = Projection(
            queue.events, ledger, load_settings(), consumer="one", busy=lambda: False
        )
        self._calls = 0

    async def examine(
        self, *, fix: bool = False, max_lag: float = 60.0, store: FileStore | None = None
    ) -> Diagnosis:
        ledger = LedgerCheck(self.ledger, self.queue, max_lag=max_lag, margin=0)
        checks: dict[str, Check] = {
            **queue_checks(self.queue.integrity),
            "the ledger": ledger,
            "the file store": FilesCheck(store or self.store, self.queue, ledger, min_age=-1),
        }
        return await examine(checks, pause=0, fix=fix)

    async def found(self) -> list[tuple[str, str]]:
        return [(one.code, one.subject) for one in (await self.examine()).findings]

    async def heal(self) -> list[Finding]:
        """The findings of --fix, after which nothing is found any more."""
        findings = (await self.examine(fix=True)).findings
        assert not await self.found()
        return findings

    async def add(self) -> str:
        return (await self.queue.submit(job())).id

    async def claim(self) -> Claimed:
        self._calls += 1
        digest = catalogue.digest([ENTRY])
        return (
            await self.queue.claim("w", self._calls, slots=1, tasks=digest, queues=["default"])
        ).jobs[0]

    async def end(self, claimed: Claimed, files: bytes = b"") -> str:
        await self.queue.finish(
            [Finish(claimed.id, claimed.token, State.SUCCEEDED, "succeeded", b"1", files=files)]
        )
        return claimed.id

    async def project(self) -> None:
        """Let the ledger read all events."""
        await self.projection.step(0.01)

    async def row(self, id: str) -> Record:
        record = await self.ledger.get(id, tenant="default")
        assert record is not None
        return record

    def key(self, name: str) -> str:
        return f"{self.queue.prefix}{name}"


@asynccontextmanager
async def opened(redis: Redis, url: str, store: FileStore) -> AsyncIterator[System]:
    queue = Queue(redis)
    info = WorkerInfo(
        id="w", host="h", pid=7, queues=("default",), concurrency=1, version="1", started_at=1.5
    )
    await queue.register(info, [ENTRY])
    await queue.tick()
    await queue.events.join(1000)
    async with open_ledger(load_settings(database_url=url)) as ledger:
        yield System(queue, redis, ledger, store)
    await queue.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    async with open_store(f"file://{tmp_path}/store") as store:
        yield store


@pytest.fixture
async def ledgered(redis: Redis, any_ledger_url: str, store: FileStore) -> AsyncIterator[System]:
    """With each kind of ledger."""
    async with opened(redis, any_ledger_url, store) as system:
        yield system


@pytest.fixture
async def system(redis: Redis, ledger_url: str, store: FileStore) -> AsyncIterator[System]:
    async with opened(redis, ledger_url, store) as system:
        yield system


# ------------------------------------------------------------------------------------------- ledger


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
        ("entry-without-record", f"q:default:normal {lost}"),
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
    await system.ledger.save([row_from_values(new_id("b"), facts())])
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
    await system.redis.zadd(system.key("later"), {"nobody": 1e15})
    (tmp_path / "file").touch()
    async with open_ledger(
        load_settings(database_url=f"sqlite://{tmp_path}/file/tandem.db")
    ) as away:
        system.ledger = away
        found = await system.examine()
    assert found.exit_code == 2
    assert [one.code for one in found.findings] == [
        "entry-without-record",
    ]
    assert "the ledger" in found.unchecked[0]


# -------------------------------------------------------------------------------------------- files


async def produced(system: System) -> str:
    """A final job that has published a file."""
    await system.add()
    claimed = await system.claim()
    began = int(claimed.token.partition(".")[0])
    await system.store.write(job_path(claimed.id, began, "a.txt"), b"hello")
    files = [{"name": "a.txt", "size": 5, "sha256": "", "content_type": "text/plain", "url": ""}]
    return await system.end(claimed, msgspec.json.encode(files))


async def test_files_of_an_unknown_job(system: System) -> None:
    known = await produced(system)
    forgotten = new_id()
    await system.store.write(job_path(forgotten, 1, "a.txt"), b"1")
    remembered = new_id()  # only the ledger knows it
    await system.store.write(job_path(remembered, 1, "a.txt"), b"1")
    await system.ledger.save([row_from_values(remembered, facts(State.SUCCEEDED))])
    assert await system.found() == [("files-without-job", forgotten)]
    assert [one.fixed for one in await system.heal()] == [True]
    left = {stored.path.split("/")[1] async for stored in system.store.list("jobs")}
    assert left == {known, remembered}


async def test_young_files_may_belong_to_a_job_not_yet_recorded(
    system: System,
) -> None:
    await system.store.write(job_path(new_id(), 1, "a.txt"), b"1")
    await system.store.write(f"uploads/{new_upload_id()}/data", b"1")
    ledger = LedgerCheck(system.ledger, system.queue)
    assert not await FilesCheck(system.store, system.queue, ledger).find()
    for path in Path(os.fspath(system.store._root or "")).rglob("*"):
        os.utime(path, (1, 1))
    assert len(await FilesCheck(system.store, system.queue, ledger).find()) == 2


async def test_bytes_of_uploads_that_cannot_be_completed(system: System) -> None:
    whole = await save_upload(system.store, b"1", tenant="default", keep=60)
    begun = await begin_upload(system.store, tenant="default", keep=60)
    await system.store.write(f"uploads/{begun.id}/parts/00000000000000", b"1")
    half, joined = new_upload_id(), f"uploads/{whole.id}/parts/00000000000000"
    await system.store.write(f"uploads/{half}/data", b"1")
    await system.store.write(joined, b"1")
    before = {stored.path async for stored in system.store.list("uploads")}
    assert set(await system.found()) == {
        ("half-upload", f"uploads/{half}/data"),
        ("half-upload", joined),
    }
    assert all(one.fixed for one in await system.heal())
    after = {stored.path async for stored in system.store.list("uploads")}
    assert before - after == {f"uploads/{half}/data", joined}


@pytest.mark.parametrize("content", [None, b"hell"])
async def test_a_published_file_that_is_missing_or_truncated(
    system: System, content: bytes | None
) -> None:
    id = await produced(system)
    assert not await system.found()
    (stored,) = [stored async for stored in system.store.list(f"jobs/{id}")]
    await system.store.delete(stored.path)
    if content is not None:
        await system.store.write(stored.path, content)
    findings = (await system.examine(fix=True)).findings
    assert [(one.code, one.subject, one.fixed) for one in findings] == [
        ("file-missing", f"{id}/a.txt", False)
    ]
    await system.store.write(stored.path, b"hello")
    assert not await system.found()


async def test_a_missing_output_segment(system: System) -> None:
    await system.add()
    claimed = await system.claim()
    for number in (1, 2):
        await system.queue.report(
            [Report(claimed.id, claimed.token, number, "output", b"1")], limit=100
        )
    first, _ = await system.queue.output(claimed.id)
    segment = await write_segment(system.store, claimed.id, [first])
    await system.queue.archive(claimed.id, claimed.token, segment, first.weight)
    await system.end(claimed)
    assert not await system.found()
    await system.store.delete(segment_path(claimed.id, segment))
    assert await system.found() == [("output-missing", f"{claimed.id}/{segment.first}")]


async def test_an_unavailable_store_is_reported(system: System, tmp_path: Path) -> None:
    async with open_store(f"file://{tmp_path}/other") as store:
        await store.write("uploads/x/data", b"1")
        (tmp_path / "other" / "uploads" / "x").chmod(0)
        (tmp_path / "other").rename(tmp_path / "gone")
        (tmp_path / "other").touch()
        found = await system.examine(store=store)
    (tmp_path / "gone" / "uploads" / "x").chmod(0o700)
    assert [line.partition(":")[0] for line in found.unchecked] == ["the file store"]
    assert found.exit_code == 2
