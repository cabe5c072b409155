"""Where the queue's Redis is: the master of Redis Sentinel, or the node of a Redis Cluster.

Each new connection looks it up, so a failover and a moved slot need no restart. A connection closes
with the first answer which shows that another server is in charge. tandem_shared/redis_url.py has
the form of the URLs.
"""

from typing import Any

import redis
import redis.asyncio.connection
import redis.sentinel
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection
from redis.crc import key_slot
from redis.exceptions import ConnectionError, ReadOnlyError, ResponseError  # noqa: A004 - redis-py's

from tandem_shared.redis_url import (
    ClusterUrl,
    SentinelUrl,
    parse_cluster_url,
    parse_sentinel_url,
)

LOOKUP_TIMEOUT_SECONDS = 1.0  # then the next sentinel or node is asked
SLOT = key_slot(b"{a}")  # of all keys: a shard has one hash tag


def _sentinel_options(found: SentinelUrl) -> dict[str, Any]:
    timeout = LOOKUP_TIMEOUT_SECONDS
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


class SlotLookup:
    """Asks the nodes of a cluster for the one with the queue's slot, in the same form."""

    is_master = True
    check_connection = False

    def __init__(self, found: ClusterUrl) -> None:
        self._nodes, self._options = found.nodes, _node_options(found)

    async def get_master_address(self) -> tuple[str, int]:
        """Host and port. Raises the last node's error, or ConnectionError."""
        error: Exception | None = None
        for host, port in self._nodes:
            node: Any = redis.asyncio.connection.Connection(host=host, port=port, **self._options)
            try:
                await node.connect()
                await node.send_command("CLUSTER", "SLOTS")
                return owner(await node.read_response(), host)
            except (redis.RedisError, OSError, TimeoutError) as failed:
                error = failed
            finally:
                await node.disconnect(nowait=True)
        raise error or ConnectionError("the cluster has no nodes")


class BlockingSlotLookup:
    """The same for a thread."""

    is_master = True
    check_connection = False

    def __init__(self, found: ClusterUrl) -> None:
        self._nodes, self._options = found.nodes, _node_options(found)

    def get_master_address(self) -> tuple[str, int]:
        """As `SlotLookup.get_master_address`."""
        error: Exception | None = None
        for host, port in self._nodes:
            node: Any = redis.Connection(host=host, port=port, **self._options)  # type: ignore[no-untyped-call] # untyped in redis-py
            try:
                node.connect()
                node.send_command("CLUSTER", "SLOTS")
                return owner(node.read_response(), host)
            except (redis.RedisError, OSError) as failed:
                error = failed
            finally:
                node.disconnect()
        raise error or ConnectionError("the cluster has no nodes")


def _node_options(found: ClusterUrl) -> dict[str, Any]:
    timeout = LOOKUP_TIMEOUT_SECONDS
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, **found.credentials}


def owner(slots: Any, asked: str) -> tuple[str, int]:
    """Host and port of the slot's node in an answer to CLUSTER SLOTS. Raises ConnectionError."""
    for first, last, (host, port, *_), *_ in slots:
        if first <= SLOT <= last:
            return (host or b"").decode() or asked, port  # a node may not know its own address
    raise ConnectionError("no node of the cluster has the queue's slot")


class MasterConnection(SentinelManagedConnection):
    """Closes when its server turns out not to be in charge, so the next one looks it up again."""

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """The reply."""
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            if _is_elsewhere(error):
                await self.disconnect(nowait=True)
            raise


class BlockingMasterConnection(redis.sentinel.SentinelManagedConnection):
    """The same for a thread."""

    def read_response(self, *args: Any, **options: Any) -> Any:
        """The reply."""
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            if _is_elsewhere(error):
                self.disconnect()  # type: ignore[no-untyped-call] # untyped in redis-py
            raise


def _is_elsewhere(error: ResponseError) -> bool:
    codes = ("READONLY", "NOREPLICAS", "MASTERDOWN", "MOVED", "ASK ", "CLUSTERDOWN")
    return isinstance(error, ReadOnlyError) or any(code in str(error) for code in codes)


def connection_options(url: str) -> dict[str, Any] | None:
    """Keyword arguments of a pool whose connections look their server up; None for other URLs."""
    if (sentinel := parse_sentinel_url(url)) is not None:
        return {
            "db": sentinel.db,
            "connection_pool": MasterLookup(sentinel),
            "connection_class": MasterConnection,
            **sentinel.credentials,
        }
    if (cluster := parse_cluster_url(url)) is not None:
        return {
            "connection_pool": SlotLookup(cluster),
            "connection_class": MasterConnection,
            **cluster.credentials,
        }
    return None


def blocking_client(url: str, **options: Any) -> "redis.Redis":
    """A client for a thread, for each kind of URL; `options` are redis-py's."""
    if (cluster := parse_cluster_url(url)) is not None:
        pool = redis.ConnectionPool(
            connection_class=BlockingMasterConnection,
            **{"connection_pool": BlockingSlotLookup(cluster), **cluster.credentials, **options},
        )
        return redis.Redis(connection_pool=pool)
    found = parse_sentinel_url(url)
    if found is None:
        return redis.Redis.from_url(url, **options)
    asked = _sentinel_options(found)
    sentinel = redis.sentinel.Sentinel(found.sentinels, sentinel_kwargs=asked)  # type: ignore[no-untyped-call] # untyped in redis-py
    options = {"db": found.db, **found.credentials, **options}
    client: redis.Redis = sentinel.master_for(found.master, **options)  # type: ignore[no-untyped-call] # untyped in redis-py
    return client
