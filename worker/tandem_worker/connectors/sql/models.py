"""Tortoise models for your own tasks: a connection's URL names their module, `models=shop`.

All such modules share one Tortoise context, which is opened when first used. Inside `async with
job.models():` each model uses the connection that names its module, read-only unless the URL has
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
from tandem_worker.errors import Permanent


class Models:
    """The models of one worker: Tortoise's configuration and the module, by connection."""

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
        """Make the models usable inside the block and in the asyncio tasks it starts."""
        if not self._config["apps"]:
            message = "no SQL connection in the worker's settings names models (models=…)"
            raise Permanent("unknown_connection", message)
        async with self._opening:
            if self._context is None:
                context = TortoiseContext()
                with context:  # models look it up during init
                    await context.init(config=self._config)
                self._context = context
        # The context's own `with` supports one user at a time; many jobs share it here.
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
    """Raises Misconfigured for a module without models, or one that two connections name."""
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
            isinstance(value, type) and issubclass(value, Model) and value is not Model
            for value in found
        ):
            raise Misconfigured(f"{setting}: the module defines no Tortoise model")
        if owners.setdefault(module, name) != name:
            other = owners[module]
            raise Misconfigured(f"{setting}: the connection {other!r} already names this module")
