"""Who is asking: API keys `tk_<id>_<secret>`, kept as hashes; open when none is set (then only on loopback)."""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Request

from tandem_shared.settings import API_KEY

OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/openapi.json", "/docs"})
TENANT = "default"  # of the keys in TANDEM_KEYS, which have all scopes


class Keys:
    """The keys of the settings, by their ids."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes: dict[str, list[bytes]] = {}
        for key in keys:
            match = API_KEY.fullmatch(key)
            if match is None:
                raise ValueError("a key of the settings is none")
            self._hashes.setdefault(match[1], []).append(_hash(key))  # two of one id: a rotation

    @property
    def open(self) -> bool:
        """Whether everybody may ask."""
        return not self._hashes

    def tenant(self, authorization: str) -> str | None:
        """Whose request it is by its Authorization header, None if nobody's."""
        scheme, _, key = authorization.partition(" ")
        match = API_KEY.fullmatch(key.strip()) if scheme.lower() == "bearer" else None
        if match is None:
            return None
        given = _hash(match[0])
        # Every candidate is compared: how long it takes says nothing of which one fits.
        found = [
            hmac.compare_digest(given, known) for known in self._hashes.get(match[1], [bytes(32)])
        ]
        return TENANT if any(found) else None


def _hash(key: str) -> bytes:
    # Keys are random: a fast hash is the right one.
    return hashlib.sha256(key.encode()).digest()


def tenant_of(request: Request) -> str:
    """The tenant that `edge.py` found."""
    tenant: str = request.scope["state"]["tenant"]
    return tenant


Tenant = Annotated[str, Depends(tenant_of)]
