"""PostgreSQL connections: from what Tortoise parses out of a URL to what asyncpg expects.

URLs use libpq's words, so that one URL serves psql and Tandem. Those that asyncpg has no
counterpart for are refused by name.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SESSION_ATTRIBUTES = (
    "any", "read-write", "read-only", "primary", "standby", "prefer-standby",
)  # fmt: skip
_NUMBERS = frozenset(
    {"minsize", "maxsize", "port", "timeout", "connect_timeout", "command_timeout",
     "statement_cache_size", "max_inactive_connection_lifetime", "max_queries"}
)  # fmt: skip
_FILES = frozenset({"sslrootcert", "sslcert", "sslkey"})
_WORDS = (
    _NUMBERS
    | _FILES
    | {"sslmode", "target_session_attrs", "application_name", "schema", "host", "user", "password"}
)
# Our own words of TANDEM_SQL__<NAME>, see the worker's sql/connections.py.
_OWN_WORDS = frozenset({"mode", "raw", "models"})
_CHOICES = {"sslmode": SSL_MODES, "target_session_attrs": SESSION_ATTRIBUTES}


def check_postgres_url(url: str) -> str:
    """The URL as it is. Raises ValueError, whose text shows no secret, if it cannot be used."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise ValueError("the port must be a number up to 65535") from None
    if port == 0:
        raise ValueError("the port must be a number from 1 to 65535")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in _OWN_WORDS:
            continue
        if name not in _WORDS:
            known = ", ".join(sorted(_WORDS - {"password", "user", "host", "port"}))
            raise ValueError(f"the option {name!r} is not supported; use {known}")
        if name in _CHOICES and value not in _CHOICES[name]:
            allowed = ", ".join(_CHOICES[name])
            raise ValueError(f"{name}={value!r} is not known; use one of {allowed}")
        if name in _NUMBERS and not (value.isascii() and value.isdecimal() and len(value) < 10):
            raise ValueError(f"{name}={value!r} is not a whole number")
        if name in _FILES and not Path(value).is_file():
            raise ValueError(f"{name}: there is no file {value}")
    return url


def asyncpg_options(credentials: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """asyncpg's options: the credentials over the defaults. Raises ValueError for a bad sslmode.

    Tortoise leaves the user name percent-encoded.
    """
    options = {"application_name": "tandem-jobs", **defaults, **credentials}
    for name in _NUMBERS & options.keys():
        if isinstance(options[name], str):
            options[name] = int(options[name])
    if (seconds := options.pop("connect_timeout", None)) is not None:
        options["timeout"] = seconds
    mode = options.pop("sslmode", None)
    files = {name: options.pop(name) for name in _FILES & options.keys()}
    if mode is not None and mode not in SSL_MODES:
        raise ValueError(f"sslmode={mode!r} is not known; use one of {', '.join(SSL_MODES)}")
    if files and mode != "disable":
        options["ssl"] = _tls(mode or "prefer", files)
    elif mode is not None:
        options["ssl"] = mode
    if isinstance(options.get("user"), str):
        options["user"] = unquote(options["user"])
    return options


def _tls(mode: str, files: Mapping[str, str]) -> ssl.SSLContext:
    """A context as libpq would use it: a root certificate is verified from `require` on."""
    context = ssl.create_default_context(cafile=files.get("sslrootcert"))
    context.check_hostname = mode == "verify-full"
    is_verified = mode.startswith("verify") or (mode == "require" and "sslrootcert" in files)
    if not is_verified:
        context.verify_mode = ssl.CERT_NONE
    if "sslcert" in files:
        context.load_cert_chain(files["sslcert"], files.get("sslkey"))
    return context
