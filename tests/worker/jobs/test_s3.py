"""Files of jobs on an S3 store, and jobs while that store is unavailable."""

import hashlib
import random
from pathlib import Path

import httpx2
import pytest
from redis.asyncio import Redis

from tandem_shared.dev.servers import free_port
from tandem_shared.jobs.states import State
from tandem_shared.retry_policy import RetryPolicy
from tandem_worker import task
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tests.conftest import eventually, s3_environment, s3_server, started
from tests.worker.bench import open_bench
from tests.worker.workers import open_client, outcomes, working

DATA = random.Random(11).randbytes(10 << 20)


@task("s3.copy")
async def copy(job: Job, source: FileRef) -> FileRef:
    return await job.files.write("out/copy.csv", job.files.open(source))


async def test_a_job_reads_and_writes_files_on_s3(s3_url: str, tmp_path: Path) -> None:
    async with open_bench(tmp_path, store_url=s3_url) as bench:
        source = await bench.upload("in.bin", DATA, "text/x-own")
        result = await bench.run(copy, {"file": source}, stamp=5)
        assert (result["size"], result["sha256"]) == (len(DATA), hashlib.sha256(DATA).hexdigest())
        store = bench.resources.files
        assert await store.load("jobs/job/5/out/copy.csv", len(DATA)) == DATA
        # A client that is redirected there gets the headers that the API would send.
        url = await store.presign("jobs/job/5/out/copy.csv", 60)
        assert url is not None
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(url)
        assert answer.headers["content-disposition"] == 'attachment; filename="copy.csv"'
        assert answer.headers["content-type"].startswith("text/csv")
        await store.delete_tree("jobs/job")
        assert [stat async for stat in store.list("jobs")] == []


async def test_a_job_is_retried_while_the_store_is_unavailable(
    redis_url: str, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @task("s3.write", retry=RetryPolicy(max_attempts=9, base="10ms", cap="50ms"))
    async def write(job: Job) -> FileRef:
        return await job.files.write("a", b"1")

    port = free_port()
    s3_environment(port, monkeypatch)
    async with (
        open_client(redis_url, 5.0) as client,
        working(redis_url, tmp_path, write, store_url="s3://tests/back", lease=5.0),
    ):
        id = await client.submit(write)

        async def failed() -> bool:
            return "failed" in outcomes(await client.record(id))

        await eventually(failed, 30)
        server = s3_server(port)
        with started(server):
            await eventually(server.ready, 30)
            record = await client.end(id)
        assert (record.state, outcomes(record)[-1]) == (State.SUCCEEDED, "succeeded")
        assert b'"size":1' in (record.files or b"")
