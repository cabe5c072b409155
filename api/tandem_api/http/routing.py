"""The path of a job, routes documented by their docstrings, and routes that Edge serves itself."""

from collections.abc import Awaitable, Callable, Iterable
from copy import copy
from typing import Any

from fastapi.routing import APIRoute
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tandem_api.http.parameters import parameter_errors
from tandem_api.http.problems import error_response
from tandem_shared.errors import Invalid, TandemError
from tandem_shared.jobs.ids import ID_CHARS


class JobConvertor(StringConvertor):
    """`{id:job}`: any id except the names of other endpoints below /v1/jobs."""

    regex = "(?!(?:bulk|replay)(?:/|$))[^/]+"


register_url_convertor("job", JobConvertor())
JOBS = "/v1/jobs/"
JOB = JOBS + "{id:job}"
_ID_END = len(JOBS) + ID_CHARS


class DocumentedRoute(APIRoute):
    """A route that /openapi.json describes by its docstring, under its name in camel case."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = _checked(self.app, self)
        summary, _, description = self.description.partition("\n")
        self.summary, self.description = self.summary or summary.rstrip("."), description.strip()
        first, *words = self.name.split("_")
        self.operation_id = self.operation_id or first + "".join(map(str.title, words))


class PlainRoute(DocumentedRoute):
    """A route that FastAPI documents and Edge serves; its endpoint takes only a Request.

    Only for endpoints that are called very often: FastAPI's path to an endpoint (six layers of
    middleware, the search for the route, two exit stacks, dependencies) costs 45 µs of CPU, next to
    60 µs for everything else in the GET of a job.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = _plain(endpoint, _QueryNames(self))


class _QueryNames:
    """The query parameters that a route documents; it takes no others."""

    def __init__(self, route: APIRoute) -> None:
        declared = dict.fromkeys((one.alias for one in route.dependant.query_params), "string")
        for one in (route.openapi_extra or {}).get("parameters", ()):
            if one["in"] == "query":
                declared[one["name"]] = one["schema"].get("type")
        self._known = frozenset(declared)
        self._repeated = {name for name, kind in declared.items() if kind == "array"}
        # An endpoint whose clients choose names checks them itself.
        self._free = "object" in declared.values() or not route.path.startswith("/v1/")

    def check(self, request: Request) -> None:
        """Raises Invalid."""
        if request.scope["query_string"] and not self._free:
            errors = parameter_errors(request, self._known, self._repeated)
            if errors:
                raise Invalid(errors)


def _checked(app: ASGIApp, route: APIRoute) -> ASGIApp:
    names = _QueryNames(route)

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        names.check(Request(scope))
        await app(scope, receive, send)

    return checked


def _plain(endpoint: Callable[[Request], Awaitable[Response]], names: _QueryNames) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            names.check(request)
            response = await endpoint(request)
            await response(scope, receive, send)
        except (TandemError, HTTPException) as error:
            await error_response(request, error)(scope, receive, send)

    return app


def for_head(route: APIRoute) -> APIRoute:
    """The same GET route for HEAD, which FastAPI does not add; documented once, for GET."""
    head = copy(route)
    head.methods, head.include_in_schema = {"HEAD"}, False
    return head


class PlainRoutes:
    """Finds a plain route by one lookup; the router would try one route after another.

    Covers paths without parameters, and paths below a job's id. Plain routes with other paths are
    served by the router.
    """

    def __init__(self, routes: Iterable[Any]) -> None:
        self._routes = {
            (method, route.path): route
            for route in routes
            if isinstance(route, PlainRoute)
            for method in route.methods or ()
        }

    def find(self, scope: Scope) -> PlainRoute | None:
        """The route of a request; fills in its scope as the router would."""
        path, params = scope["path"], {}
        id = path[len(JOBS) : _ID_END]
        if len(id) == ID_CHARS and path.startswith(JOBS) and "/" not in id:
            path, params = JOB + path[_ID_END:], {"id": id}
        elif "{" in path:
            return None  # it might equal a template, without having parameters
        route = self._routes.get((scope["method"], path))
        if route is not None:
            scope["endpoint"], scope["path_params"] = route.endpoint, params
        return route
