"""Runs random jobs of every built-in task against the law: a success, or a documented error.

An error is documented if docs/errors.md lists its type; it must not be retryable if only the data
can be at fault. What another tool can judge about a success must agree (judges.py).
"""

import asyncio
import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import jsonschema_rs
import msgspec
from pydantic import ValidationError
from pymongo import MongoClient
from pymongo.errors import NetworkTimeout

from tandem_shared.jobs.ids import new_id
from tandem_worker.executors.execute import execute
from tandem_worker.failures import Fault, invalid_payload, to_fault
from tandem_worker.jobs.job import Job
from tandem_worker.loader import load_tasks
from tandem_worker.task import Task
from tandem_worker.testing import Recorder
from tests.error_types import documented
from tests.faithful import test_http_answers, test_http_codings
from tests.fuzz.judges import Success, difference
from tests.fuzz.material import Material, damaged
from tests.fuzz.payloads import MAKERS, TYPES
from tests.fuzz.values import as_json, changed
from tests.worker.bench import Bench, local_job, open_bench
from tests.worker.connectors.test_mail import Post
from tests.worker.connectors.test_mail import serving as serving_mail

JOB_SECONDS = 30.0
# Their servers are not at fault in a run, so only data can be the cause of an error.
NEVER_RETRIED = ("file.", "sql.", "mongo.")
ANSWERS = [
    answer
    for answer, _ in (*test_http_answers.ANSWERS.values(), *test_http_codings.ANSWERS.values())
]


@dataclass
class Report:
    """How often each task ended in which way, and what broke the law."""

    ends: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """The worker's resources, its servers, and the tasks."""

    bench: Bench
    post: Post
    web: "Web"
    mongo: str
    tasks: dict[str, Task]
    schemas: dict[str, Any]


class Web:
    """A server that answers each path with the bytes that were chosen for it."""

    def __init__(self) -> None:
        self.url = ""
        self._answers: list[bytes] = []

    def url_of(self, answer: bytes) -> str:
        self._answers.append(answer)
        return f"{self.url}/{len(self._answers) - 1}/"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            line = await reader.readuntil(b"\r\n\r\n")
            number = line.split(b" ")[1].split(b"/")[1]
            known = number.isdigit() and int(number) < len(self._answers)
            answer = self._answers[int(number)] if known else test_http_answers.ANSWERS["plain"][0]
            half = len(answer) // 2
            for piece in (answer[:half], answer[half:]):
                writer.write(piece)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def open_stage(directory: Path, postgres: str, mongo: str) -> AsyncIterator[Stage]:
    """The stage with tables in PostgreSQL and SQLite, and a server for HTTP and one for mail."""
    post, web = Post(), Web()
    lite = f"sqlite://{directory}/lite.db?mode=rw"
    with serving_mail(post) as port:
        settings = {
            "sql": {"pg": f"{postgres}?mode=rw", "lite": lite},
            "mongo": {"mongo": mongo},
            "smtp_url": f"smtp://127.0.0.1:{port}?tls=none",
        }
        async with (
            open_bench(directory, **settings) as bench,
            await asyncio.start_server(web.serve, "127.0.0.1", 0) as server,
        ):
            web.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            await _create_tables(postgres, directory / "lite.db")
            tasks = load_tasks([])
            schemas = {
                name: jsonschema_rs.validator_for(task.entry.payload_schema)
                for name, task in tasks.items()
            }
            yield Stage(bench, post, web, mongo, tasks, schemas)


async def _create_tables(postgres: str, lite: Path) -> None:
    things = (
        "CREATE TABLE things (a text, b numeric(10, 2));"
        "CREATE TABLE items (item text PRIMARY KEY, amount int, at timestamp);"
        'CREATE TABLE loose (item text, amount text, at text, note text, "ä b" text)'
    )
    columns = ", ".join(f"c{number} {type_}" for number, type_ in enumerate(TYPES))
    connection = await asyncpg.connect(postgres)
    try:
        await connection.execute(f"{things}; CREATE TABLE all_types ({columns})")
    finally:
        await connection.close()
    process = await asyncio.create_subprocess_exec("sqlite3", str(lite), things)
    assert await process.wait() == 0


