"""URLs of Redis, Redis Sentinel and Redis Cluster, parsed without loading a Redis client.

    redis+sentinel://[user:password@]host:26379,host:26379,…/<master>[/<db>][?sentinel_password=…]
    redis+cluster://[user:password@]host:6379,host:6379,…

User and password are those of Redis. Of a cluster, some nodes suffice.
"""

from collections.abc import Set as AbstractSet
from pathlib import Path
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


# Options of redis:// and rediss:// that redis-py understands, and that are safe to set here.
_OPTIONS = frozenset({"db", "client_name"})
_TLS_OPTIONS = frozenset(
    {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_keyfile_password",
     "ssl_cert_reqs", "ssl_check_hostname"}
)  # fmt: skip
_UNIX_OPTIONS = frozenset({"db", "username", "password", "client_name"})
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_CHOICES = {
    "ssl_cert_reqs": ("none", "optional", "required"),
    "ssl_check_hostname": ("true", "false"),
}


def check_redis_url(url: str) -> str:
    """The URL as it is. Raises ValueError, whose text shows no secret, if it cannot be used."""
    parts = urlsplit(url)
    if parse_sentinel_url(url) is not None or parse_cluster_url(url) is not None:
        return url
    is_unix = parts.scheme == "unix"
    if is_unix:
        if not parts.path.strip("/"):
            raise ValueError("use unix:///path/of/the/socket?db=0")
    else:
        _, hosts = _split(parts.netloc)
        if hosts:
            _address(hosts, CLUSTER_PORT)
        db = parts.path.strip("/")
        if db and not _is_decimal(db):
            raise ValueError(f"{db!r} is not the number of a database; use /0")
    known = _UNIX_OPTIONS if is_unix else _OPTIONS
    _check_options(parts.query, known | (_TLS_OPTIONS if parts.scheme == "rediss" else set()))
    return url


def _check_options(query: str, known: AbstractSet[str]) -> None:
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            hint = "; use rediss:// for TLS" if name in _TLS_OPTIONS else ""
            names = ", ".join(sorted(known))
            raise ValueError(f"the option {name!r} is not supported{hint or f'; use {names}'}")
        if name == "db" and not _is_decimal(value):
            raise ValueError("db must be the number of a database")
        if name in _CHOICES and value.lower() not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}")
        if name in _FILES and not Path(value).exists():
            raise ValueError(f"{name}: there is no file {value}")


def _is_decimal(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9


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
    if not hosts or not master or not known or (db and not _is_decimal(db)):
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
    if not host or not _is_decimal(port) or not 0 < int(port) < 65536:
        raise ValueError(
            "each server must be host:port with a port from 1 to 65535; separate several with"
            " commas"
        )
    return host.strip("[]"), int(port)
