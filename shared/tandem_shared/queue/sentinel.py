"""The master behind Redis Sentinel: asked for anew at each connection, so that a failover needs no restart here.

    redis+sentinel://[user:password@]host:26379,host:26379,…/<master
    name>[/<db>][?sentinel_password=…]

User and password are Redis's own. A connection to a master that was demoted ends with its first
write (READONLY).
"""

from typing import Any

import redis
import redis.sentinel
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection
from redis.exceptions import ResponseError

from tandem_shared.redis_url import Watched, watched

ASK = 1.0  # seconds that a sentinel may take; the next one is asked then


class Master:
    """Where the master is; what redis-py's sentinel connections expect to find as their pool."""

    is_master = True
    check_connection = False

    def __init__(self, found: Watched) -> None:
        options = {"socket_timeout": ASK, "socket_connect_timeout": ASK, **found.sentinel_options}
        self._sentinel = Sentinel(found.sentinels, sentinel_kwargs=options)  # type: ignore[no-untyped-call] # untyped in redis-py
        self._name = found.master

    async def get_master_address(self) -> tuple[str, int]:
        """Host and port. Raises redis-py's MasterNotFoundError, a ConnectionError."""
        found = await self._sentinel.discover_master(self._name)
        host, port = found
        return host, port


class ToMaster(SentinelManagedConnection):
    """A connection that ends when its server says that it is no master, or none with a replica: the next one asks."""

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """The reply."""
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            if any(word in str(error) for word in ("READONLY", "NOREPLICAS", "MASTERDOWN")):
                await self.disconnect(nowait=True)
            raise


def connection_options(found: Watched) -> dict[str, Any]:
    """Keyword arguments of a connection pool whose connections look the master up."""
    options = {"db": found.db, "connection_pool": Master(found), **found.credentials}
    return {**options, "connection_class": ToMaster}


def blocking_client(url: str, **options: Any) -> "redis.Redis":
    """A client for a thread, of either kind of URL; `options` are redis-py's."""
    found = watched(url)
    if found is None:
        return redis.Redis.from_url(url, **options)
    asked = {"socket_timeout": ASK, "socket_connect_timeout": ASK, **found.sentinel_options}
    sentinel = redis.sentinel.Sentinel(found.sentinels, sentinel_kwargs=asked)  # type: ignore[no-untyped-call] # untyped
    given = {"db": found.db, **found.credentials, **options}
    client: redis.Redis = sentinel.master_for(found.master, **given)  # type: ignore[no-untyped-call] # likewise
    return client