async def fuzz(
    stage: Stage, seed: int, numbers: Iterable[int], seconds: float = math.inf
) -> Report:
    """Run the jobs of these numbers, as many as `seconds` allow, several at a time."""
    report, waiting, end = Report(), iter(numbers), time.monotonic() + seconds
    names = sorted(stage.tasks)

    async def lane() -> None:
        for number in waiting:
            if time.monotonic() > end:
                return
            await run_case(stage, names[number % len(names)], seed, number, report)

    await asyncio.gather(*(lane() for _ in range(4)))
    return report


async def run_case(stage: Stage, name: str, seed: int, number: int, report: Report) -> None:
    """Run one job; the same seed and number make the same job."""
    random = Random(f"{seed}:{number}")
    answer = random.choice(ANSWERS)
    url = stage.web.url_of(damaged(random, answer) if random.random() < 0.5 else answer)
    payload = MAKERS[name](random, url)
    if random.random() < 0.3:
        payload = changed(random, payload)
    sent = await _uploaded(stage.bench, payload)
    try:
        body = as_json(sent)
        stage.schemas[name].validate(msgspec.json.decode(body))
    except (jsonschema_rs.ValidationError, msgspec.DecodeError):
        report.ends[f"{name} refused by the API"] += 1
        return
    try:
        end, wrong = await _outcome(stage, stage.tasks[name], payload, body)
    except Exception as error:  # noqa: BLE001 - it is what the fuzz looks for
        end, wrong = "broken", f"{type(error).__name__} escaped: {error}"
    report.ends[f"{name} {end}"] += 1
    if wrong is not None:
        report.broken.append(f"{seed}:{number} {name} {end}: {wrong[:300]}\n    {body[:600]!r}")


async def _uploaded(bench: Bench, payload: Any) -> Any:
    """The payload with references in place of its files."""
    if isinstance(payload, Material):
        return {"file": await bench.upload(payload.name, payload.data, "application/octet-stream")}
    if isinstance(payload, dict):
        return {key: await _uploaded(bench, one) for key, one in payload.items()}
    if isinstance(payload, list):
        return [await _uploaded(bench, one) for one in payload]
    return payload


async def _outcome(stage: Stage, task: Task, payload: Any, body: bytes) -> tuple[str, str | None]:
    """How the job ended, and what is wrong with that."""
    bench, id = stage.bench, new_id()
    facts = {"id": id, "task": task.name, "deadline": time.monotonic() + JOB_SECONDS}
    job = local_job(bench.resources, Recorder(), bench.pools, **facts)
    try:
        async with asyncio.timeout(JOB_SECONDS):
            result = await execute(task, job, task.decode(body), bench.pools)
            encoded = msgspec.json.decode(task.encode(result))
    except ValidationError as error:
        return _law(task.name, invalid_payload(error))
    except TimeoutError:
        if task.name.startswith("mongo.") and not await asyncio.to_thread(_answers, stage.mongo):
            return "without an answer of the server", None
        return "timeout", f"no end after {JOB_SECONDS:g} s"
    except Exception as error:  # noqa: BLE001 - as the worker does
        return _law(task.name, to_fault(error))
    mails = [mail.original_content or b"" for mail in stage.post.got]
    mine = [mail for mail in mails if id.encode() in mail]
    success = Success(payload, encoded, await _files(job), mine)
    return "succeeded", await difference(task.name, success)


def _answers(mongo: str) -> bool:
    """Whether a plain driver gets the documents: nx-27017 is silent about some that it stored."""
    with MongoClient[dict[str, Any]](mongo, socketTimeoutMS=5000) as client:
        try:
            for name in ("things", "items"):
                list(client.get_default_database()[name].find_raw_batches({}))
        except NetworkTimeout:
            return False
    return True


async def _files(job: Job) -> dict[str, bytes]:
    ids = [f"{job.id}/{file.name}" for file in job.written]
    return {id: await job.files.read({"file": id}) for id in ids}


TYPES_OF_ERRORS = documented()


def _law(task: str, fault: Fault) -> tuple[str, str | None]:
    retried = TYPES_OF_ERRORS.get(fault.type)
    wrong = None
    if retried is None:
        wrong = "docs/errors.md does not list it"
    elif fault.retryable and (retried == "never" or task.startswith(NEVER_RETRIED)):
        wrong = "it is retried"
    message = json.dumps(fault.message, ensure_ascii=False)
    return fault.type, None if wrong is None else f"{wrong}: {message}"
