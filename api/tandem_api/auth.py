"""API keys, `tk_<id>_<secret>`, kept as hashes. Without keys the API is open to its own machine."""

import hashlib
from collections.abc import Iterable

from tandem_api.openapi import pages

OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/openapi.json"}) | pages.OPEN_PATHS
DEFAULT_TENANT = "default"  # of the keys in TANDEM_KEYS, which have all scopes


class ApiKeys:
    """The keys of the settings, by their hashes."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = frozenset(map(_hash, keys))

    def tenant(self, path: str, authorization: str | None) -> str | None:
        """The tenant of a request by its Authorization header; None if it must be refused."""
        if not self._hashes or path in OPEN_PATHS or path.startswith("/problems/"):
            return DEFAULT_TENANT
        scheme, _, key = (authorization or "").partition(" ")
        # The time that a lookup takes depends on the hash, and so reveals nothing about the key.
        valid = scheme.lower() == "bearer" and _hash(key.strip()) in self._hashes
        return DEFAULT_TENANT if valid else None


def _hash(key: str) -> bytes:
    # Keys are random, so a fast hash is as safe as a slow one.
    return hashlib.sha256(key.encode()).digest()
