"""Where redirects lead, with which method and which cookies, compared with curl; and hosts."""

import socket
from pathlib import Path

import pytest
from aiohttp.abc import ResolveResult

from tandem_shared.settings import LOOPBACK_NETWORKS, Settings
from tandem_worker.connectors.http.client import open_http
from tandem_worker.errors import TaskError
from tandem_worker.tasks.http.request import request
from tandem_worker.tasks.http.webhook import webhook
from tests.faithful.http_servers import CURL, OK, TWO, body_or_error, curl, serving, target
from tests.worker.bench import open_bench
from tests.worker.connectors.http.servers import Names

pytestmark = pytest.mark.skipif(CURL is None, reason="curl is not on PATH")


def moved(location: str, more: str = "", status: int = 302) -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n{more}Location: {location}\r\n\r\nre"
    return head.encode()


def field(request: bytes, name: bytes) -> bytes | None:
    lines = request.split(b"\r\n")
    return next((line for line in lines if line.lower().startswith(name + b":")), None)


LOCATIONS = """
    /x x ./x ../x ../../x ../../../x .. . ./ ../ ;p ?q //127.0.0.1:<port>/x ///x http:///x http:x
    http:/x HTTP://127.0.0.1:<port>/x https: /a/../../b /a/%2e%2e/b x/../y x/./y x?../y ?../y
    /x?a=%20b /%e9 /x#f /x?y#z /x\\y \\x http:\\\\127.0.0.1:<port>\\x http://127.0.0.1:<port>
    http://127.0.0.1:<port>?q http://127.0.0.1:<port>#f http://127.0.0.1:99999/x mailto:a@b
    javascript:x data:,x file:///etc/passwd about:blank http://[ http://[::1 http:// // x:y ./x:y
    /x:y a/b:c /é /x|y /%zz /a?b?c //127.0.0.1:<port> /a//b/../c
""".split()


@pytest.mark.parametrize("location", [*LOCATIONS, "/x y", " /x ", "\t/x", ""])
async def test_a_redirect_leads_where_curl_goes(tmp_path: Path, location: str) -> None:
    answers = (moved(location), OK + TWO)
    async with open_bench(tmp_path) as bench, serving(*answers) as (url, ours):
        ended = await body_or_error(bench, f"{url}/dir/sub/page?query")
    async with serving(*answers) as (url, curls):
        code, body = await curl("-L", "-m", "5", f"{url}/dir/sub/page?query")
    assert len(ours) == len(curls)
    # This curl writes the hexadecimal digits that it adds in lower case.
    assert target(ours[-1]).lower() == target(curls[-1]).lower()
    assert isinstance(ended, str) == (code != 0)
    if code == 0:
        assert ended == body


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("?", b"/dir/page?"),  # RFC 3986, 5.2.2: an empty query is one
        ("#f", b"/dir/page?query"),  # and a fragment alone keeps the query
        ("/\x01x", b"/%01x"),
        ("http://127.0.0.1:<port>/?", b"/?"),
    ],
)
async def test_where_curl_differs_the_standard_decides(
    tmp_path: Path, location: str, expected: bytes
) -> None:
    async with open_bench(tmp_path) as bench, serving(moved(location), OK + TWO) as (url, ours):
        assert await body_or_error(bench, f"{url}/dir/page?query") == b"ok"
    assert target(ours[1]) == expected


async def test_no_header_that_may_be_a_credential_reaches_another_origin(tmp_path: Path) -> None:
    secrets = ("authorization", "x-api-key", "api-key", "x-auth-token", "x-amz-security-token")
    headers = {"Accept-Language": "mi", **dict.fromkeys(secrets, "secret")}
    for elsewhere in (True, False):
        async with open_bench(tmp_path) as bench, serving(OK + TWO) as (other, there):
            to = f"{other}/x" if elsewhere else "/x"
            async with serving(moved(to), OK + TWO) as (url, here):
                await bench.run(request, {"url": f"{url}/", "headers": headers})
        last = (there if elsewhere else here)[-1].lower()
        assert b"accept-language: mi" in last
        assert (b"secret" in last.partition(b"\r\n\r\n")[0]) is not elsewhere


