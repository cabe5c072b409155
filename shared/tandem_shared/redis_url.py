"""`redis+sentinel://` URLs, parsed without loading a Redis client.

    redis+sentinel://[user:password@]host:26379,host:26379,…/<master>[/<db>][?sentinel_password=…]

User and password are those of Redis.
"""

from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

SENTINEL_SCHEME = "redis+sentinel"
SENTINEL_PORT = 26379


class SentinelUrl(NamedTuple):
    """The parts of such a URL."""

    sentinels: list[tuple[str, int]]
    master: str
    db: int
    credentials: dict[str, str]
    sentinel_options: dict[str, Any]


def parse_sentinel_url(url: str) -> SentinelUrl | None:
    """The URL's parts; None for another scheme. Raises ValueError, whose text shows no secret."""
    parts = urlsplit(url)
    if parts.scheme != SENTINEL_SCHEME:
        return None
    user, _, hosts = parts.netloc.rpartition("@")
    name, colon, password = user.partition(":")
    master, _, db = parts.path.strip("/").partition("/")
    options = dict(parse_qsl(parts.query))
    known = options.keys() <= {"sentinel_password"}
    if not hosts or not master or not known or (db and not db.isdecimal()):
        raise ValueError(f"use {SENTINEL_SCHEME}://host:26379,host:26379/<master name>/<db>")
    credentials = {"username": unquote(name)} if name else {}
    if colon:
        credentials["password"] = unquote(password)
    return SentinelUrl(
        [_address(host) for host in hosts.split(",")],
        unquote(master),
        int(db or 0),
        credentials,
        {"password": options["sentinel_password"]} if options else {},
    )


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(SENTINEL_PORT)
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("each sentinel must be host:port; separate several with commas")
    return host.strip("[]"), int(port)
