"""Loads the built-in tasks and those of the user's modules."""

import importlib
from collections.abc import Iterable

from tandem_shared.errors import Misconfigured
from tandem_worker.signature import describe
from tandem_worker.task import Task, find_task
from tandem_worker.tasks import BUILT_IN


def load_tasks(modules: Iterable[str]) -> dict[str, Task]:
    """The built-in tasks and those of the given modules, by name.

    A module's tasks are those it defines; a package's also those it imports from its own modules.
    Raises Misconfigured for a module that cannot be imported or has no task, and for a name that
    two tasks claim.
    """
    found: dict[str, Task] = {}
    for name in (*BUILT_IN, *modules):
        tasks = _module_tasks(name)
        if not tasks:
            raise Misconfigured(
                f"TANDEM_TASKS: {name}: it defines no task; decorate a function with @task(…)"
            )
        for task in tasks:
            other = found.setdefault(task.name, task)
            if other is not task:
                raise Misconfigured(
                    f"TANDEM_TASKS: {name}: {describe(task.function)} and"
                    f" {describe(other.function)} are both named {task.name!r}; rename one"
                )
    return found


def _module_tasks(name: str) -> list[Task]:
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if name in BUILT_IN:
            raise
        reason = str(error).partition("\n")[0]
        raise Misconfigured(f"TANDEM_TASKS: {name}: {type(error).__name__}: {reason}") from error
    tasks = map(find_task, vars(module).values())
    return [task for task in tasks if task and f"{task.module}.".startswith(f"{name}.")]
