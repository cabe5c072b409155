"""What a worker's log and a job's stream hold of what its code logs, prints and gets wrong."""

import json
from typing import Any
from urllib.request import urlopen

import pytest

from tandem_shared.dev.servers import free_port
from tandem_worker.task import task_of
from tests.conftest import eventually
from tests.journeys.stage import WorkerStage, until_registered
from tests.journeys.tasks import crash_tasks, logged_tasks
from tests.worker.workers import Client

Json = dict[str, Any]


async def start(stage: WorkerStage, client: Client, log: str = "json") -> None:
    stage.worker(tasks=f"{logged_tasks.__name__},{crash_tasks.__name__}", log=log)
    await until_registered(client, 1)


def lines(stage: WorkerStage) -> list[Json]:
    """The worker's log; every line of it is JSON."""
    return [json.loads(line) for line in stage.log(stage.workers[0]).splitlines()]


async def until_logged(stage: WorkerStage, event: str) -> Json:
    found = await eventually(lambda: [one for one in lines(stage) if one["event"] == event], 20)
    line: Json = found[0]
    return line


@pytest.mark.parametrize(
    "task", [logged_tasks.on_the_loop, logged_tasks.in_a_thread, logged_tasks.in_a_process]
)
async def test_lines_of_task_code_carry_job_task_and_attempt(
    stage: WorkerStage, client: Client, task: Any
) -> None:
    await start(stage, client)
    id = await client.submit(task)
    await client.result(id)
    name = task_of(task).name
    kind = name.partition(".")[2]
    expected: dict[str, Json] = {
        "card 5 declined": {"level": "warning", "logger": "shop.billing", "carrier": kind},
        "ordered": {"level": "info", "logger": "shop.events", "order": 17},
        f"printed {kind}": {"level": "info", "logger": "print"},
        "no end of line": {"level": "info", "logger": "print"},
        "from the job": {"level": "warning", "name_": "taken", "page": 3},
    }
    for event, fields in expected.items():
        line = await until_logged(stage, event)
        about = {"job_id": id, "task": name, "attempt": 1}
        assert line | about | fields == line, event
    logged = [entry["message"] for entry in await client.items(id, "log")]
    for event in expected:
        assert logged.count(event) == 1, logged


async def test_a_console_line_names_job_and_logger(stage: WorkerStage, client: Client) -> None:
    await start(stage, client, log="console")
    id = await client.submit(logged_tasks.on_the_loop)
    await client.end(id)
    (line,) = [one for one in stage.log(stage.workers[0]).splitlines() if "card 5" in one]
    assert "[shop.billing]" in line
    assert "carrier=async" in line
    assert f"job_id={id}" in line


@pytest.mark.parametrize(
    ("task", "payload", "says"),
    [
        (logged_tasks.forgotten, None, "write `await`"),
        (logged_tasks.returned, None, "write `await`"),
        (logged_tasks.wrong_value, "nan", "NaN"),
        (logged_tasks.wrong_value, "bytes", "job.files.write"),
        (logged_tasks.wrong_value, "set", "job.files.write"),
        (logged_tasks.wrong_value, "key", "list of pairs"),
    ],
)
async def test_a_mistake_is_not_retried_and_says_what_to_do(
    stage: WorkerStage, client: Client, task: Any, payload: Any, says: str
) -> None:
    await start(stage, client)
    for _ in range(2):  # Python warns once per line of code, unless it is told otherwise
        error = await client.error(await client.submit(task, payload))
        about = (error["type"], error["retryable"], error["attempt"])
        assert about == ("exception:TypeError", False, 1)
        assert says in error["message"]


async def test_only_the_last_failure_is_an_error_with_the_frames_of_the_task(
    stage: WorkerStage, client: Client
) -> None:
    await start(stage, client)
    id = await client.submit(logged_tasks.fails)
    assert (await client.end(id)).attempt == 2
    again = await until_logged(stage, "attempt failed, another follows")
    last = await until_logged(stage, "job failed")
    for line, level, attempt in ((again, "warning", 1), (last, "error", 2)):
        shown = {name: line[name] for name in ("level", "job_id", "attempt")}
        assert shown == {"level": level, "job_id": id, "attempt": attempt}
        assert "inner()" in line["exception"]
        assert "tandem_worker/runtime" not in line["exception"]


async def test_a_job_that_no_attempt_could_end_is_logged_and_counted(
    stage: WorkerStage, client: Client
) -> None:
    port = free_port()
    late = await client.submit(crash_tasks.quick, 1, expires_in=0.001)
    quick = await client.submit(crash_tasks.quick, 1)
    stage.worker(log="json", metrics_port=str(port))
    await client.result(quick)
    line = await until_logged(stage, "job failed")
    about = ("level", "job_id", "type")
    assert [line[name] for name in about] == ["error", late, "expired"]

    def counted() -> set[str]:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
        return {one for one in text.splitlines() if one.startswith("tandem_jobs_total")}

    expected = {
        f'tandem_jobs_total{{outcome="{outcome}",task="crash.quick"}} 1.0'
        for outcome in ("expired", "succeeded")
    }
    await eventually(lambda: counted() == expected, 20)
