"""Redis URLs, `redis+sentinel://` among them, parsed without loading a Redis client."""

from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEME = "redis+sentinel"


PORT = 26379


class Watched(NamedTuple):
    """What such a URL says."""

    sentinels: list[tuple[str, int]]
    master: str
    db: int
    credentials: dict[str, str]
    sentinel_options: dict[str, Any]


def watched(url: str) -> Watched | None:
    """The URL's parts; None if it is of another scheme. Raises ValueError, in words that hold no secret."""
    parts = urlsplit(url)
    if parts.scheme != SCHEME:
        return None
    user, _, hosts = parts.netloc.rpartition("@")
    name, colon, password = user.partition(":")
    master, _, db = parts.path.strip("/").partition("/")
    options = dict(parse_qsl(parts.query))
    if (
        not hosts
        or not master
        or (db and not db.isdecimal())
        or options.keys() - {"sentinel_password"}
    ):
        raise ValueError(f"give {SCHEME}://host:26379,host:26379/<master name>/<db>")
    credentials = {"username": unquote(name)} if name else {}
    if colon:
        credentials["password"] = unquote(password)
    asked = {"password": options["sentinel_password"]} if options else {}
    return Watched(
        [_address(host) for host in hosts.split(",")],
        unquote(master),
        int(db or 0),
        credentials,
        asked,
    )


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(PORT)
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("each sentinel is host:port, separated by commas")
    return host.strip("[]"), int(port)
