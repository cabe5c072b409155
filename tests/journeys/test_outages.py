"""Redis, the databases or the file store are unavailable for a while; nothing is restarted."""

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

# Many short pauses: an outage that is over is noticed soon.
RETRY = {"max_attempts": 1000, "base": "100ms", "cap": "300ms"}
LONG = 90.0  # seconds at most, on a machine that has much else to do


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
            await eventually(ended, LONG)
        except AssertionError:
            raise AssertionError(f"it did not end: {job}") from None
        assert job["state"] == "succeeded", job
        return job

    async def retries(self, id: str, kind: str) -> None:
        """Waits until an attempt of the job has failed for that."""

        async def failed() -> bool:
            error = (await self.job(id))["error"]
            return error is not None and error["type"] == kind

        await eventually(failed, LONG)

    def said(self, text: str) -> int:
        """How often the worker has said that."""
        return (self.stage.directory / "worker-0.log").read_text().count(text)


@asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[Service]:
    async with AsyncExitStack() as stack:
        # A short name: a socket lies in it. PostgreSQL's own user passes through it.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-")))
        directory.chmod(0o711)
        more = {"TANDEM_TASKS": outage_tasks.__name__, **settings}
        stage = await stack.enter_async_context(
            open_stage(directory, apis=1, workers=1, settings=more)
        )
        # A request that takes longer than this hangs, and fails the test.
        url = f"http://127.0.0.1:{stage.api_ports[0]}"
        client = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=url, trust_env=False, timeout=20)
        )
        yield Service(stage, client, directory)


# -------------------------------------------------------------------------------------------- Redis


async def killed(stage: Stage) -> Callable[[], Awaitable[None]]:
    await stage.redis.end(signal.SIGKILL)

    async def again() -> None:
        stage.redis.start()

    return again


async def stopped(stage: Stage) -> Callable[[], Awaitable[None]]:
    stage.redis.send(signal.SIGSTOP)

    async def again() -> None:
        stage.redis.send(signal.SIGCONT)

    return again


async def black_holed(stage: Stage) -> Callable[[], Awaitable[None]]:
    """Packets go nowhere, for old and for new connections."""
    stage.to_redis.stall()

    async def again() -> None:
        stage.to_redis.flow()

    return again


async def outage(service: Service, name: str, begin: Callable[[Stage], Awaitable[Any]]) -> None:
    """Redis goes away while a job runs and its stream is read; the job ends before it is back."""
    scene = service.scene(name)
    speaker, id = (
        await service.accepted("outage.speaks", scene),
        await service.accepted("outage.waits", scene),
    )
    log = SubmissionLog(name, "outage.speaks", [speaker])
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(
        str(service.client.base_url), timeout=timeout, trust_env=False
    ) as session:
        reading = asyncio.create_task(follow_lines(session, log, speaker, _nothing))
        await eventually(lambda: service.noted(name, "begun") == 2 and len(log.output) > 2, LONG)
        unwritten = service.said("during=finish")
        again = await begin(service.stage)

        refusals = await asyncio.gather(
            service.submit("outage.quick", 1),
            service.client.get(f"/v1/jobs/{id}"),
            service.client.get(f"/v1/jobs/{id}?wait=2s"),
            service.client.post(f"/v1/jobs/{id}/cancel"),
            service.client.get("/v1/queues"),
            service.client.get("/readyz"),
        )
        assert [one.status_code for one in refusals] == [503] * len(refusals), [
            one.text for one in refusals
        ]
        assert all(int(one.headers["Retry-After"]) > 0 for one in refusals)
        assert (await service.client.get("/livez")).status_code == 200

        Path(scene["go"]).touch()
        await eventually(lambda: service.noted(name, "ended") == 2, LONG)
        await eventually(lambda: service.said("during=finish") > unwritten, LONG)

        await again()
        await eventually(service.ready, LONG)
        for one in (id, speaker):
            job = await service.succeeds(one)
            # Kept and written after: nobody began it anew, although it was away for longer than a
            # lease.
            assert [attempt["outcome"] for attempt in job["attempts"]] == ["succeeded"], job
        await asyncio.wait_for(reading, LONG)
    assert log.unexpected == []
    assert log.entry_ids == sorted(set(log.entry_ids))
    assert [number for _, number in log.output] == list(range(len(log.output)))
    assert service.noted(name, "begun") == 2
    await service.succeeds(await service.accepted("outage.quick", 1))


