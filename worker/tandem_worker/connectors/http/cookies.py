"""Cookies of one call (RFC 6265): kept along its redirects, sent to the host that set them only."""

from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import aiohttp
from multidict import CIMultiDict
from yarl import URL


class _Cookie(NamedTuple):
    host: str
    path: str
    name: str
    value: str
    secure: bool

    def goes_to(self, url: URL) -> bool:
        path = url.raw_path
        below = path.startswith(self.path if self.path.endswith("/") else f"{self.path}/")
        return (
            self.host == url.raw_host
            and (below or path == self.path)
            and (not self.secure or url.scheme == "https")
        )


class ChainCookies:
    """The cookies of one chain of redirects."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str], _Cookie] = {}

    def store(self, response: aiohttp.ClientResponse) -> None:
        """Keep the cookies that the response sets, and drop those that it deletes."""
        for header in response.headers.getall("Set-Cookie", ()):
            pair, *rest = header.split(";")
            name, equals, value = (part.strip(" \t") for part in pair.partition("="))
            given = {
                key.strip().lower(): text.strip()
                for key, _, text in (a.partition("=") for a in rest)
            }
            if equals and name and _belongs(name, given, response.url):
                path = given.get("path", "")
                if not path.startswith("/"):
                    path = response.url.raw_path.rpartition("/")[0] or "/"
                cookie = _Cookie(response.url.raw_host or "", path, name, value, "secure" in given)
                self._kept.pop(cookie[:3], None)
                if not _is_over(given):
                    self._kept[cookie[:3]] = cookie

    def add_to(self, headers: CIMultiDict[str], url: URL) -> CIMultiDict[str]:
        """The headers for the URL; a cookie that was set replaces a given one of its name."""
        stored = [cookie for cookie in self._kept.values() if cookie.goes_to(url)]
        if not stored:
            return headers
        names = {cookie.name for cookie in stored}
        given = (part.strip() for part in headers.get("Cookie", "").split(";"))
        kept = [pair for pair in given if pair and pair.partition("=")[0] not in names]
        stored.sort(key=lambda cookie: -len(cookie.path))
        headers = CIMultiDict(headers)
        headers["Cookie"] = "; ".join([*kept, *(f"{one.name}={one.value}" for one in stored)])
        return headers


def _belongs(name: str, given: dict[str, str], url: URL) -> bool:
    """Whether the URL's host may set the cookie; its name may promise more (6265bis, 4.1.3)."""
    domain = given.get("domain", "").removeprefix(".").lower()
    if domain and not f".{url.raw_host}".endswith(f".{domain}"):
        return False
    promise = name.lower().partition("-")[0]
    secure = "secure" in given and url.scheme == "https"
    alone = not domain and given.get("path") == "/"
    return promise not in ("__secure", "__host") or (secure and (alone or promise == "__secure"))


def _is_over(given: dict[str, str]) -> bool:
    with suppress(ValueError):
        return int(given.get("max-age", "")) <= 0
    with suppress(ValueError, TypeError, IndexError, OverflowError):
        expires = parsedate_to_datetime(given.get("expires", ""))
        return expires.replace(tzinfo=expires.tzinfo or UTC) <= datetime.now(UTC)
    return False
