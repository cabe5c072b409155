"""How our own routes are made, and how a request finds them: plain endpoints, and a job's id in a path."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.convertors import Convertor, register_url_convertor
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tandem_api.http.headers import Fields
from tandem_api.http.problems import explained
from tandem_shared.errors import TandemError
from tandem_shared.jobs.ids import ID_CHARS


class JobConvertor(Convertor[str]):
    """`{id:job}`: the words that have a meaning of their own there are no ids."""

    regex = "(?!(?:bulk|replay)(?:/|$))[^/]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("job", JobConvertor())
JOBS = "/v1/jobs/"
JOB = JOBS + "{id:job}"


class Asked(Request):
    """A request whose headers are found without looking at all of them."""

    @property
    def headers(self) -> Headers:
        """Read once."""
        if not hasattr(self, "_headers"):
            self._headers: Headers = Fields(self.scope["headers"])
        return self._headers


class Plain:
    """An endpoint without the machinery of FastAPI, which costs more than everything that the hot routes do."""

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.respond(scope, receive, send)
        await response(scope, receive, send)

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> Response:
        """The answer, also to what is wrong with the request."""
        request = Asked(scope, receive, send)
        try:
            return await self._answer(request)
        except (TandemError, HTTPException) as error:
            return explained(request, error)


class Shortcuts:
    """The plain endpoints by method and path: what the router finds by trying one route after the other.

    It knows paths without parameters, and those below a job; whatever it does not know is the
    router's.
    """

    def __init__(self, routes: Iterable[Any]) -> None:
        self._paths: dict[tuple[str, str], Plain] = {}
        self._of_job: dict[tuple[str, str], Plain] = {}  # by what follows the id
        for route in routes:
            if not isinstance(getattr(route, "endpoint", None), Plain):
                continue
            table, path = self._paths, route.path
            if path.startswith(JOB):
                table, path = self._of_job, path.removeprefix(JOB)
            if "{" not in path:
                for method in route.methods:
                    table.setdefault((method, path), route.endpoint)

    def find(self, scope: Scope) -> Plain | None:
        """The endpoint of a request, which the scope then tells as the router would."""
        method, path = scope["method"], scope["path"]
        found, params = self._paths.get((method, path)), {}
        if found is None and path.startswith(JOBS):
            end = len(JOBS) + ID_CHARS
            id = path[len(JOBS) : end]
            if len(id) < ID_CHARS or "/" in id:
                return None
            found, params = self._of_job.get((method, path[end:])), {"id": id}
        if found is not None:
            scope["endpoint"], scope["path_params"] = found, params
        return found


SOCKETS = b"/v1/stream"  # the one path at which an upgrade to WebSocket is offered
