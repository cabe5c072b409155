"""How our own routes are made: plain endpoints, and a job's id in a path."""

from collections.abc import Awaitable, Callable

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class JobConvertor(Convertor[str]):
    """`{id:job}`: the words that have a meaning of their own there are no ids."""

    regex = "(?!(?:bulk|replay)(?:/|$))[^/]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("job", JobConvertor())
JOB = "/v1/jobs/{id:job}"


class Plain:
    """An endpoint without the machinery of FastAPI, which costs more than everything that the hot routes do."""

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)
