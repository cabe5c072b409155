"""Tortoise models for tasks of one's own: a connection's URL names their module, `models=shop`.

All such modules share one context of Tortoise, opened when first used; inside of `async with
job.models():` their models work on the connections that name them, read-only unless the URL says
`mode=rw`.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tortoise.context import TortoiseContext, _current_context
from tortoise.models import Model

from tandem_shared.errors import Misconfigured
from tandem_worker.errors import TaskError


class Models:
    """The models of one worker. `connections` has each one's `engine` and `credentials`, `modules` its module."""

    def __init__(
        self, connections: Mapping[str, Mapping[str, Any]], modules: Mapping[str, str]
    ) -> None:
        self._config = {
            "connections": {name: dict(connections[name]) for name in modules},
            "apps": {
                name: {"models": [module], "default_connection": name}
                for name, module in modules.items()
            },
        }
        self._context: TortoiseContext | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        """Inside of the block, and in the tasks it starts, the models are at work."""
        if not self._config["apps"]:
            raise TaskError(
                "unknown_connection",
                "no SQL connection of this worker names models",
                retryable=False,
            )
        async with self._opening:
            if self._context is None:
                context = TortoiseContext()
                with context:  # the models look for it while they are prepared
                    await context.init(config=self._config)
                self._context = context
        # The context's own `with` is for one user at a time, and here are many jobs.
        token = _current_context.set(self._context)
        try:
            yield
        finally:
            _current_context.reset(token)

    async def close(self) -> None:
        if self._context is not None:
            await self._context.close_connections()
            self._context = None


def check_modules(modules: Mapping[str, str]) -> None:
    """Raises Misconfigured for a module that cannot be imported, has no model, or is named by two connections."""
    owners: dict[str, str] = {}
    for name, module in modules.items():
        setting = f"TANDEM_SQL__{name.upper()}: models={module}"
        try:
            found = vars(importlib.import_module(module)).values()
        except (Exception, SystemExit) as error:
            raise Misconfigured(
                f"{setting}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            ) from error
        if not any(
            isinstance(one, type) and issubclass(one, Model) and one is not Model for one in found
        ):
            raise Misconfigured(f"{setting}: it defines no Tortoise model")
        if owners.setdefault(module, name) != name:
            raise Misconfigured(
                f"{setting}: the models are those of the connection {owners[module]!r} already"
            )
