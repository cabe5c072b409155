"""Cookies of one call: kept along its redirects, sent to the host that set them only."""

import aiohttp
from multidict import CIMultiDict
from yarl import URL


class ChainCookies:
    """A jar for each host. Paths, expiry and `Secure` count as in RFC 6265; domains do not."""

    def __init__(self) -> None:
        self._jars: dict[str, aiohttp.CookieJar] = {}

    def store(self, response: aiohttp.ClientResponse) -> None:
        """Keep the cookies that the response sets."""
        headers = response.headers.getall("Set-Cookie", ())
        if headers:
            jar = self._jars.get(response.url.raw_host or "")
            if jar is None:
                jar = aiohttp.CookieJar(unsafe=True, quote_cookie=False)
                self._jars[response.url.raw_host or ""] = jar
            jar.update_cookies_from_headers(list(headers), response.url)

    def add_to(self, headers: CIMultiDict[str], url: URL) -> CIMultiDict[str]:
        """The headers for the URL; a cookie that was set replaces a given one of its name."""
        jar = self._jars.get(url.raw_host or "")
        stored = jar.filter_cookies(url) if jar is not None else {}
        if not stored:
            return headers
        given = (part.strip() for part in headers.get("Cookie", "").split(";"))
        kept = [pair for pair in given if pair and pair.partition("=")[0] not in stored]
        added = [f"{name}={cookie.coded_value}" for name, cookie in stored.items()]
        headers = CIMultiDict(headers)
        headers["Cookie"] = "; ".join([*kept, *added])
        return headers
