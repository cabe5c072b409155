"""The doctor on the file store: orphaned files, incomplete uploads and missing files."""

import os
import time
from pathlib import Path

import msgspec
import pytest

from tandem_shared.doctor.files import FilesCheck
from tandem_shared.doctor.ledger import LedgerCheck
from tandem_shared.files.names import job_path
from tandem_shared.files.store import open_store
from tandem_shared.files.uploads import begin_upload, new_upload_id, save_upload
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.states import State
from tandem_shared.ledger.rows import row_from_values
from tandem_shared.queue.messages import Report
from tandem_shared.streams.segments import segment_path, write_segment
from tests.shared.doctor.system import System
from tests.shared.ledger.rows import facts


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
    await system.store.write(f"uploads/{new_upload_id(time.time())}/data", b"1")
    ledger = LedgerCheck(system.ledger, system.queue)
    assert not await FilesCheck(system.store, system.queue, ledger).find()
    for path in Path(os.fspath(system.store._root or "")).rglob("*"):
        os.utime(path, (1, 1))
    assert len(await FilesCheck(system.store, system.queue, ledger).find()) == 2


async def test_bytes_of_uploads_that_cannot_be_completed(system: System) -> None:
    whole = await save_upload(system.store, b"1", tenant="default", keep=60, now=time.time)
    begun = await begin_upload(system.store, tenant="default", keep=60, now=time.time)
    await system.store.write(f"uploads/{begun.id}/parts/00000000000000", b"1")
    half, joined = new_upload_id(time.time()), f"uploads/{whole.id}/parts/00000000000000"
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
