"""URLs of Redis Sentinel and Redis Cluster, parsed without loading a Redis client.

    redis+sentinel://[user:password@]host:26379,host:26379,…/<master>[/<db>][?sentinel_password=…]
    redis+cluster://[user:password@]host:6379,host:6379,…

User and password are those of Redis. Of a cluster, some nodes suffice.
"""

from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

SENTINEL_SCHEME = "redis+sentinel"
SENTINEL_PORT = 26379
CLUSTER_SCHEME = "redis+cluster"
CLUSTER_PORT = 6379


class SentinelUrl(NamedTuple):
    """The parts of such a URL."""

    sentinels: list[tuple[str, int]]
    master: str
    db: int
    credentials: dict[str, str]
    sentinel_options: dict[str, Any]


class ClusterUrl(NamedTuple):
    """The parts of such a URL."""

    nodes: list[tuple[str, int]]
    credentials: dict[str, str]


def parse_cluster_url(url: str) -> ClusterUrl | None:
    """The URL's parts; None for another scheme. Raises ValueError, whose text shows no secret."""
    parts = urlsplit(url)
    if parts.scheme != CLUSTER_SCHEME:
        return None
    credentials, hosts = _split(parts.netloc)
    if not hosts or parts.path.strip("/0") or parts.query:
        raise ValueError(f"use {CLUSTER_SCHEME}://host:6379,host:6379; a cluster has one database")
    return ClusterUrl([_address(host, CLUSTER_PORT) for host in hosts.split(",")], credentials)


def parse_sentinel_url(url: str) -> SentinelUrl | None:
    """The URL's parts; None for another scheme. Raises ValueError, whose text shows no secret."""
    parts = urlsplit(url)
    if parts.scheme != SENTINEL_SCHEME:
        return None
    credentials, hosts = _split(parts.netloc)
    master, _, db = parts.path.strip("/").partition("/")
    options = dict(parse_qsl(parts.query))
    known = options.keys() <= {"sentinel_password"}
    if not hosts or not master or not known or (db and not db.isdecimal()):
        raise ValueError(f"use {SENTINEL_SCHEME}://host:26379,host:26379/<master name>/<db>")
    return SentinelUrl(
        [_address(host, SENTINEL_PORT) for host in hosts.split(",")],
        unquote(master),
        int(db or 0),
        credentials,
        {"password": options["sentinel_password"]} if options else {},
    )


def _split(netloc: str) -> tuple[dict[str, str], str]:
    """Credentials and hosts."""
    user, _, hosts = netloc.rpartition("@")
    name, colon, password = user.partition(":")
    credentials = {"username": unquote(name)} if name else {}
    if colon:
        credentials["password"] = unquote(password)
    return credentials, hosts


def _address(text: str, default: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(default)
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("each server must be host:port; separate several with commas")
    return host.strip("[]"), int(port)
