"""What the application holds while it serves: opened by its lifespan, found in every request's `scope["state"]`."""

from typing import TypedDict

from starlette.requests import Request

from api.catalogue import Catalogue
from api.requests import Requests
from api.submissions import Submissions
from api.uploads import Joins
from api.waiting import Drain
from shared.files import FileStore
from shared.ledger import Ledger
from shared.queue import Queue
from shared.settings import Settings
from shared.streams import Source


class State(TypedDict):
    """Of one process; `tenant` is added for each request."""

    settings: Settings
    queue: Queue
    catalogue: Catalogue
    submissions: Submissions
    store: FileStore
    source: Source
    joins: Joins
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
