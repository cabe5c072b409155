"""The catalogue over HTTP."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Path
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from tandem_api.http.caching import no_cache
from tandem_api.openapi.describe import COMMON, json_router, problems
from tandem_api.redis_retry import retry_briefly
from tandem_api.state import StateDep
from tandem_shared.catalogue import CatalogueEntry
from tandem_shared.errors import NotFound

router = json_router("operating", responses=COMMON, dependencies=[Depends(no_cache)])


class Task(BaseModel):
    """A task as its worker has published it."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    summary: str
    queue: str = Field(description="where its jobs wait unless they name another queue")
    payload_schema: dict[str, Any]
    result_schema: dict[str, Any]
    defaults: dict[str, Any]
    example: Any = Field(description="a payload that the schema accepts, or null")
    workers: NonNegativeInt = Field(description="live ones that run it; others take no jobs of it")


class TaskList(BaseModel):
    """The catalogue."""

    items: list[Task]


@router.get("/v1/tasks", response_model=TaskList)
async def list_tasks(state: StateDep) -> dict[str, list[dict[str, Any]]]:
    """List the tasks that workers publish, or have published within the last day."""
    catalogue = state["catalogue"]
    await catalogue.refresh()
    workers = (await retry_briefly(state["queue"].serving)).tasks
    return {"items": [_shown(entry, workers) for entry in catalogue.entries.values()]}


@router.get(
    "/v1/tasks/{task}",
    response_model=Task,
    responses=problems(404),
)
async def show_task(
    state: StateDep, task: Annotated[str, Path(description="The task's name")]
) -> dict[str, Any]:
    """Show a task's schemas, its defaults and an example of its payload."""
    await state["catalogue"].refresh()
    entry = state["catalogue"].entries.get(task)
    if entry is None:
        raise NotFound("task", task[:200])
    return _shown(entry, (await retry_briefly(state["queue"].serving)).tasks)


def _shown(entry: CatalogueEntry, workers: Mapping[str, int]) -> dict[str, Any]:
    return {**msgspec.structs.asdict(entry), "workers": workers.get(entry.name, 0)}
