"""The doctor on the ledger and the file store: rows that Redis left behind, files that are nobody's or are missing."""

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
from tandem_shared.doctor.doctor import Diagnosis, Doctor
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


class House:
    """A queue, a ledger and a store, and a worker whose part the test plays."""

    def __init__(self, queue: Queue, redis: Any, ledger: Ledger, store: FileStore) -> None:
        self.queue, self.redis, self.ledger, self.store = queue, redis, ledger, store
        self.projection = Projection(
            queue.events, ledger, load_settings(), consumer="one", busy=lambda: False
        )
        self._calls = 0

    async def examine(
        self, *, fix: bool = False, late: float = 60.0, store: FileStore | None = None
    ) -> Diagnosis:
        ledger = LedgerCheck(self.ledger, self.queue, late=late, margin=0)
        files = FilesCheck(store or self.store, self.queue, ledger, young=-1)
        return await Doctor(self.queue, ledger=ledger, store=files, pause=0).examine(fix=fix)

    async def found(self) -> list[tuple[str, str]]:
        return [(one.word, one.subject) for one in (await self.examine()).findings]

    async def heal(self) -> list[Finding]:
        """What --fix says; then nothing is found any more."""
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
        """The ledger has all that was told."""
        await self.projection.step(0.01)

    async def row(self, id: str) -> Record:
        record = await self.ledger.get(id, tenant="default")
        assert record is not None
        return record

    def key(self, name: str) -> str:
        return f"{self.queue.prefix}{name}"


@asynccontextmanager
async def opened(redis: Redis, url: str, store: FileStore) -> AsyncIterator[House]:
    queue = Queue(redis)
    info = WorkerInfo(
        id="w", host="h", pid=7, queues=("default",), concurrency=1, version="1", started_at=1.5
    )
    await queue.register(info, [ENTRY])
    await queue.tick()
    await queue.events.join(1000)
    async with open_ledger(load_settings(database_url=url)) as ledger:
        yield House(queue, redis, ledger, store)
    await queue.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    async with open_store(f"file://{tmp_path}/store") as store:
        yield store


@pytest.fixture
async def ledgered(redis: Redis, any_ledger_url: str, store: FileStore) -> AsyncIterator[House]:
    """With a ledger of each kind."""
    async with opened(redis, any_ledger_url, store) as house:
        yield house


@pytest.fixture
async def house(redis: Redis, ledger_url: str, store: FileStore) -> AsyncIterator[House]:
    async with opened(redis, ledger_url, store) as house:
        yield house


# ------------------------------------------------------------------------------------------- ledger


async def test_a_row_that_missed_the_end_of_its_job(ledgered: House) -> None:
    id = await ledgered.add()
    await ledgered.project()
    await ledgered.end(await ledgered.claim())
    assert not await ledgered.found()  # it is yet to be read
    await ledgered.redis.xtrim(ledgered.key("events"), maxlen=0)
    assert set(await ledgered.found()) == {("row-behind", id), ("final-stays", id)}
    assert (await ledgered.row(id)).state is State.QUEUED
    assert [one.mended for one in await ledgered.heal()] == [True, True]
    assert (await ledgered.row(id)).state is State.SUCCEEDED
    assert await ledgered.redis.pttl(ledgered.key(f"job:{id}")) > 0


async def test_a_row_of_a_job_that_redis_has_lost(ledgered: House) -> None:
    lost, kept = await ledgered.add(), await ledgered.add()
    await ledgered.project()
    await ledgered.redis.delete(ledgered.key(f"job:{lost}"))
    assert set(await ledgered.found()) == {
        ("row-without-record", lost),
        ("entry-without-record", f"q:default:normal {lost}"),
        ("counts-differ", "default queued"),
    }
    assert all(one.mended for one in await ledgered.heal())
    record = await ledgered.row(lost)
    assert record.state is State.FAILED
    assert record.ended is not None
    assert abs(record.ended / 1e6 - time.time()) < 60
    assert msgspec.json.decode(record.error or b"")["type"] == "record_lost"
    assert (await ledgered.row(kept)).state is State.QUEUED
    assert (await ledgered.claim()).id == kept


async def test_nothing_is_ended_on_the_word_of_a_redis_that_never_saw_this_ledger(
    house: House,
) -> None:
    id = new_id()
    await house.ledger.save([row_from_values(id, facts())])
    await house.redis.hdel(house.key("clock"), "ledger")
    findings = (await house.examine(fix=True)).findings
    assert [(one.word, one.subject, one.mended) for one in findings] == [
        ("row-without-record", id, False)
    ]
    assert (await house.row(id)).state is State.QUEUED


async def test_a_job_of_another_shard_is_none_of_its_business(house: House) -> None:
    await house.ledger.save([row_from_values(new_id("b"), facts())])
    assert not await house.found()


async def test_a_final_record_of_which_no_ledger_was_told(house: House) -> None:
    await house.add()
    id = await house.end(await house.claim())
    await house.redis.xtrim(house.key("events"), maxlen=0)
    assert await house.found() == [("final-stays", id)]
    assert [one.mended for one in (await house.examine(fix=True)).findings] == [True]
    await house.project()
    assert not await house.found()
    assert (await house.row(id)).state is State.SUCCEEDED
    assert await house.redis.pttl(house.key(f"job:{id}")) > 0


