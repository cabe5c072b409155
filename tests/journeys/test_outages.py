"""Outages of Redis, the databases and the file store, which the API and workers survive."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest

from tandem_shared.dev.servers import mongo_server
from tests.chaos.check.evidence import SubmissionLog
from tests.chaos.followers import follow_lines
from tests.chaos.stage import Stage, open_stage
from tests.conftest import eventually, started
from tests.journeys.tasks import outage_tasks

# Short pauses, so that the end of an outage is noticed soon.
RETRY = {"max_attempts": 1000, "base": "100ms", "cap": "300ms"}
WAIT_SECONDS = 90.0  # at most, on a busy machine


class Service:
    """A stage with one API and one worker, and a client of it."""

    def __init__(self, stage: Stage, client: httpx2.AsyncClient, directory: Path) -> None:
        self.stage, self.client, self.directory = stage, client, directory

    def scene(self, name: str) -> dict[str, str]:
        return {
            "notes": str(self.directory / f"{name}.notes"),
            "go": str(self.directory / f"{name}.go"),
        }

    def noted(self, name: str, word: str) -> int:
        path = self.directory / f"{name}.notes"
        return path.read_text().count(word) if path.exists() else 0

    async def submit(self, task: str, payload: Any = None, **options: Any) -> httpx2.Response:
        body = {
            "task": task,
            "payload": {} if payload is None else payload,
            "options": {"retry": RETRY, **options},
        }
        return await self.client.post("/v1/jobs", json=body)

    async def accepted(self, task: str, payload: Any = None, **options: Any) -> str:
        answer = await self.submit(task, payload, **options)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def ready(self) -> bool:
        """Whether the API reaches Redis: while Redis starts, requests are answered with 503."""
        return (await self.client.get("/readyz")).status_code == 200

    async def job(self, id: str) -> dict[str, Any]:
        answer = await self.client.get(f"/v1/jobs/{id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def succeeds(self, id: str) -> dict[str, Any]:
        job: dict[str, Any] = {}

        async def ended() -> bool:
            nonlocal job
            job = await self.job(id)
            return bool(job["done"])

        try:
            await eventually(ended, WAIT_SECONDS)
        except AssertionError:
            raise AssertionError(f"it did not end: {job}") from None
        assert job["state"] == "succeeded", job
        return job

    async def retries(self, id: str, kind: str) -> None:
        """Wait until an attempt of the job has failed with this error type."""

        async def failed() -> bool:
            error = (await self.job(id))["error"]
            return error is not None and error["type"] == kind

        await eventually(failed, WAIT_SECONDS)

    def logged(self, text: str) -> int:
        """How often the worker has logged the text."""
        return (self.stage.directory / "worker-0.log").read_text().count(text)


@asynccontextmanager
async def open_service(**settings: str) -> AsyncIterator[Service]:
    async with AsyncExitStack() as stack:
        # A short name for sockets, readable for PostgreSQL's user.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-")))
        directory.chmod(0o711)
        more = {"TANDEM_TASKS": outage_tasks.__name__, **settings}
        stage = await stack.enter_async_context(
            open_stage(directory, apis=1, workers=1, settings=more)
        )
        # A request that hangs fails the test by its timeout.
        url = f"http://127.0.0.1:{stage.api_ports[0]}"
        client = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=url, trust_env=False, timeout=20)
        )
        yield Service(stage, client, directory)


async def kill(stage: Stage) -> Callable[[], None]:
    """Kill Redis; the returned function ends the outage."""
    await stage.redis.end(signal.SIGKILL)
    return stage.redis.start


async def stop(stage: Stage) -> Callable[[], None]:
    """Stop the process of Redis."""
    stage.redis.send(signal.SIGSTOP)
    return lambda: stage.redis.send(signal.SIGCONT)


async def drop_packets(stage: Stage) -> Callable[[], None]:
    """Let all packets to Redis vanish, on old and on new connections."""
    stage.to_redis.stall()
    return stage.to_redis.flow


async def run_outage(
    service: Service, name: str, start: Callable[[Stage], Awaitable[Callable[[], None]]]
) -> None:
    """Redis fails while two jobs run and one's stream is read; the jobs end before it is back."""
    scene = service.scene(name)
    streaming = await service.accepted("outage.streams", scene)
    waiting = await service.accepted("outage.waits", scene)
    log = SubmissionLog(name, "outage.streams", [streaming])
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(
        str(service.client.base_url), timeout=timeout, trust_env=False
    ) as session:
        reading = asyncio.create_task(follow_lines(session, log, streaming, _nothing))
        await eventually(
            lambda: service.noted(name, "begun") == 2 and len(log.output) > 2, WAIT_SECONDS
        )
        failures = service.logged("during=finish")
        end = await start(service.stage)
        await check_refusals(service, waiting)

        Path(scene["go"]).touch()
        await eventually(lambda: service.noted(name, "ended") == 2, WAIT_SECONDS)
        await eventually(lambda: service.logged("during=finish") > failures, WAIT_SECONDS)

        end()
        await eventually(service.ready, WAIT_SECONDS)
        for id in (waiting, streaming):
            job = await service.succeeds(id)
            # The outcome was kept, so no second attempt started, although the leases had ended.
            assert [attempt["outcome"] for attempt in job["attempts"]] == ["succeeded"], job
        await asyncio.wait_for(reading, WAIT_SECONDS)
    assert log.unexpected == []
    assert log.entry_ids == sorted(set(log.entry_ids))
    assert [number for _, number in log.output] == list(range(len(log.output)))
    assert service.noted(name, "begun") == 2
    await service.succeeds(await service.accepted("outage.quick", 1))


