"""PostgreSQL connections: from what Tortoise parses out of a URL to what asyncpg expects."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def asyncpg_options(credentials: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """asyncpg's options: the credentials over the defaults. Raises ValueError for a bad sslmode.

    URLs use libpq's name `sslmode` for what asyncpg calls `ssl`. Tortoise leaves the user name
    percent-encoded.
    """
    options = {"application_name": "tandem-jobs", **defaults, **credentials}
    mode = options.pop("sslmode", None)
    if mode is not None:
        if mode not in SSL_MODES:
            raise ValueError(f"sslmode={mode!r} is not known; use one of {', '.join(SSL_MODES)}")
        options["ssl"] = mode
    if isinstance(options.get("user"), str):
        options["user"] = unquote(options["user"])
    return options