async def test_a_ledger_that_is_minutes_behind(house: House) -> None:
    await house.add()

    async def behind() -> list[Finding]:
        return (await house.examine(late=0.001)).findings

    (finding,) = await eventually(behind)
    assert (finding.word, finding.mended) == ("ledger-behind", False)
    await house.project()
    assert not await behind()


async def test_a_database_that_is_away_is_said_and_hides_nothing_else(
    house: House, tmp_path: Path
) -> None:
    await house.redis.zadd(house.key("later"), {"nobody": 1e15})
    (tmp_path / "file").touch()
    async with open_ledger(
        load_settings(database_url=f"sqlite://{tmp_path}/file/tandem.db")
    ) as away:
        house.ledger = away
        found = await house.examine()
    assert found.code == 2
    assert [one.word for one in found.findings] == [
        "entry-without-record",
    ]
    assert "the ledger" in found.unchecked[0]


# -------------------------------------------------------------------------------------------- files


async def produced(house: House) -> str:
    """A job that has ended and published a file."""
    await house.add()
    claimed = await house.claim()
    began = int(claimed.token.partition(".")[0])
    await house.store.write(job_path(claimed.id, began, "a.txt"), b"hello")
    files = [{"name": "a.txt", "size": 5, "sha256": "", "content_type": "text/plain", "url": ""}]
    return await house.end(claimed, msgspec.json.encode(files))


async def test_files_of_a_job_that_nobody_knows(house: House) -> None:
    known = await produced(house)
    forgotten = new_id()
    await house.store.write(job_path(forgotten, 1, "a.txt"), b"1")
    remembered = new_id()  # by the ledger alone
    await house.store.write(job_path(remembered, 1, "a.txt"), b"1")
    await house.ledger.save([row_from_values(remembered, facts(State.SUCCEEDED))])
    assert await house.found() == [("files-without-job", forgotten)]
    assert [one.mended for one in await house.heal()] == [True]
    left = {stat.path.split("/")[1] async for stat in house.store.list("jobs")}
    assert left == {known, remembered}


async def test_what_was_written_just_now_may_be_of_somebody_who_has_not_told_yet(
    house: House,
) -> None:
    await house.store.write(job_path(new_id(), 1, "a.txt"), b"1")
    await house.store.write(f"uploads/{new_upload_id()}/data", b"1")
    ledger = LedgerCheck(house.ledger, house.queue)
    assert not await FilesCheck(house.store, house.queue, ledger).look()
    for path in Path(os.fspath(house.store._root or "")).rglob("*"):
        os.utime(path, (1, 1))
    assert len(await FilesCheck(house.store, house.queue, ledger).look()) == 2


async def test_half_uploads(house: House) -> None:
    whole = await save_upload(house.store, b"1", tenant="default", keep=60)
    begun = await begin_upload(house.store, tenant="default", keep=60)
    await house.store.write(f"uploads/{begun.id}/parts/00000000000000", b"1")
    half, joined = new_upload_id(), f"uploads/{whole.id}/parts/00000000000000"
    await house.store.write(f"uploads/{half}/data", b"1")
    await house.store.write(joined, b"1")
    before = {stat.path async for stat in house.store.list("uploads")}
    assert set(await house.found()) == {
        ("half-upload", f"uploads/{half}/data"),
        ("half-upload", joined),
    }
    assert all(one.mended for one in await house.heal())
    after = {stat.path async for stat in house.store.list("uploads")}
    assert before - after == {f"uploads/{half}/data", joined}


@pytest.mark.parametrize("content", [None, b"hell"])
async def test_a_published_file_that_is_missing_or_cut(house: House, content: bytes | None) -> None:
    id = await produced(house)
    assert not await house.found()
    (stat,) = [stat async for stat in house.store.list(f"jobs/{id}")]
    await house.store.delete(stat.path)
    if content is not None:
        await house.store.write(stat.path, content)
    findings = (await house.examine(fix=True)).findings
    assert [(one.word, one.subject, one.mended) for one in findings] == [
        ("file-missing", f"{id}/a.txt", False)
    ]
    await house.store.write(stat.path, b"hello")
    assert not await house.found()


async def test_output_that_left_redis_and_is_not_there(house: House) -> None:
    await house.add()
    claimed = await house.claim()
    for number in (1, 2):
        await house.queue.report(
            [Report(claimed.id, claimed.token, number, "output", b"1")], limit=100
        )
    first, _ = await house.queue.output(claimed.id)
    segment = await write_segment(house.store, claimed.id, [first])
    await house.queue.archive(claimed.id, claimed.token, segment, first.weight)
    await house.end(claimed)
    assert not await house.found()
    await house.store.delete(segment_path(claimed.id, segment))
    assert await house.found() == [("output-missing", f"{claimed.id}/{segment.first}")]


async def test_a_store_that_is_away_is_said(house: House, tmp_path: Path) -> None:
    async with open_store(f"file://{tmp_path}/other") as store:
        await store.write("uploads/x/data", b"1")
        (tmp_path / "other" / "uploads" / "x").chmod(0)
        (tmp_path / "other").rename(tmp_path / "gone")
        (tmp_path / "other").touch()
        found = await house.examine(store=store)
    (tmp_path / "gone" / "uploads" / "x").chmod(0o700)
    assert [line.partition(":")[0] for line in found.unchecked] == ["the file store"]
    assert found.code == 2
