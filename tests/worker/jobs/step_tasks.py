"""Tasks of each kind with steps: `notes` records what they do."""

from datetime import date
from pathlib import Path

from pydantic import BaseModel

from tandem_worker import task
from tandem_worker.errors import Permanent
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob


class Scene(BaseModel):
    notes: Path
    fails: int = 0  # attempts

    def note(self, word: str) -> None:
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(f"{word}\n")


async def hello(name: str, *, loud: bool = False) -> str:
    return f"Hello, {name.upper() if loud else name}"


async def later() -> int:
    return 1


def liar() -> int:
    return "no number"  # type: ignore[return-value] # the lie


def add(scene: Scene, left: int, right: int) -> int:
    scene.note("add")
    return left + right


def day(scene: Scene) -> date:
    scene.note("day")
    return date(2030, 1, 2)


def fail(scene: Scene) -> None:
    raise LookupError("a step that fails")


@task("steps.async")
async def asynchronous(job: Job, payload: Scene) -> list[object]:
    total = await job.step("add", add, payload, 1, right=2)
    when = await job.step("day", day, payload)
    if job.attempt <= payload.fails:
        await job.step("fail", fail, payload)
    try:
        await job.step("add", add, payload, 1, right=2)
    except Permanent as error:
        return [total, when.isoformat(), type(error).__name__]
    return []


def _plainly(job: SyncJob, payload: Scene) -> list[object]:
    total = job.step("add", add, payload, 1, right=2)
    if job.attempt <= payload.fails:
        job.step("fail", fail, payload)
    when = job.step("day", day, payload)
    try:
        job.step("add", add, payload, 1, right=2)
    except Permanent as error:
        return [total, when.isoformat(), type(error).__name__]
    return []


@task("steps.plain")
def plain(job: SyncJob, payload: Scene) -> list[object]:
    return _plainly(job, payload)


@task("steps.cpu", cpu=True)
def cpu(job: SyncJob, payload: Scene) -> list[object]:
    return _plainly(job, payload)
