"""Which web pages may use the API: a browser sends requests of any page, also to this machine.

Without keys nothing else separates a stranger's page from the user. With keys only WebSockets are
checked: no page can add an Authorization header to a request without the API's consent (CORS).
"""

import re
from collections.abc import Collection, Mapping
from functools import lru_cache

from starlette.types import Scope

from tandem_api.http.problems import Problem, status_problem
from tandem_shared.settings import Settings, is_loopback

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# What a form can send. Old browsers send it to other origins without an Origin header.
FORM_TYPES = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
# They look at the type themselves, and uploads take any.
TYPED = frozenset({"/v1/files", "/v1/jobs", "/v1/jobs/bulk", "/v1/jobs/replay"})
MAX_HOSTS = 1000  # that are remembered
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::[0-9]*)?", re.ASCII)


def is_own_origin(origin: str, headers: Mapping[str, str], allowed: Collection[str]) -> bool:
    """Whether a page of this origin is one of the API's own, or of an `allowed` origin."""
    origin = origin.lower()
    scheme, _, host = origin.partition("://")
    own = scheme in ("http", "https") and host == headers.get("host", "").lower()
    return own or origin in allowed


class PagePolicy:
    """Refuses what pages of other origins send to an API without keys.

    A page whose name was made to resolve to this machine (DNS rebinding) has the API's own origin;
    its name is in Host. So Host must be an address of this machine, or a name from the settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._origins = settings.origins
        names = {_name(one.partition("://")[2]) for one in settings.origins}
        names.add(_name(f"[{settings.host}]" if ":" in settings.host else settings.host))

        @lru_cache(MAX_HOSTS)
        def knows(host: str) -> bool:
            name = _name(host)
            return name in names or is_loopback(name)

        self._knows = knows

    def refusal(self, scope: Scope, headers: Mapping[str, str]) -> Problem | None:
        """Why the request is refused; None if it is not."""
        host = headers.get("host")
        if host is not None and not self._knows(host):
            return status_problem(
                403,
                "without TANDEM_KEYS the Host must be 127.0.0.1, localhost, [::1], TANDEM_HOST or"
                " the host of an origin in TANDEM_ORIGINS",
            )
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and not is_own_origin(origin, headers, self._origins):
            return status_problem(
                403, "pages of this origin may not use the API; name it in TANDEM_ORIGINS"
            )
        named = origin is not None and origin.lower() in self._origins
        if site is not None and site not in ("same-origin", "none") and not named:
            return status_problem(403, "pages of other sites may not use the API")
        if scope["path"] not in TYPED and _is_form(headers):
            return status_problem(415, "send JSON, with Content-Type: application/json")
        return None


def _name(host: str) -> str:
    """The name or address in a Host, without its port and without brackets."""
    match = _HOST.fullmatch(host.lower())
    return "" if match is None else match[1] or match[2]


def _is_form(headers: Mapping[str, str]) -> bool:
    """Whether there is a body of a type that a form can send."""
    content_type = headers.get("content-type")
    if content_type is None or headers.get("content-length") == "0":
        return False
    return content_type.partition(";")[0].strip().lower() in FORM_TYPES and (
        "content-length" in headers or "transfer-encoding" in headers
    )
