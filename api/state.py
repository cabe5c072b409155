"""What the application holds while it serves: opened by its lifespan, found in every request's `scope["state"]`."""

from collections.abc import Awaitable, Callable
from typing import TypedDict

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.submissions import Submissions
from api.catalogue import Catalogue
from api.waiting import Drain
from shared.files import FileStore
from shared.queue import Queue
from shared.settings import Settings


class State(TypedDict):
    """Of one process; `tenant` is added for each request."""

    settings: Settings
    queue: Queue
    catalogue: Catalogue
    submissions: Submissions
    store: FileStore
    drain: Drain


class Served(State):
    """The same for one request."""

    tenant: str


def served(request: Request) -> Served:
    """The state of a request, with its tenant."""
    state: Served = request.scope["state"]
    return state


class Plain:
    """An endpoint without the machinery of FastAPI, which costs more than everything that the hot routes do."""

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)