def _nothing() -> None:
    pass


@pytest.mark.timeout(300)
async def test_redis_goes_away_in_three_ways_and_everybody_waits_for_it() -> None:
    async with serving() as service:
        processes = [one.pid for one in (*service.stage.apis, *service.stage.workers)]
        for begin in (killed, stopped, black_holed):
            await outage(service, begin.__name__, begin)
        assert [one.pid for one in (*service.stage.apis, *service.stage.workers)] == processes
        assert all(one.alive for one in (*service.stage.apis, *service.stage.workers))
        assert service.stage.logged("[error") == []


# -------------------------------------------------------------------------------- one of the others


async def others_go_on(service: Service, name: str) -> None:
    """What needs nothing of what is away is taken, runs and ends."""
    assert (await service.client.get("/readyz")).status_code == 200
    ids = [await service.accepted("outage.quick", number) for number in range(3)]
    assert [(await service.succeeds(id))["result"] for id in ids] == [0, 1, 2], name


@pytest.mark.timeout(300)
async def test_without_a_database_or_the_file_store_only_the_jobs_that_need_it_wait() -> None:
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-")))
        mongo = mongo_server(home)
        process = stack.enter_context(started(mongo))
        await eventually(mongo.ready, LONG)
        service = await stack.enter_async_context(
            serving(TANDEM_MONGO__MAIN=f"{mongo.url}?serverSelectionTimeoutMS=500")
        )
        stage = service.stage
        sql = {"connection": "effects", "statements": [{"sql": "CREATE TABLE once (key text)"}]}
        await service.succeeds(await service.accepted("sql.execute", sql))
        insert = {"connection": "effects", "statements": [{"sql": "INSERT INTO once VALUES ('x')"}]}
        document = {"connection": "main", "collection": "c", "documents": [{"a": 1}]}
        await service.succeeds(await service.accepted("mongo.insert", document))

        # PostgreSQL, which is the ledger's too.
        await stage.postgres.end(signal.SIGQUIT)
        waiting = await service.accepted("sql.execute", insert)
        await service.retries(waiting, "sql_connection")
        await others_go_on(service, "sql")
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
        await eventually(lambda: _listed(service, waiting), LONG)

        # MongoDB.
        process.kill()
        process.wait()
        waiting = await service.accepted("mongo.insert", document)
        await service.retries(waiting, "mongo_connection")
        await others_go_on(service, "mongo")
        assert mongo.pid_file is not None
        mongo.pid_file.unlink(missing_ok=True)
        stack.enter_context(started(mongo))
        await service.succeeds(waiting)
        found = await service.accepted("mongo.find", {"connection": "main", "collection": "c"})
        assert (await service.succeeds(found))["result"] == {"count": 2}

        # The file store: something else is in its place.
        store, aside = service.directory / "store", service.directory / "aside"
        store.rename(aside)
        store.touch()
        waiting = await service.accepted("outage.writes")
        await eventually(lambda: _tried(service, waiting), LONG)
        await others_go_on(service, "files")
        store.unlink()
        aside.rename(store)
        job = await service.succeeds(waiting)
        assert (await service.client.get(job["files"][0]["url"])).content == b"words"


async def _listed(service: Service, id: str) -> bool:
    answer = await service.client.get("/v1/jobs?limit=200")
    return answer.status_code == 200 and id in [one["id"] for one in answer.json()["items"]]


async def _tried(service: Service, id: str) -> bool:
    return len((await service.job(id))["attempts"]) > 1