@pytest.mark.parametrize("location", ["http://a:b@127.0.0.1:<port>/", "//a@127.0.0.1:<port>/"])
async def test_a_user_in_a_location_is_refused(tmp_path: Path, location: str) -> None:
    async with open_bench(tmp_path) as bench, serving(moved(location)) as (url, _):
        assert await body_or_error(bench, f"{url}/") == "redirect_refused"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_post_becomes_a_get_where_curl_makes_it_one(tmp_path: Path, status: int) -> None:
    async with open_bench(tmp_path) as bench:
        async with serving(moved("/x", status=status), OK + TWO) as (url, ours):
            payload = {"url": f"{url}/", "method": "POST", "body": "text"}
            await bench.run(request, payload)
        async with serving(moved("/x", status=status), OK + TWO) as (url, curls):
            await curl("-L", "-d", "text", f"{url}/")
        assert ours[1].split(b" ")[0] == curls[1].split(b" ")[0]
        for name in (b"content-length", b"content-type"):
            assert (field(ours[1], name) is None) == (field(curls[1], name) is None)
        # A webhook's receiver must not send its event elsewhere.
        async with serving(moved("/x", status=status)) as (url, delivered):
            with pytest.raises(TaskError, match=f"answered {status}") as caught:
                await bench.run(webhook, {"url": f"{url}/", "type": "t", "data": 1})
        assert (len(delivered), caught.value.retryable) == (1, False)


COOKIES = [
    "a=1", "a=1; Path=/", "a=1; Path=/dir", "a=1; Path=/di", "a=1; Path=/dir/", "a=1; Path=/other",
    "a=1; Path=dir", "a=1; Path=", "a=1; HttpOnly", "a=1; Max-Age=0",
    "a=1; Max-Age=-1", "a=1; Max-Age=60",
    "a=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT", "a=1; Expires=Fri, 01 Jan 2100 00:00:00 GMT",
    "a=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=60", "a=1; Expires=nonsense",
    "a=1; Domain=127.0.0.1", "a=1; Domain=127.0.0.2", "a=1; Domain=example.org",
    "a=1; Domain=", "a=1; SameSite=Strict", "a=", "a=1; Unknown=x", 'a="1 2"', "a=1=2", "a=1 2",
    "a = 1 ", "a=1; path=/; PATH=/other", "a=,",
    "a=1\r\nSet-Cookie: a=2", "a=1\r\nSet-Cookie: b=2; Path=/dir", "a=%20;",
    "a=1\r\nSet-Cookie: a=; Max-Age=0", "__Host-a=1", "__Secure-a=1", 'a="x;y"', "a={}",
]  # fmt: skip


@pytest.mark.parametrize("cookie", COOKIES)
async def test_a_chain_keeps_the_cookies_that_curl_keeps(tmp_path: Path, cookie: str) -> None:
    answers = (moved("/dir/next", f"Set-Cookie: {cookie}\r\n"), OK + TWO)
    async with open_bench(tmp_path) as bench, serving(*answers) as (url, ours):
        await body_or_error(bench, f"{url}/dir/page")
    async with serving(*answers) as (url, curls):
        await curl("-L", "-b", "", f"{url}/dir/page")
    assert pairs(ours[1]) == pairs(curls[1])


@pytest.mark.parametrize(
    ("cookie", "expected"),
    [
        ("a=1; Secure", set()),  # curl sends it to loopback addresses
        ("a=1; Max-Age=x", {b"a=1"}),  # RFC 6265, 5.2.2: ignore the attribute
        ("A=1\r\nSet-Cookie: a=2", {b"A=1", b"a=2"}),  # names have a case
    ],
)
async def test_where_curl_differs_on_cookies_the_standard_decides(
    tmp_path: Path, cookie: str, expected: set[bytes]
) -> None:
    answers = (moved("/dir/next", f"Set-Cookie: {cookie}\r\n"), OK + TWO)
    async with open_bench(tmp_path) as bench, serving(*answers) as (url, ours):
        await body_or_error(bench, f"{url}/dir/page")
    assert pairs(ours[1]) == expected


def pairs(sent: bytes) -> set[bytes]:
    found = field(sent, b"cookie")
    return set() if found is None else set(found.partition(b":")[2].strip().split(b"; "))


class AnyName(Names):
    """Resolves each name to this machine."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.names[host.partition(".")[0]] = ["127.0.0.1"]
        return await super().resolve(host, port, family)


@pytest.mark.parametrize(
    "host", ["bücher", "BÜCHER", "xn--bcher-kva", "ß", "faß", "\u212a", "a_b", "-a", "日本", "a.b"]
)
async def test_a_host_goes_out_in_the_letters_of_idna(host: str) -> None:
    settings = Settings(http_allow=LOOPBACK_NETWORKS)
    async with (
        serving(OK + TWO) as (url, requests),
        open_http(settings, resolver=AnyName()) as client,
    ):
        given = url.replace("127.0.0.1", f"{host}.localhost") + "/"
        async with client.request("GET", given) as response:
            assert response.status == 200
        await curl(given)
    ours, curls = (field(sent, b"host") for sent in requests)
    assert ours == curls
