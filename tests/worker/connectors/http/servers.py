"""Servers on loopback, and calls to them, for tests of HTTP."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from tandem_worker.connectors.http.client import HttpClient
from tandem_worker.errors import TaskError

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """The port of a server on a loopback address. It cancels handlers whose client disconnects."""
    server = web.Server(handler, handler_cancellation=True)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Names(AbstractResolver):
    """Resolves a name to the next of its addresses each time."""

    def __init__(self, **names: list[str]) -> None:
        self.names = names
        self.resolved: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.resolved.append(host)
        addresses = self.names.get(host.partition(".")[0])
        if addresses is None:
            raise OSError("no such name")
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)
        ]

    async def close(self) -> None:
        """Do nothing."""


async def echo(request: web.BaseRequest) -> web.Response:
    body = await request.text()
    return web.json_response(
        {
            "method": request.method,
            "path": request.path_qs,
            "headers": dict(request.headers),
            "body": body,
        }
    )


async def call(client: HttpClient, url: str, method: str = "GET", **options: Any) -> Any:
    async with client.request(method, url, timeout=10, **options) as response:
        return await response.json()


async def refusal(client: HttpClient, url: str, **options: Any) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await call(client, url, **options)
    return caught.value


SPELLINGS = """
    127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 0x7f.0.0.1 0177.0.0.1 017700000001 0 0.0.0.0
    localhost LOCALHOST ①②⑦.⓪.⓪.① 127。0。0。1 [::1] [::] [0:0:0:0:0:0:0:1] [::127.0.0.1]
    [::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:10.0.0.1] [::ffff:169.254.169.254] [64:ff9b::7f00:1]
    [64:ff9b:1::a00:1] [2002:7f00:1::] [2001:0:7f00:1::] [fe80::1%25lo] [fc00::1] [fec0::1]
    [fd00:ec2::254] [2001:db8::1] [100::1] [ff02::1] 169.254.169.254 169.254.170.2 100.64.0.1
    100.100.100.200 192.0.0.192 192.0.2.1 168.63.129.16 10.0.0.1 172.16.0.1 192.168.0.1 198.18.0.1
    198.51.100.1 203.0.113.1 224.0.0.1 240.0.0.1 255.255.255.255
""".split()
