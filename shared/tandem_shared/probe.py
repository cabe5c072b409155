"""`tandem probe`: asks the API or the worker in the same container whether it is well."""

import sys
from http.client import HTTPConnection, HTTPException
from typing import Literal

from tandem_shared.errors import Misconfigured
from tandem_shared.settings import Settings

TIMEOUT_SECONDS = 3.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - addresses to replace


def run(settings: Settings, process: Literal["api", "worker"], *, ready: bool) -> int:
    """0 if `/livez` (with `ready`: `/readyz`) answers 200, else 1 and the reason on stderr."""
    host, port = settings.host, settings.port
    if process == "worker":
        host, port = settings.metrics_host, settings.metrics_port
        if not port:
            raise Misconfigured("TANDEM_METRICS_PORT: set it, since a worker is probed there")
    path = "/readyz" if ready else "/livez"
    connection = HTTPConnection(_ANYWHERE.get(host, host), port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read(1000).decode(errors="replace").strip()
        problem = "" if response.status == 200 else f"{response.status} {text}"
    except (OSError, HTTPException) as error:
        problem = str(error) or type(error).__name__
    finally:
        connection.close()
    if problem:
        sys.stderr.write(f"the {process}'s {path}: {problem}\n")
    return 1 if problem else 0
