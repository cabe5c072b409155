"""The guarded client against real servers on loopback."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import ResolveResult

from tandem_shared.settings import LOOPBACK_NETWORKS, Settings
from tandem_worker.connectors.http.client import MAX_REDIRECTS, HttpClient, open_http
from tandem_worker.errors import TaskError
from tests.worker.connectors.http.servers import (
    SPELLINGS,
    Names,
    call,
    echo,
    refusal,
    serving,
)


async def test_by_default_only_the_public_internet_is_called() -> None:
    async with serving(echo) as port, open_http(Settings()) as client:
        error = await refusal(client, f"http://127.0.0.1:{port}/secret?key=abc")
    assert error.type == "address_refused"
    assert not error.retryable
    assert "127.0.0.1" in error.message
    assert "secret" not in error.message


@pytest.mark.parametrize("host", ["a..b", "a" * 300, "‥"])
async def test_an_invalid_host_name_fails_permanently(host: str) -> None:
    async with open_http(Settings()) as client:
        error = await refusal(client, f"http://{host}/")
    assert (error.type, error.retryable) == ("invalid_url", False)


@pytest.mark.parametrize("host", SPELLINGS)
async def test_every_spelling_of_a_special_address_is_refused(host: str) -> None:
    reached: list[str] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        reached.append(request.path)
        return web.Response()

    async with serving(handler) as port, open_http(Settings()) as client:
        error = await refusal(client, f"http://{host}:{port}/")
    assert (error.type, error.retryable, reached) == ("address_refused", False, [])


async def test_localhost_is_refused_whether_or_not_dns_knows_it() -> None:
    async with open_http(Settings(), resolver=Names()) as client:
        for host in ("localhost.", "LOCALHOST", "tandem.localhost"):
            error = await refusal(client, f"http://{host}/")
            assert (error.type, error.retryable) == ("address_refused", False)
        error = await refusal(client, "http://notlocalhost/")
        assert (error.type, error.retryable) == ("connection_failed", True)


async def test_a_redirect_to_a_private_address_is_refused() -> None:
    reached: list[str] = []

    async def inner(request: web.BaseRequest) -> web.Response:
        reached.append(request.path)
        return web.Response()

    async with serving(inner, "127.0.0.1") as private:

        async def outer(request: web.BaseRequest) -> web.Response:
            raise web.HTTPFound(f"http://127.0.0.1:{private}/inner")

        async with (
            serving(outer, "127.0.0.2") as port,
            open_http(Settings(http_allow=("127.0.0.2",))) as client,
        ):
            error = await refusal(client, f"http://127.0.0.2:{port}/")
    assert (error.type, error.retryable, reached) == ("address_refused", False, [])


async def test_a_name_that_resolves_differently_the_second_time_is_refused() -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        raise web.HTTPFound(f"http://rebind.test:{private}/inner")

    names = Names(rebind=["127.0.0.2", "127.0.0.1"])
    async with (
        serving(echo, "127.0.0.1") as private,
        serving(handler, "127.0.0.2") as public,
        open_http(Settings(http_allow=("127.0.0.2",)), resolver=names) as client,
    ):
        error = await refusal(client, f"http://rebind.test:{public}/")
    assert error.type == "address_refused"
    assert names.resolved == ["rebind.test", "rebind.test"]


async def test_an_allowed_name_does_not_open_its_address_to_other_names() -> None:
    names = Names(intranet=["127.0.0.1"], other=["127.0.0.1"])
    async with (
        serving(echo) as port,
        open_http(Settings(http_allow=("Intranet.test",)), resolver=names) as client,
    ):
        assert (await call(client, f"http://intranet.test:{port}/a"))["path"] == "/a"
        assert (await call(client, f"http://INTRANET.test.:{port}/b"))["path"] == "/b"
        other = await refusal(client, f"http://other.test:{port}/")
        literal = await refusal(client, f"http://127.0.0.1:{port}/")
    assert (other.type, literal.type) == ("address_refused", "address_refused")


async def test_the_allowed_one_of_several_addresses_is_dialled() -> None:
    class Both(Names):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            return [
                ResolveResult(
                    hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0
                )
                for address in ("127.0.0.1", "127.0.0.2")
            ]

    async with (
        serving(echo, "127.0.0.2") as port,
        open_http(Settings(http_allow=("127.0.0.2",)), resolver=Both()) as client,
    ):
        assert (await call(client, f"http://both.test:{port}/x"))["path"] == "/x"


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    async with open_http(Settings(http_allow=LOOPBACK_NETWORKS)) as opened:
        yield opened


async def test_the_user_agent_is_sent_and_proxies_are_ignored(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with serving(echo) as port:
        seen = await call(
            client, f"http://127.0.0.1:{port}/?a=1", params={"b": [1, True], "c": None, "a": "2"}
        )
    assert seen["headers"]["User-Agent"].startswith("tandem-jobs/")
    assert seen["path"] == "/?a=1&b=1&b=true&a=2"


async def test_cookies_of_one_call_are_not_sent_with_the_next(client: HttpClient) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        response = web.json_response(dict(request.cookies))
        response.set_cookie("session", "secret")
        return response

    async with serving(handler) as port:
        assert await call(client, f"http://127.0.0.1:{port}/") == {}
        assert await call(client, f"http://127.0.0.1:{port}/") == {}


@pytest.mark.parametrize(
    ("status", "method", "then", "body"),
    [
        (301, "POST", "GET", ""),
        (302, "POST", "GET", ""),
        (303, "POST", "GET", ""),
        (303, "PUT", "GET", ""),
        (302, "PUT", "PUT", "hello"),
        (307, "POST", "POST", "hello"),
        (308, "POST", "POST", "hello"),
        (307, "GET", "GET", ""),
    ],
)
async def test_redirects_change_the_method_as_in_rfc_9110(
    client: HttpClient, status: int, method: str, then: str, body: str
) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/start":
            return web.Response(status=status, headers={"Location": "/end?x=1"})
        return await echo(request)

    async with serving(handler) as port:
        sent = b"hello" if method != "GET" else None
        headers = {"Content-Type": "text/plain", "Authorization": "Bearer kept"}
        seen = await call(
            client, f"http://127.0.0.1:{port}/start", method, body=sent, headers=headers
        )
    assert (seen["method"], seen["path"], seen["body"]) == (then, "/end?x=1", body)
    assert seen["headers"]["Authorization"] == "Bearer kept"
    assert ("Content-Type" in seen["headers"]) is bool(body or method == "GET")


async def test_a_redirect_opens_a_streamed_body_again(client: HttpClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"hel"
        yield b"lo"

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/start":
            await request.read()
            return web.Response(status=308, headers={"Location": "/end"})
        return await echo(request)

    async with serving(handler) as port:
        assert (await call(client, f"http://127.0.0.1:{port}/start", "POST", body=pieces))[
            "body"
        ] == "hello"


async def test_credentials_are_not_sent_to_another_origin(client: HttpClient) -> None:
    async with serving(echo) as second:

        async def handler(request: web.BaseRequest) -> web.Response:
            raise web.HTTPTemporaryRedirect(f"http://127.0.0.1:{second}/end")

        async with serving(handler) as first:
            headers = {
                "authorization": "Bearer x",
                "Cookie": "a=b",
                "X-Other": "x",
                "Accept-Language": "mi",
            }
            seen = await call(client, f"http://127.0.0.1:{first}/", headers=headers)
    names = {name.lower() for name in seen["headers"]}
    assert "accept-language" in names
    assert not names & {"authorization", "cookie", "proxy-authorization", "x-other"}


async def test_the_number_of_redirects_is_limited(client: HttpClient) -> None:
    seen: list[str] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append(request.path)
        raise web.HTTPFound(f"/{len(seen)}")

    async with serving(handler) as port:
        error = await refusal(client, f"http://127.0.0.1:{port}/0")
    assert (error.type, error.retryable) == ("redirect_refused", False)
    assert len(seen) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "location",
    [
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "http://user:pw@127.0.0.1/",
        "http://",
        "http://[::1",
    ],
)
async def test_redirects_out_of_http_are_refused(client: HttpClient, location: str) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(status=302, headers={"Location": location})

    async with serving(handler) as port:
        error = await refusal(client, f"http://127.0.0.1:{port}/?key=abc")
    assert (error.type, error.retryable) == ("redirect_refused", False)
    assert "abc" not in error.message
    assert "pw" not in error.message


async def test_redirects_can_be_left_unfollowed(client: HttpClient) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    async with (
        serving(handler) as port,
        client.request("GET", f"http://127.0.0.1:{port}/", follow_redirects=False) as response,
    ):
        assert response.status == 302


@pytest.mark.parametrize(
    ("method", "options", "retryable"),
    [
        ("GET", {}, True),
        ("POST", {}, False),
        ("DELETE", {}, False),
        ("POST", {"retry_unsafe": True}, True),
        ("POST", {"headers": {"idempotency-key": "1"}}, True),
    ],
)
async def test_a_refused_connection_is_retryable_if_a_repeat_is_safe(
    client: HttpClient, method: str, options: dict[str, Any], retryable: bool
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error = await refusal(client, f"http://127.0.0.1:{port}/path?key=abc", method=method, **options)
    assert (error.type, error.retryable) == ("connection_failed", retryable)
    assert error.message == f"no response from http://127.0.0.1:{port}/path: connection refused"


async def raw(answer: bytes) -> tuple[asyncio.Server, int]:
    """A server that sends these bytes and closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "type_", "retryable"),
    [
        (b"", "connection_failed", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "connection_failed", True),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "bad_response", True),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Encoding: gzip\r\n\r\nabcde",
            "bad_response",
            False,
        ),
    ],
)
async def test_broken_responses_are_retryable_and_wrong_ones_are_not(
    client: HttpClient, answer: bytes, type_: str, retryable: bool
) -> None:
    server, port = await raw(answer)
    async with server:
        with pytest.raises(TaskError) as caught:
            async with client.request("GET", f"http://127.0.0.1:{port}/", timeout=10) as response:
                await response.read()
    assert (caught.value.type, caught.value.retryable) == (type_, retryable)


async def test_a_call_ends_at_its_deadline(client: HttpClient) -> None:
    hold = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.Response:
        await hold.wait()
        return web.Response()

    async with serving(handler) as port:
        with pytest.raises(TaskError) as caught:
            async with client.request("GET", f"http://127.0.0.1:{port}/", timeout=0.05):
                pass
        hold.set()
    assert (caught.value.type, caught.value.retryable) == ("timeout", True)


async def test_exceptions_in_the_block_are_not_converted(client: HttpClient) -> None:
    async with serving(echo) as port:
        with pytest.raises(FileNotFoundError):
            async with client.request("GET", f"http://127.0.0.1:{port}/"):
                raise FileNotFoundError("mine")
        with pytest.raises(TimeoutError, match="mine"):
            async with client.request("GET", f"http://127.0.0.1:{port}/"):
                raise TimeoutError("mine")
