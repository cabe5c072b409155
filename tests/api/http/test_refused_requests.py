"""Unknown methods and paths, and bytes that are not HTTP, are answered with a problem."""

import httpx2
import pytest

from tests.api.serving import problem, raw_answer


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/jobs", "GET, HEAD, POST"),
        ("GET", "/v1/jobs/bulk", "POST"),
        ("PUT", "/v1/jobs/01JC8XW3T4Z5", "DELETE, GET, HEAD"),
        ("GET", "/v1/jobs/01JC8XW3T4Z5/cancel", "POST"),
        ("POST", "/v1/jobs/01JC8XW3T4Z5/stream", "GET, HEAD"),
        ("POST", "/v1/tasks", "GET, HEAD"),
        ("PUT", "/v1/files/x", "DELETE, GET, HEAD, PATCH"),
        ("OPTIONS", "/v1/queues", "GET, HEAD"),
        ("POST", "/livez", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_answered_with_the_allowed_ones(
    client: httpx2.AsyncClient, method: str, path: str, allowed: str
) -> None:
    answer = await client.request(method, path)
    assert (problem(answer)[0], answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1/jobs/"),
        ("POST", "/v1/jobs/01JC8XW3T4Z5/replay"),
        ("GET", "/v1/schedules"),
        ("POST", "/v1/flows"),
        ("GET", "/v1/keys/x"),
        ("GET", "/v1/tasks/t.nope"),
        ("GET", "/v1/nothing/%00%ff%2e"),
        ("GET", "/v1/streams"),
    ],
)
async def test_an_unknown_path_is_not_found(
    client: httpx2.AsyncClient, method: str, path: str
) -> None:
    answer = await client.request(method, path)
    assert problem(answer)[0] == 404
    assert answer.json()["instance"] == path


async def test_bytes_that_are_not_http_are_malformed(client: httpx2.AsyncClient) -> None:
    answer = await raw_answer(client, b"GARBAGE\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"], ids=["none", "two"])
async def test_a_request_needs_exactly_one_host(client: httpx2.AsyncClient, hosts: bytes) -> None:
    answer = await raw_answer(client, b"GET /livez HTTP/1.1\r\n" + hosts + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"one Host header" in answer


async def test_http_1_0_needs_no_host(client: httpx2.AsyncClient) -> None:
    assert (await raw_answer(client, b"GET /livez HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
