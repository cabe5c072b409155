"""The path of a job, and routes that Edge serves itself."""

from collections.abc import Awaitable, Callable, Iterable
from copy import copy
from typing import Any

from fastapi.routing import APIRoute
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tandem_api.http.problems import error_response
from tandem_shared.errors import TandemError
from tandem_shared.jobs.ids import ID_CHARS


class JobConvertor(StringConvertor):
    """`{id:job}`: any id except the words that are paths themselves."""

    regex = "(?!(?:bulk|replay)(?:/|$))[^/]+"


register_url_convertor("job", JobConvertor())
JOBS = "/v1/jobs/"
JOB = JOBS + "{id:job}"
_ID_END = len(JOBS) + ID_CHARS

Endpoint = Callable[[Request], Awaitable[Response]]


class PlainRoute(APIRoute):
    """A route that FastAPI documents and Edge serves: the endpoint takes a Request, and that is all.

    For what is called most. FastAPI's way to an endpoint (six layers of middleware, the search for
    the route, two exit stacks, dependencies) costs about as much CPU as everything that such a
    request does: a GET of a job takes 110 µs that way, and 60 µs this way.
    """

    def __init__(self, path: str, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = _plain(endpoint)


def _plain(endpoint: Endpoint) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
            await response(scope, receive, send)
        except (TandemError, HTTPException) as error:
            await error_response(request, error)(scope, receive, send)

    return app


def for_head(route: APIRoute) -> APIRoute:
    """The same GET route for HEAD, which FastAPI leaves to the application; not documented twice."""
    head = copy(route)
    head.methods, head.include_in_schema = {"HEAD"}, False
    return head


class PlainRoutes:
    """Finds a plain route by one lookup, where the router tries one route after the other.

    It knows paths without parameters, and those below a job's id. Anything else is left to the
    router, which serves plain routes as well.
    """

    def __init__(self, routes: Iterable[Any]) -> None:
        self._routes: dict[tuple[str, ...], PlainRoute] = {}
        for route in routes:
            if isinstance(route, PlainRoute):
                below = route.path.removeprefix(JOB)
                path = (route.path,) if below == route.path else (JOBS, below)
                for method in route.methods or ():
                    self._routes[method, *path] = route

    def find(self, scope: Scope) -> PlainRoute | None:
        """The route of a request, whose scope then has what the router would put there."""
        method, path = scope["method"], scope["path"]
        route, params = self._routes.get((method, path)), {}
        if route is None and path.startswith(JOBS):
            id = path[len(JOBS) : _ID_END]
            if len(id) < ID_CHARS or "/" in id:
                return None
            route, params = self._routes.get((method, JOBS, path[_ID_END:])), {"id": id}
        if route is not None:
            scope["endpoint"], scope["path_params"] = route.endpoint, params
        return route
