"""API keys, `tk_<id>_<secret>`, kept as hashes. Without any the API is open, on loopback only."""

import hashlib
import hmac
from collections.abc import Sequence

from tandem_shared.settings import API_KEY

OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/openapi.json", "/docs"})
DEFAULT_TENANT = "default"  # of the keys in TANDEM_KEYS, which have all scopes


class ApiKeys:
    """The keys of the settings by their ids; one id may have two keys while it is rotated."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes: dict[str, list[bytes]] = {}
        for number, key in enumerate(keys, 1):
            match = API_KEY.fullmatch(key)
            if match is None:
                raise ValueError(f"API key {number} is not valid: use tk_<id>_<secret>")
            self._hashes.setdefault(match[1], []).append(_hash(key))

    def tenant(self, path: str, authorization: str | None) -> str | None:
        """The tenant of a request by its Authorization header; None if it must be refused."""
        if not self._hashes or path in OPEN_PATHS:
            return DEFAULT_TENANT
        scheme, _, key = (authorization or "").partition(" ")
        match = API_KEY.fullmatch(key.strip()) if scheme.lower() == "bearer" else None
        if match is None:
            return None
        given = _hash(match[0])
        # Compare every candidate, so that the duration does not reveal which one matched.
        matched = [
            hmac.compare_digest(given, known) for known in self._hashes.get(match[1], [bytes(32)])
        ]
        return DEFAULT_TENANT if any(matched) else None


def _hash(key: str) -> bytes:
    # Keys are random, so a fast hash is as safe as a slow one.
    return hashlib.sha256(key.encode()).digest()
