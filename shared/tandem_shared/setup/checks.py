"""What is wrong with the servers and settings that this process was given, one sentence each."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from tandem_shared.errors import TandemError, Unavailable
from tandem_shared.files.store import FileStore
from tandem_shared.ledger.ledger import Ledger
from tandem_shared.queue.queue import Queue
from tandem_shared.queue.scripts import execute, translate_errors
from tandem_shared.settings import Settings
from tandem_shared.setup.identity import EFFECTS, decode, identity

STORE_SECONDS = 10.0  # for the file store's answer
CLOSE_SECONDS = 2.0  # for a connection that is being opened as the process ends
SILENT_SECONDS = 15.0  # since a worker's last heartbeat, at least
MAX_NAMED_WORKERS = 3


class Concern(NamedTuple):
    """A part of the installation, and what is wrong with it; no address and no password."""

    part: str  # redis, store, database or workers
    detail: str


class SetupChecks:
    """The checks; `worker` is the id of the process itself if it is a worker."""

    def __init__(
        self,
        settings: Settings,
        redis: Any,
        queue: Queue,
        store: FileStore,
        ledger: Ledger | None,
        *,
        worker: str = "",
    ) -> None:
        self._settings, self._redis, self._queue = settings, redis, queue
        self._store, self._ledger, self._worker = store, ledger, worker

    async def find(self) -> list[Concern]:
        """All that is wrong now; an unreachable Redis is left to those who use it."""
        return [*await self.of_redis(), *await self.of_stores()]

    async def of_redis(self) -> list[Concern]:
        """What Redis itself knows, at the cost of a few reads."""
        return [*await self._check_redis(), *await self._check_workers()]

    async def of_stores(self) -> list[Concern]:
        """What only a write to the file store and a query of the database show."""
        found = await asyncio.gather(self._check_store(), self._check_database())
        return [concern for concerns in found for concern in concerns]

    async def _check_redis(self) -> list[Concern]:
        facts: dict[str, Any] = {}
        try:
            for section in ("memory", "persistence"):
                with translate_errors():
                    facts |= await execute(self._redis, "INFO", section)
        except (Unavailable, ResponseError):  # away, or a user without the permission
            return []
        concerns = []
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            concerns.append(
                f"maxmemory-policy is {policy}: a full Redis forgets jobs; set it to noeviction"
            )
        if not int(facts.get("aof_enabled", 1)):
            concerns.append(
                "appendonly is no: a restart of Redis forgets jobs; set appendonly to yes"
            )
        return [Concern("redis", detail) for detail in concerns]

    async def _check_store(self) -> list[Concern]:
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await self._store.probe()
        except TimeoutError:
            detail = f"the file store did not answer within {STORE_SECONDS:g} s"
        except TandemError as error:
            detail = str(error)
        else:
            return []
        return [Concern("store", f"TANDEM_STORE_URL: {detail}")]

    async def _check_database(self) -> list[Concern]:
        if self._ledger is None:
            return []
        ping = asyncio.create_task(self._ledger.ping())
        try:
            await asyncio.shield(ping)
        except Unavailable as error:
            return [Concern("database", f"TANDEM_DATABASE_URL: {error}")]
        except asyncio.CancelledError:
            # SQLite's thread would outlive a connection that is cancelled half open.
            await asyncio.wait({ping}, timeout=CLOSE_SECONDS)
            ping.cancel()
            raise
        return []

    async def _check_workers(self) -> list[Concern]:
        try:
            workers = await self._queue.workers(with_jobs=False)
            now = await self._queue.clock.sync()
        except Unavailable:
            return []
        own = identity(self._settings)
        fresh = now - max(self._settings.lease, SILENT_SECONDS)
        differing: dict[str, list[str]] = {}
        for worker in workers:
            if worker.last_seen < fresh:
                continue  # probably dead, and its successor may have other settings
            for name, value in decode(worker.setup).items():
                if worker.id != self._worker and own.get(name, value) != value:
                    differing.setdefault(name, []).append(worker.id)
        return [
            Concern(
                "workers",
                f"{name} differs between this process and {_named(ids)}:"
                f" {EFFECTS.get(name, 'both must agree')}; set it to the same everywhere",
            )
            for name, ids in differing.items()
        ]


def _named(ids: Sequence[str]) -> str:
    shown = ", ".join(sorted(ids)[:MAX_NAMED_WORKERS])
    more = len(ids) - MAX_NAMED_WORKERS
    word = "worker" if len(ids) == 1 else "workers"
    return f"{word} {shown}" + (f" and {more} more" if more > 0 else "")
