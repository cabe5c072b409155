"""The circuit breaker: its policy with the test's clock, and how the client uses it."""

import asyncio
import socket

import pytest
from aiohttp import web

from tandem_shared.settings import LOOPBACK_NETWORKS, Settings
from tandem_worker.connectors.http import breaker as breakers
from tandem_worker.connectors.http.breaker import (
    FIRST_PAUSE_SECONDS,
    MAX_FAILURES,
    MAX_PAUSE_SECONDS,
    Breaker,
    pause_seconds,
)
from tandem_worker.connectors.http.client import open_http
from tandem_worker.errors import TaskError
from tests.worker.connectors.http.servers import call, refusal, serving

HOST = "example.org:443"


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock=clock, random=lambda: 0.5)


def fail(breaker: Breaker, times: int = 1, host: str = HOST) -> None:
    for _ in range(times):
        passed = breaker.enter(host)
        passed.failed()
        passed.over()


def refused(breaker: Breaker, host: str = HOST) -> TaskError:
    with pytest.raises(TaskError) as caught:
        breaker.enter(host)
    assert (caught.value.type, caught.value.retryable) == ("circuit_open", True)
    return caught.value


def test_failures_in_a_row_open_the_circuit_of_that_host_only(breaker: Breaker) -> None:
    fail(breaker, MAX_FAILURES - 1)
    breaker.enter(HOST).over()
    fail(breaker)
    error = refused(breaker)
    assert error.after == FIRST_PAUSE_SECONDS * 1.5
    assert error.message == f"{HOST} failed {MAX_FAILURES} times in a row and gets no calls for now"
    breaker.enter("example.org:80")


def test_an_answer_between_failures_resets_the_count(breaker: Breaker) -> None:
    fail(breaker, MAX_FAILURES - 1)
    breaker.enter(HOST).answered()
    fail(breaker, MAX_FAILURES - 1)
    breaker.enter(HOST)
    fail(breaker)
    refused(breaker)


def test_after_the_pause_one_probe_passes_and_its_answer_closes_the_circuit(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker, MAX_FAILURES)
    clock.now += FIRST_PAUSE_SECONDS - 0.001
    refused(breaker)
    clock.now += 0.002
    probe = breaker.enter(HOST)
    refused(breaker)
    probe.answered()
    probe.over()
    for _ in range(10):
        breaker.enter(HOST)


def test_a_failed_probe_opens_the_circuit_for_longer(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, MAX_FAILURES)
    for number in range(2, 8):
        clock.now += pause_seconds(number - 1) + 0.001
        fail(breaker)
        after = refused(breaker).after
        assert after is not None
        assert after == pytest.approx(pause_seconds(number) * 1.5)
    assert [pause_seconds(number) for number in (1, 2, 3, 50, 5000)] == [
        FIRST_PAUSE_SECONDS,
        2 * FIRST_PAUSE_SECONDS,
        4 * FIRST_PAUSE_SECONDS,
        MAX_PAUSE_SECONDS,
        MAX_PAUSE_SECONDS,
    ]


def test_a_probe_without_an_outcome_lets_the_next_call_probe(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker, MAX_FAILURES)
    clock.now += FIRST_PAUSE_SECONDS + 1
    breaker.enter(HOST).over()
    probe = breaker.enter(HOST)
    refused(breaker)
    probe.over()


def test_calls_begun_before_the_circuit_opened_can_only_close_it(
    breaker: Breaker, clock: Clock
) -> None:
    late = [breaker.enter(HOST) for _ in range(3)]
    fail(breaker, MAX_FAILURES)
    late[0].failed()
    late[0].over()
    clock.now += FIRST_PAUSE_SECONDS + 0.001
    probe = breaker.enter(HOST)
    late[1].failed()
    late[1].over()
    refused(breaker)
    late[2].answered()
    late[2].over()
    probe.over()
    breaker.enter(HOST)


def test_a_bounded_number_of_hosts_is_remembered(
    breaker: Breaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breakers, "MAX_HOSTS", 3)
    fail(breaker, MAX_FAILURES, "a")
    for host in "bcd":
        fail(breaker, MAX_FAILURES, host)
    breaker.enter("a")
    for host in "bcd":
        refused(breaker, host)


async def test_the_client_stops_calling_a_failing_host_until_it_answers(
    breaker: Breaker, clock: Clock
) -> None:
    seen: list[int] = []
    healthy = False

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append(1)
        return web.json_response("fine") if healthy else web.json_response("broken", status=503)

    async with (
        serving(handler) as port,
        open_http(Settings(http_allow=LOOPBACK_NETWORKS), breaker=breaker) as client,
    ):
        url = f"http://127.0.0.1:{port}/path?key=abc"
        for _ in range(MAX_FAILURES):
            assert await call(client, url) == "broken"
        error = await refusal(client, url, method="POST")
        assert (error.type, error.retryable, error.after) == (
            "circuit_open",
            True,
            FIRST_PAUSE_SECONDS * 1.5,
        )
        assert "abc" not in error.message
        assert len(seen) == MAX_FAILURES
        healthy = True
        clock.now += FIRST_PAUSE_SECONDS + 1
        assert [await call(client, url) for _ in range(3)] == ["fine"] * 3
    assert len(seen) == MAX_FAILURES + 3


async def test_a_cancelled_probe_lets_the_next_call_probe(breaker: Breaker, clock: Clock) -> None:
    hold, inside = asyncio.Event(), asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.Response:
        if request.path == "/slow":
            inside.set()
            await hold.wait()
        return web.json_response("fine")

    async with (
        serving(handler) as port,
        open_http(Settings(http_allow=LOOPBACK_NETWORKS), breaker=breaker) as client,
    ):
        fail(breaker, MAX_FAILURES, f"127.0.0.1:{port}")
        clock.now += FIRST_PAUSE_SECONDS + 1
        probe = asyncio.create_task(call(client, f"http://127.0.0.1:{port}/slow"))
        await inside.wait()
        assert (await refusal(client, f"http://127.0.0.1:{port}/")).type == "circuit_open"
        probe.cancel()
        await asyncio.wait([probe])
        assert await call(client, f"http://127.0.0.1:{port}/") == "fine"


async def test_refused_connections_open_the_circuit(breaker: Breaker) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        async with open_http(Settings(http_allow=LOOPBACK_NETWORKS), breaker=breaker) as client:
            types = [(await refusal(client, url)).type for _ in range(MAX_FAILURES + 1)]
    assert types == ["connection_failed"] * MAX_FAILURES + ["circuit_open"]


async def test_refused_addresses_and_timeouts_do_not_count_as_failures(
    breaker: Breaker,
) -> None:
    async with open_http(Settings(), breaker=breaker) as client:
        types = {
            (await refusal(client, "http://127.0.0.1:1/")).type for _ in range(MAX_FAILURES + 1)
        }
    assert types == {"address_refused"}
