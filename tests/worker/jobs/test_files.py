"""Files as tasks see them, on a real store and a real queue."""

import hashlib
import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
from pydantic import ValidationError
from redis.asyncio import Redis

from tandem_shared import catalogue
from tandem_shared.files.names import job_path
from tandem_shared.files.store import FileStore
from tandem_shared.files.uploads import delete_upload, save_upload
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Finish, WorkerInfo
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import load_settings
from tandem_worker.errors import TaskError
from tandem_worker.jobs.files import FileRef, JobFiles
from tandem_worker.resources import Resources, open_resources
from tandem_worker.task import task_of
from tandem_worker.tasks.file.hash import hash_file

MIB = 1 << 20
calls = itertools.count(1)  # numbers of claims
TASK = task_of(hash_file)


@pytest.fixture
async def resources(tmp_path: Path) -> AsyncIterator[Resources]:
    async with open_resources(load_settings(store_url=f"file://{tmp_path}/store")) as resources:
        yield resources


@pytest.fixture
async def store(resources: Resources) -> FileStore:
    return resources.files


@pytest.fixture
async def queue(redis: Redis) -> AsyncIterator[Queue]:
    queue = Queue(redis)
    yield queue
    await queue.close()


@asynccontextmanager
async def attempt(
    queue: Queue, store: FileStore, tenant: str, to: State = State.SUCCEEDED
) -> AsyncIterator[JobFiles]:
    """The files of a tenant's running job, which ends in state `to`; success publishes them."""
    worker = WorkerInfo("w", "host", 1, ("default",), 10, "1", time.time())
    await queue.register(worker, [TASK.entry])
    options = JobOptions(timeout=30)
    await queue.submit(
        Submission(id=new_id(), task=TASK.name, payload=b"{}", options=options, tenant=tenant)
    )
    known = catalogue.digest([TASK.entry])
    claim = await queue.claim("w", next(calls), slots=1, tasks=known, queues=["default"])
    (job,) = claim.jobs
    files = JobFiles(
        store,
        job.id,
        int(job.token.partition(".")[0]),
        tenant,
        partial(queue.get, tenant=tenant),
    )
    yield files
    published = msgspec.json.encode(files.written) if to is State.SUCCEEDED else b""
    assert await queue.finish([Finish(job.id, job.token, to, "succeeded", files=published)]) == [
        "ok"
    ]


async def find_no_job(id: str) -> None:
    """Look up another job: there are no others."""


def files_of(store: FileStore, stamp: int = 1, tenant: str = "default") -> JobFiles:
    """The files of an attempt of job J."""
    return JobFiles(store, "J", stamp, tenant, find_no_job)


