"""What the application holds while it serves: opened by its lifespan, found in every request's `scope["state"]`."""

from typing import TypedDict

from starlette.requests import Request

from tandem_api.drain import Drain
from tandem_api.metrics import Requests
from tandem_api.validation.catalogue import Catalogue
from tandem_api.validation.submission import Submissions
from tandem_shared.files.resumable import UploadJoiner
from tandem_shared.files.store import FileStore
from tandem_shared.ledger.ledger import Ledger
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import Settings
from tandem_shared.streams.reader import StreamSource


class State(TypedDict):
    """Of one process; `tenant` is added for each request."""

    settings: Settings
    queue: Queue
    catalogue: Catalogue
    submissions: Submissions
    store: FileStore
    source: StreamSource
    joins: UploadJoiner
    ledger: Ledger
    drain: Drain
    requests: Requests


class Served(State):
    """The same for one request."""

    tenant: str


def served(request: Request) -> Served:
    """The state of a request, with its tenant."""
    state: Served = request.scope["state"]
    return state
