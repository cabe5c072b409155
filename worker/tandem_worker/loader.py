"""Loads the tasks: the built-in ones and the user's modules."""

import importlib
from collections.abc import Iterable

from tandem_shared.errors import Misconfigured
from tandem_worker.signature import describe
from tandem_worker.task import Task

_BUILT_IN_NAMES = (
    *("email", "file.archive", "file.convert", "file.hash", "file.split"),
    *("http.download", "http.gather", "http.request", "http.webhook"),
    *("mongo.export", "mongo.find", "mongo.imports", "mongo.write"),
    *("sql.execute", "sql.export", "sql.imports", "sql.query"),
)
BUILT_IN = tuple(f"tandem_worker.tasks.{name}" for name in _BUILT_IN_NAMES)


def load_tasks(modules: Iterable[str]) -> dict[str, Task]:
    """The built-in tasks and those of the given modules, by name.

    A module's tasks are those defined in it or, if it is a package, in a module of its own that it
    imports. Raises Misconfigured for a module that cannot be imported or has no task, and for a
    name that two tasks claim.
    """
    found: dict[str, Task] = {}
    for name in (*BUILT_IN, *modules):
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:
            if name in BUILT_IN:
                raise
            reason = str(error).partition("\n")[0]
            raise Misconfigured(
                f"TANDEM_TASKS: {name}: {type(error).__name__}: {reason}"
            ) from error
        tasks = (getattr(value, "__tandem_task__", None) for value in vars(module).values())
        own = [
            one
            for one in tasks
            if isinstance(one, Task) and f"{one.module}.".startswith(f"{name}.")
        ]
        if not own:
            raise Misconfigured(
                f"TANDEM_TASKS: {name}: it defines no task; a task is a function under @task(…)"
            )
        for one in own:
            other = found.setdefault(one.name, one)
            if other is not one:
                raise Misconfigured(
                    f"TANDEM_TASKS: {name}: the task {one.name!r} of {describe(one.function)}"
                    f" is also {describe(other.function)}"
                )
    return found
