"""The Python client of Tandem's HTTP API: `from tandem_jobs import Client, AsyncClient`.

Names are loaded on first use, so that the `tandem` command starts without the HTTP library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tandem_jobs.client.client import AsyncClient, Client
    from tandem_jobs.client.errors import (
        FieldError,
        JobCancelled,
        JobFailed,
        JobUnsuccessful,
        Problem,
    )
    from tandem_jobs.client.models import Attempt, Entry, File, Job, Progress, Reason
    from tandem_shared.errors import Malformed, Misconfigured, TandemError, Unavailable

__all__ = [
    "AsyncClient",
    "Attempt",
    "Client",
    "Entry",
    "FieldError",
    "File",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobUnsuccessful",
    "Malformed",
    "Misconfigured",
    "Problem",
    "Progress",
    "Reason",
    "TandemError",
    "Unavailable",
]

_MODULES = (
    "tandem_jobs.client.client",
    "tandem_jobs.client.errors",
    "tandem_jobs.client.models",
    "tandem_shared.errors",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in map(import_module, _MODULES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