async def collect(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def failure(error: pytest.ExceptionInfo[TaskError]) -> tuple[str, bool]:
    return error.value.type, error.value.retryable


def test_input_needs_only_the_file_of_a_reference() -> None:
    assert FileRef.model_validate({"file": "x"}) == FileRef(file="x")
    full = {
        "file": "J/a",
        "name": "a",
        "size": 1,
        "sha256": "0",
        "content_type": "text/plain",
        "url": "/v1/x",
    }
    assert FileRef.model_validate(full | {"checked_at": "today"}).model_dump() == full
    for wrong in ({}, {"file": ""}, {"file": 1}, {"name": "a"}, {"file": "x" * 1001}):
        with pytest.raises(ValidationError):
            FileRef.model_validate(wrong)


async def test_an_upload_is_read_by_its_tenant(store: FileStore) -> None:
    data = random.Random(1).randbytes(3 * MIB + 5)
    saved = await save_upload(
        store, data, tenant="a", keep=60, name="x.bin", content_type="image/png", now=time.time
    )
    files = files_of(store, tenant="a")
    assert await files.read(FileRef(file=saved.id)) == data
    assert await files.read({"file": saved.id}) == data
    assert await collect(files.open({"file": saved.id})) == data
    assert await collect(files.open({"file": saved.id}, start=MIB)) == data[MIB:]
    assert await files.stat({"file": saved.id, "name": "a lie", "size": 7}) == FileRef(
        file=saved.id,
        name="x.bin",
        size=len(data),
        sha256=saved.sha256,
        content_type="image/png",
        url=f"/v1/files/{saved.id}",
    )
    with pytest.raises(TaskError) as error:
        await files_of(store, tenant="b").read({"file": saved.id})
    assert failure(error) == ("file_not_found", False)
    with pytest.raises(TaskError) as error:
        await files.read({"file": saved.id}, limit=MIB)
    assert failure(error) == ("too_large", False)
    await delete_upload(store, saved.id, tenant="a", now=time.time())
    with pytest.raises(TaskError) as error:
        await collect(files.open({"file": saved.id}))
    assert failure(error) == ("file_not_found", False)


async def test_a_published_file_of_another_job_can_be_read(queue: Queue, store: FileStore) -> None:
    async with attempt(queue, store, "a") as first:
        made = await first.write("out/räte #1.csv", b"1,2\n")
        async with attempt(queue, store, "a") as second:
            with pytest.raises(TaskError) as error:
                await second.read(made)
            assert failure(error) == ("file_not_found", False)
            assert await first.read(made) == b"1,2\n"  # its own, before it ends
    async with attempt(queue, store, "a") as third:
        assert await third.read(made) == b"1,2\n"
        assert await third.stat({"file": made.file}) == made
        for wrong in ("nope", "out", "../" + str(made.name), "out/räte #1.csv/"):
            with pytest.raises(TaskError) as error:
                await third.read({"file": f"{made.file.partition('/')[0]}/{wrong}"})
            assert failure(error) == ("file_not_found", False)
    async with attempt(queue, store, "b") as stranger:
        with pytest.raises(TaskError) as error:
            await stranger.read(made)
        assert failure(error) == ("file_not_found", False)


async def test_files_of_a_rejected_attempt_cannot_be_read(queue: Queue, store: FileStore) -> None:
    async with attempt(queue, store, "a", to=State.CANCELLED) as first:
        made = await first.write("x", b"1")
    async with attempt(queue, store, "a") as second:
        with pytest.raises(TaskError) as error:
            await second.read(made)
    assert failure(error) == ("file_not_found", False)


@pytest.mark.parametrize(
    "file", ["../../etc/passwd", "/etc/passwd", "x", "J/", "/", "{a}/x", "a:b/x", "\0", "J\n/x"]
)
async def test_references_to_nothing_are_not_found(
    queue: Queue, store: FileStore, file: str
) -> None:
    async with attempt(queue, store, "a") as files:
        with pytest.raises(TaskError) as error:
            await files.read({"file": file})
        assert failure(error) == ("file_not_found", False)


async def test_written_files_are_listed_and_stored_under_the_attempt(store: FileStore) -> None:
    files = files_of(store, 17)
    made = await files.write("a/b c?.csv", chunks(b"1,", b"2\n"))
    view = {
        "name": "a/b c?.csv",
        "size": 4,
        "sha256": hashlib.sha256(b"1,2\n").hexdigest(),
        "content_type": "text/csv",
        "url": "/v1/jobs/J/files/a/b%20c%3F.csv",
    }
    assert made.model_dump() == {"file": "J/a/b c?.csv", **view}
    assert msgspec.to_builtins(files.written) == [view]
    assert await store.load("jobs/J/17/a/b c?.csv", 10) == b"1,2\n"
    again = await files.write("a/b c?.csv", bytearray(b"3"), "text/x-mine")
    await files.write("z", memoryview(b""))
    assert (again.size, again.content_type) == (1, "text/x-mine")
    assert [(one.name, one.size, one.content_type) for one in files.written] == [
        ("a/b c?.csv", 1, "text/x-mine"),
        ("z", 0, "application/octet-stream"),
    ]
    assert await files.read(again) == b"3"


async def test_attempts_do_not_overwrite_each_others_files(store: FileStore) -> None:
    for stamp in (1, 2):
        await files_of(store, stamp).write("x", str(stamp).encode())
    assert [await store.load(job_path("J", stamp, "x"), 10) for stamp in (1, 2)] == [b"1", b"2"]


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../../x", "a\\b", "a\0", "x" * 300, "a//b"]
)
async def test_an_invalid_name_is_rejected_before_any_byte_is_read(
    store: FileStore, name: str
) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("asked for bytes")
        yield b""

    files = files_of(store)
    with pytest.raises(TaskError) as error:
        await files.write(name, never())
    assert failure(error) == ("invalid_file_name", False)
    assert files.written == []


async def test_a_name_cannot_be_both_a_file_and_a_directory(store: FileStore) -> None:
    files = files_of(store)
    await files.write("a/b", b"1")
    await files.write("a/bc", b"1")
    for clash in ("a", "a/b/c", "a/b/c/d"):
        with pytest.raises(TaskError) as error:
            await files.write(clash, b"2")
        assert failure(error) == ("invalid_file_name", False)
    assert [one.name for one in files.written] == ["a/b", "a/bc"]


async def test_a_failed_write_is_not_listed(store: FileStore) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    files = files_of(store)
    with pytest.raises(ZeroDivisionError):
        await files.write("x", breaks())
    with pytest.raises(TaskError) as error:
        await files.write("y", b"123456", limit=5)
    assert failure(error) == ("too_large", False)
    with pytest.raises(TypeError, match="bytes"):
        await files.write("z", "text")  # type: ignore[arg-type] # the mistake itself
    assert files.written == []


async def test_the_number_of_files_is_bounded(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_worker.jobs.files.MAX_FILES", 2)
    files = files_of(store)
    for name in ("a", "b", "a"):
        await files.write(name, b"1")
    with pytest.raises(TaskError) as error:
        await files.write("c", b"1")
    assert failure(error) == ("too_large", False)
