"""Redis Sentinel: each new connection asks where the master is, so a failover needs no restart.

tandem_shared/redis_url.py has the form of the URL. A connection to a demoted master closes with its
first rejected write.
"""

from typing import Any

import redis
import redis.sentinel
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection
from redis.exceptions import ReadOnlyError, ResponseError

from tandem_shared.redis_url import SentinelUrl, parse_sentinel_url

SENTINEL_TIMEOUT_SECONDS = 1.0  # then the next sentinel is asked


def _sentinel_options(found: SentinelUrl) -> dict[str, Any]:
    timeout = SENTINEL_TIMEOUT_SECONDS
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, **found.sentinel_options}


class MasterLookup:
    """Asks the sentinels for the master, in the form that redis-py's connections expect."""

    is_master = True
    check_connection = False

    def __init__(self, found: SentinelUrl) -> None:
        options = _sentinel_options(found)
        self._sentinel = Sentinel(found.sentinels, sentinel_kwargs=options)  # type: ignore[no-untyped-call] # untyped in redis-py
        self._name = found.master

    async def get_master_address(self) -> tuple[str, int]:
        """Host and port. Raises redis-py's MasterNotFoundError, a ConnectionError."""
        host, port = await self._sentinel.discover_master(self._name)
        return host, port


class MasterConnection(SentinelManagedConnection):
    """Closes when its server is not a master or lacks replicas, so the next one asks again."""

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """The reply."""
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            codes = ("READONLY", "NOREPLICAS", "MASTERDOWN")
            if isinstance(error, ReadOnlyError) or any(code in str(error) for code in codes):
                await self.disconnect(nowait=True)
            raise


def connection_options(found: SentinelUrl) -> dict[str, Any]:
    """Keyword arguments of a connection pool whose connections look the master up."""
    return {
        "db": found.db,
        "connection_pool": MasterLookup(found),
        "connection_class": MasterConnection,
        **found.credentials,
    }


def blocking_client(url: str, **options: Any) -> "redis.Redis":
    """A client for a thread, for either kind of URL; `options` are redis-py's."""
    found = parse_sentinel_url(url)
    if found is None:
        return redis.Redis.from_url(url, **options)
    asked = _sentinel_options(found)
    sentinel = redis.sentinel.Sentinel(found.sentinels, sentinel_kwargs=asked)  # type: ignore[no-untyped-call] # untyped in redis-py
    options = {"db": found.db, **found.credentials, **options}
    client: redis.Redis = sentinel.master_for(found.master, **options)  # type: ignore[no-untyped-call] # untyped in redis-py
    return client
