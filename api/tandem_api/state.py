"""What requests find in `scope["state"]`: shared resources, and the request's own tenant."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, TypedDict

from fastapi import Depends, Request

from tandem_api.drain import Drain
from tandem_api.http.memory import RequestMemory
from tandem_api.metrics import RequestMetrics
from tandem_api.validation.catalogue import Catalogue
from tandem_api.validation.submission import Submissions
from tandem_shared.files.resumable import UploadJoiner
from tandem_shared.files.store import FileStore
from tandem_shared.ledger.ledger import Ledger
from tandem_shared.ledger.lost import LostJobs
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import Settings
from tandem_shared.setup.watch import SetupWatch
from tandem_shared.streams.reader import StreamSource


class AppState(TypedDict):
    """Shared by all requests of one process; `app.open_state` opens it."""

    settings: Settings
    queue: Queue
    catalogue: Catalogue
    submissions: Submissions
    openapi: Callable[[], Awaitable[bytes]]  # /openapi.json, see openapi/document.py
    store: FileStore
    source: StreamSource
    joiner: UploadJoiner
    ledger: Ledger
    lost: LostJobs
    setup: SetupWatch
    drain: Drain
    metrics: RequestMetrics
    memory: RequestMemory


class RequestState(AppState):
    """The same, with what `edge.py` adds for each request."""

    tenant: str
    headers: Mapping[str, str]  # see `http.parameters.read_headers`


def state_of(request: Request) -> RequestState:
    """The state of a request."""
    state: RequestState = request.scope["state"]
    return state


async def _depend(request: Request) -> RequestState:
    # FastAPI runs dependencies that are not `async` in a thread.
    return state_of(request)


StateDep = Annotated[RequestState, Depends(_depend)]
