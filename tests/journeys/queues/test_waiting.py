"""Why a job does not run, as curl gets it from an API, with real workers."""

import asyncio
import json
from collections.abc import AsyncIterator
from signal import SIGTERM
from typing import Any

import pytest

from tandem_shared.jobs.states import State
from tests.api.serving import serving
from tests.conftest import eventually
from tests.journeys.stage import LEASE_SECONDS, WorkerStage, exit_code, until_registered
from tests.journeys.tasks import crash_tasks, limited_tasks, newer_tasks, older_tasks
from tests.worker.workers import Client

KEY = "tk_first_0123456789abcdef"
BOTH = f"{limited_tasks.__name__},{crash_tasks.__name__}"
CURL = ("curl", "-sSN", "-m", "20", "--oauth2-bearer")
RETRY = {"max_attempts": 20, "base": 0.01}

Json = dict[str, Any]


class Service:
    """The API, as curl uses it."""

    def __init__(self, stage: WorkerStage, url: str) -> None:
        self.stage, self.url = stage, url

    async def curl(self, path: str, body: Any = None, *more: str, method: str = "") -> Any:
        """What curl gets: JSON, or its output with the options `more`."""
        command = [*CURL, KEY, *more]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        command += ["-X", method] if method else []
        process = await asyncio.create_subprocess_exec(
            *command, self.url + path, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        return out.decode() if more else json.loads(out)

    async def submit(self, task: str, payload: Any = None, **options: Any) -> str:
        body = {"task": task, "payload": self.stage.scene if payload is None else payload}
        job = await self.curl("/v1/jobs", {**body, "options": options})
        assert "id" in job, job
        id: str = job["id"]
        return id

    async def job(self, id: str) -> Json:
        job: Json = await self.curl(f"/v1/jobs/{id}")
        return job

    async def reason(self, id: str, reason: str) -> Json:
        """The job once it waits for this reason, which is then the same in a list and a stream."""

        async def waits() -> bool:
            return ((await self.job(id))["waiting_for"] or {}).get("reason") == reason

        await eventually(waits, 30)
        job = await self.job(id)

        async def is_listed() -> bool:
            listed = await self.curl(f"/v1/jobs?state={job['state']}&task={job['task']}")
            return await self.job(id) in listed.get("items", ())

        await eventually(is_listed, 30)
        assert await self.last_state(id) == job
        return job

    async def last_state(self, id: str) -> Any:
        """The job in the last of the `state` entries that a stream begins with."""
        url = f"{self.url}/v1/jobs/{id}/stream?types=state"
        accept = ["-H", "Accept: application/x-ndjson"]
        process = await asyncio.create_subprocess_exec(
            *CURL, KEY, *accept, url, stdout=asyncio.subprocess.PIPE
        )
        stamp = await self.curl(f"/v1/jobs/{id}", None, "-w", "%header{etag}", "-o", "/dev/null")
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while True:
                entry = json.loads(await process.stdout.readline())
                if entry["id"].startswith(stamp.strip('"')):
                    process.kill()
                    await process.communicate()
                    return entry["data"]

    async def runs(self, *ids: str) -> None:
        """Waits until these jobs run, and checks that they wait for nothing."""

        async def are_running() -> bool:
            return {(await self.job(id))["state"] for id in ids} == {"running"}

        await eventually(are_running, 30)
        assert [(await self.job(id))["waiting_for"] for id in ids] == [None] * len(ids)


@pytest.fixture
async def service(stage: WorkerStage, client: Client) -> AsyncIterator[Service]:
    async with serving(
        stage.server.url,
        stage.directory / "store",
        database_url=f"sqlite://{stage.directory}/tandem.db",
        keys=(KEY,),
        lease=LEASE_SECONDS,
    ) as http:
        yield Service(stage, str(http.base_url).rstrip("/"))


async def start(
    service: Service,
    client: Client,
    count: int,
    *,
    tasks: str,
    queues: str = "default",
    concurrency: str = "100",
) -> None:
    """Starts a worker, and waits until `count` workers have registered."""
    service.stage.worker(tasks=tasks, queues=queues, concurrency=concurrency)
    await until_registered(client, count)


async def test_a_job_waits_for_its_time_a_worker_and_a_paused_queue(
    service: Service, client: Client
) -> None:
    await start(service, client, 1, tasks=BOTH)
    late = await service.submit("crash.quick", 1, delay="1h")
    job = await service.reason(late, "time")
    assert job["state"] == "scheduled"
    assert job["waiting_for"] == {
        "reason": "time",
        "detail": f"the job is due at {job['scheduled_for']}",
        "since": job["submitted_at"],
    }
    alone = await service.submit("crash.quick", 2, queue="mail")
    job = await service.reason(alone, "no_worker")
    assert (job["state"], job["waiting_for"]["detail"], job["waiting_for"]["since"]) == (
        "waiting",
        'no live worker serves the queue "mail"',
        job["submitted_at"],
    )
    assert (await service.curl("/v1/queues/default/pause", method="POST"))["paused"] is True
    held = await service.submit("crash.quick", 3)
    job = await service.reason(held, "paused")
    assert (job["state"], job["waiting_for"]["detail"]) == (
        "waiting",
        'the queue "default" is paused',
    )
    queues = {one["name"]: one for one in (await service.curl("/v1/queues"))["items"]}
    shown = {
        name: [one[word] for word in ("waiting", "queued", "workers")]
        for name, one in queues.items()
    }
    assert shown == {"default": [1, 0, 1], "mail": [1, 0, 0]}
    await service.curl("/v1/queues/default/resume", method="POST")
    await start(service, client, 2, tasks=BOTH, queues="mail")
    for id, result in ((alone, 2), (held, 3)):
        job = await service.curl(f"/v1/jobs/{id}?wait=20s")
        assert (job["state"], job["result"], job["waiting_for"]) == ("succeeded", result, None)


async def test_a_pause_later_than_the_job_tells_since_when(
    service: Service, client: Client
) -> None:
    await start(service, client, 1, tasks=BOTH, queues="mail")
    id = await service.submit("crash.quick", 1)
    before = await service.reason(id, "no_worker")
    await service.curl("/v1/queues/default/pause", method="POST")
    paused = await service.reason(id, "paused")
    assert paused["waiting_for"]["since"] > before["waiting_for"]["since"] == job_time(before)
    await service.curl("/v1/queues/default/pause", method="POST")
    assert await service.job(id) == paused


def job_time(job: Json) -> str:
    time: str = job["submitted_at"]
    return time


async def test_a_job_waits_for_limits_and_a_slot(service: Service, client: Client) -> None:
    await start(service, client, 1, tasks=BOTH, concurrency="6")
    two = [await service.submit("limited.two") for _ in range(2)]
    await service.runs(*two)
    third = await service.submit("limited.two")
    job = await service.reason(third, "task_concurrency")
    assert job["state"] == "waiting"
    assert job["waiting_for"]["detail"] == '2 of 2 attempts of the task "limited.two" run'
    limit = {"concurrency_key": "customer-17", "concurrency_limit": 2}
    held = [await service.submit("crash.waits", **limit) for _ in range(2)]
    await service.runs(*held)
    job = await service.reason(await service.submit("crash.waits", **limit), "concurrency_key")
    assert job["waiting_for"]["detail"] == (
        '2 of 2 attempts with the concurrency key "customer-17" run'
    )
    hourly = [await service.submit("limited.hourly", number) for number in range(2)]
    job = await service.reason(hourly[1], "rate")
    assert job["waiting_for"]["detail"].startswith('the rate of the task "limited.hourly" allows')
    assert job["waiting_for"]["detail"][-24:] > job["waiting_for"]["since"]
    many = [await service.submit("crash.waits") for _ in range(20)]
    job = await service.reason(many[-1], "slot")
    assert (job["state"], job["waiting_for"]["detail"]) == (
        "queued",
        'the job waits for a free slot on a worker of the queue "default"',
    )


async def test_a_key_of_another_tenant_neither_holds_a_job_up_nor_is_named(
    service: Service, client: Client
) -> None:
    await start(service, client, 1, tasks=BOTH)
    given: Json = {"tenant": "someone", "concurrency_key": "same"}
    others = [await client.submit(crash_tasks.waits, service.stage.scene, **given) for _ in "ab"]

    async def has_parked() -> bool:
        record = await client.queue.get(others[1], tenant="someone")
        return record is not None and record.state is State.WAITING

    await eventually(has_parked, 30)
    ids = [await service.submit("crash.waits", concurrency_key="same") for _ in "ab"]
    await service.runs(ids[0])
    job = await service.reason(ids[1], "concurrency_key")
    assert job["waiting_for"]["detail"] == '1 of 1 attempts with the concurrency key "same" run'
    listed = await service.curl("/v1/jobs?state=waiting")
    assert [one["id"] for one in listed["items"]] == [ids[1]]
    assert "someone" not in json.dumps(listed)
    assert (await service.job(others[1]))["status"] == 404


async def test_a_job_waits_for_a_task_or_a_newer_version_of_it(
    service: Service, client: Client
) -> None:
    await start(service, client, 1, tasks=older_tasks.__name__)
    await start(service, client, 2, tasks=f"{newer_tasks.__name__},{BOTH}", queues="elsewhere")
    unknown = await service.submit("crash.quick", 1)
    job = await service.reason(unknown, "no_task")
    assert job["waiting_for"]["detail"] == (
        'no live worker of the queue "default" has the task "crash.quick"'
    )
    newer = await service.submit("deployed.answer", 1)
    job = await service.reason(newer, "version")
    assert job["waiting_for"]["detail"] == (
        'no live worker of the queue "default" has version 2 of the task "deployed.answer"'
    )


async def test_a_job_during_which_two_workers_were_lost_waits_for_another_such_job(
    service: Service, client: Client
) -> None:
    ids: list[str] = []
    for attempt in range(3):
        await start(service, client, attempt + 1, tasks=BOTH)
        if not ids:
            ids = [await service.submit("crash.waits", retry=RETRY) for _ in range(2)]
        expected = 2 * (attempt + 1) if attempt < 2 else 5
        await until_begun(service.stage, expected)
        if attempt < 2:
            service.stage.workers[attempt].kill()
    reasons = {id: (await service.job(id))["waiting_for"] for id in ids}
    (waiting,) = (id for id, one in reasons.items() if one)
    job = await service.reason(waiting, "suspect")
    assert job["waiting_for"]["detail"] == (
        "2 workers were lost while they ran the job: such jobs run one per worker"
    )
    assert [one["outcome"] for one in job["attempts"]] == ["worker_lost"] * 2
    service.stage.go()


async def until_begun(stage: WorkerStage, count: int) -> None:
    await eventually(lambda: len(stage.notes("begun")) == count, 30)


async def test_lists_counts_and_etags_agree_on_what_waits(service: Service, client: Client) -> None:
    await start(service, client, 1, tasks=BOTH, queues="default,mail")
    for queue in ("default", "mail"):
        await service.curl(f"/v1/queues/{queue}/pause", method="POST")
    ids = [
        await service.submit("crash.quick", number, queue=("default", "mail", "none")[number % 3])
        for number in range(9)
    ]

    async def by_state() -> dict[str, set[str]]:
        pages = {
            state: await service.curl(f"/v1/jobs?state={state}&limit=200")
            for state in ("waiting", "queued", "waiting,queued")
        }
        return {state: {one["id"] for one in page["items"]} for state, page in pages.items()}

    async def counted() -> int:
        return sum(one["waiting"] for one in (await service.curl("/v1/queues"))["items"])

    everything = set(ids)
    assert await by_state() == {
        "waiting": everything,
        "queued": set(),
        "waiting,queued": everything,
    }
    assert await counted() == 9
    for queue in ("default", "mail", "none"):
        page = await service.curl(f"/v1/jobs?state=waiting&queue={queue}")
        assert {one["queue"] for one in page["items"]} == {queue}
        assert len(page["items"]) == 3
    # The reason changes, and the ETag does not.
    tag = await etag(service, ids[2])
    assert (await service.job(ids[2]))["waiting_for"]["reason"] == "no_worker"
    await service.curl("/v1/queues/none/pause", method="POST")
    await service.reason(ids[2], "paused")
    assert await etag(service, ids[2]) == tag
    headers = ["-o", "/dev/null", "-w", "%{http_code}", "-H", f"If-None-Match: {tag}"]
    assert await service.curl(f"/v1/jobs/{ids[2]}", None, *headers) == "304"
    stopping = service.stage.workers[0]
    stopping.send_signal(SIGTERM)
    assert await exit_code(stopping) == 0
    await service.curl("/v1/queues/mail/resume", method="POST")
    assert (await service.reason(ids[1], "no_worker"))["state"] == "waiting"
    assert await counted() == 9


async def etag(service: Service, id: str) -> str:
    text: str = await service.curl(f"/v1/jobs/{id}", None, "-o", "/dev/null", "-w", "%header{etag}")
    return text