async def check_refusals(service: Service, id: str) -> None:
    """Every endpoint that needs Redis answers 503 with Retry-After."""
    answers = await asyncio.gather(
        service.submit("outage.quick", 1),
        service.client.get(f"/v1/jobs/{id}"),
        service.client.get(f"/v1/jobs/{id}?wait=2s"),
        service.client.post(f"/v1/jobs/{id}/cancel"),
        service.client.get("/v1/queues"),
        service.client.get("/readyz"),
    )
    statuses = [answer.status_code for answer in answers]
    assert statuses == [503] * len(answers), [answer.text for answer in answers]
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
    assert (await service.client.get("/livez")).status_code == 200


def _nothing() -> None:
    pass


@pytest.mark.timeout(300)
async def test_api_and_workers_survive_three_kinds_of_redis_outage() -> None:
    async with open_service() as service:
        processes = [process.pid for process in (*service.stage.apis, *service.stage.workers)]
        for start in (kill, stop, drop_packets):
            await run_outage(service, start.__name__, start)
        assert [
            process.pid for process in (*service.stage.apis, *service.stage.workers)
        ] == processes
        assert all(process.alive for process in (*service.stage.apis, *service.stage.workers))
        assert service.stage.logged("[error") == []


async def check_other_jobs(service: Service, name: str) -> None:
    """Jobs that do not need what has failed are accepted, run and succeed."""
    assert (await service.client.get("/readyz")).status_code == 200
    ids = [await service.accepted("outage.quick", number) for number in range(3)]
    assert [(await service.succeeds(id))["result"] for id in ids] == [0, 1, 2], name


@pytest.mark.timeout(300)
async def test_only_jobs_that_need_a_failed_database_or_file_store_wait() -> None:
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-")))
        mongo = mongo_server(home)
        process = stack.enter_context(started(mongo))
        await eventually(mongo.ready, WAIT_SECONDS)
        service = await stack.enter_async_context(
            open_service(TANDEM_MONGO__MAIN=f"{mongo.url}?serverSelectionTimeoutMS=500")
        )
        stage = service.stage
        sql = {"connection": "effects", "statements": [{"sql": "CREATE TABLE once (key text)"}]}
        await service.succeeds(await service.accepted("sql.execute", sql))
        insert = {"connection": "effects", "statements": [{"sql": "INSERT INTO once VALUES ('x')"}]}
        document = {"connection": "main", "collection": "c", "documents": [{"a": 1}]}
        await service.succeeds(await service.accepted("mongo.insert", document))

        # PostgreSQL, which also holds the ledger.
        await stage.postgres.end(signal.SIGQUIT)
        waiting = await service.accepted("sql.execute", insert)
        await service.retries(waiting, "sql_connection")
        await check_other_jobs(service, "sql")
        refused = await service.client.get("/v1/jobs")
        assert (refused.status_code, int(refused.headers["Retry-After"]) > 0) == (503, True)
        stage.postgres.start()
        await service.succeeds(waiting)
        rows = await service.succeeds(
            await service.accepted(
                "sql.query", {"connection": "effects", "sql": "SELECT * FROM once", "as": "result"}
            )
        )
        assert rows["result"]["rows"] == [{"key": "x"}]
        await eventually(lambda: _listed(service, waiting), WAIT_SECONDS)

        # MongoDB.
        process.kill()
        process.wait()
        waiting = await service.accepted("mongo.insert", document)
        await service.retries(waiting, "mongo_connection")
        await check_other_jobs(service, "mongo")
        assert mongo.pid_file is not None
        mongo.pid_file.unlink(missing_ok=True)
        stack.enter_context(started(mongo))
        await service.succeeds(waiting)
        found = await service.accepted("mongo.find", {"connection": "main", "collection": "c"})
        assert (await service.succeeds(found))["result"] == {"count": 2}

        # The file store: a file in place of its directory.
        store, aside = service.directory / "store", service.directory / "aside"
        store.rename(aside)
        store.touch()
        waiting = await service.accepted("outage.writes")
        await eventually(lambda: _tried(service, waiting), WAIT_SECONDS)
        await check_other_jobs(service, "files")
        store.unlink()
        aside.rename(store)
        job = await service.succeeds(waiting)
        assert (await service.client.get(job["files"][0]["url"])).content == b"words"


async def _listed(service: Service, id: str) -> bool:
    answer = await service.client.get("/v1/jobs?limit=200")
    return answer.status_code == 200 and id in [one["id"] for one in answer.json()["items"]]


async def _tried(service: Service, id: str) -> bool:
    return len((await service.job(id))["attempts"]) > 1
