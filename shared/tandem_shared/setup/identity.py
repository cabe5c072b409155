"""What must be the same in all processes of one installation, in a form that may be published."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tandem_shared.settings import Settings

# Setting → what goes wrong where processes differ.
EFFECTS = {
    "TANDEM_LEASE": "leases end too early or too late",
    "TANDEM_KEEP": "files may be removed before their jobs",
    "TANDEM_STORE_URL": "files and output of one process are missing in the other",
    "TANDEM_DATABASE_URL": "lists and expired jobs are incomplete",
}


def identity(settings: Settings) -> dict[str, str]:
    """Setting → its value, or a hash where the value is a URL."""
    return {
        "TANDEM_LEASE": f"{settings.lease:g}",
        "TANDEM_KEEP": f"{settings.keep:g}",
        "TANDEM_STORE_URL": _hash(_place(settings.store_url), _endpoint(settings.store_url)),
        "TANDEM_DATABASE_URL": _hash(_place(settings.database_url)),
    }


def encode(values: Mapping[str, str]) -> str:
    """The identity as a worker publishes it."""
    return msgspec.json.encode(values).decode()


def decode(text: str) -> dict[str, str]:
    """What `encode` made; empty for anything else, such as what an older worker left out."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, str])
    except msgspec.MsgspecError:
        return {}


def _place(url: str) -> str:
    """The URL without credentials and options; an absolute path for files of this machine."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return f"sqlite:{Path(url.partition('://')[2].partition('?')[0]).absolute()}"
    host = parts.netloc.rpartition("@")[2].lower()
    if parts.scheme in ("postgres", "postgresql", "asyncpg"):
        return f"postgres:{host.removesuffix(':5432')}{parts.path}"
    return f"{parts.scheme}:{host}{parts.path.rstrip('/')}"


def _endpoint(url: str) -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    found = (os.environ.get(name) for name in names)
    return next(filter(None, found), "") if url.startswith("s3:") else ""


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
