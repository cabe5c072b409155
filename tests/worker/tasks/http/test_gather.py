"""`http.gather` and `http.race` against real servers on loopback."""

import asyncio
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest
from aiohttp import web
from pydantic import ValidationError

from tandem_shared.settings import LOOPBACK_NETWORKS, Settings
from tandem_worker.connectors.http.client import open_http
from tandem_worker.errors import TaskError
from tandem_worker.task import task_of
from tandem_worker.tasks.http.gather import gather as http_gather
from tandem_worker.tasks.http.gather import race as http_race
from tests.conftest import eventually
from tests.worker.bench import Bench
from tests.worker.connectors.http.servers import Names, serving

GATHER, RACE = task_of(http_gather), task_of(http_race)


async def failure(bench: Bench, function: Any, payload: dict[str, Any]) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await bench.run(function, payload)
    return caught.value


async def landed(bench: Bench, count: int) -> None:
    await eventually(lambda: len(bench.recorder.items) == count)


class Gates:
    """A server whose paths answer when the test opens them; `inside` wait, `gone` disconnected."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.gone: list[str] = []
        self.open: dict[str, asyncio.Event] = {}

    def gate(self, path: str) -> asyncio.Event:
        return self.open.setdefault(path, asyncio.Event())

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        path = request.path.removeprefix("/")
        self.inside.append(path)
        try:
            await self.gate(path).wait()
        except asyncio.CancelledError:
            self.gone.append(path)
            raise
        return web.json_response({"path": path}, status=int(request.query.get("status", "200")))


async def paths(request: web.BaseRequest) -> web.Response:
    return web.json_response({"path": request.path}, status=int(request.query.get("status", "200")))


async def test_results_are_ordered_and_streamed_as_they_arrive(bench: Bench) -> None:
    gates = Gates()
    async with serving(gates) as port:
        requests = [{"url": f"http://127.0.0.1:{port}/{name}"} for name in "abc"]
        running = asyncio.create_task(bench.run(http_gather, {"requests": requests}))
        for count, name in enumerate("cab", 1):
            gates.gate(name).set()
            await landed(bench, count)
        result = await running
    assert [one["json"]["path"] for one in result["results"]] == ["a", "b", "c"]
    assert [one["index"] for one in bench.recorder.items] == [2, 0, 1]
    assert sorted(bench.recorder.items, key=lambda one: one["index"]) == result["results"]
    assert all(one["ok"] is True and one["status"] == 200 for one in result["results"])
    assert bench.recorder.progressed[-1] == {"current": 3, "total": 3, "message": None}
    jsonschema_rs.validator_for(GATHER.entry.result_schema).validate(result)


@pytest.mark.parametrize(("given", "most"), [({"concurrency": 3}, 3), ({}, 10)])
async def test_concurrency_is_limited(bench: Bench, given: dict[str, int], most: int) -> None:
    inside = top = 0

    async def handler(request: web.BaseRequest) -> web.Response:
        nonlocal inside, top
        inside += 1
        top = max(top, inside)
        for _ in range(20):
            await asyncio.sleep(0)
        inside -= 1
        return web.Response()

    async with serving(handler) as port:
        requests = [{"url": f"http://127.0.0.1:{port}/"}] * 60
        result = await bench.run(http_gather, {"requests": requests, **given})
    assert len(result["results"]) == 60
    assert top == most


async def test_errors_are_collected_and_not_retried(bench: Bench) -> None:
    seen: list[str] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append(request.path)
        if request.path == "/large":
            return web.Response(body=bytes(2 << 20))
        return await paths(request)

    async with serving(handler) as port:
        base = f"http://127.0.0.1:{port}"
        requests = [
            {"url": f"{base}/ok"},
            {"url": f"{base}/busy?status=503"},
            {"url": f"{base}/none?status=404"},
            {"url": "http://127.0.0.1:1/"},
            {"url": "http://10.0.0.1/"},
            {"url": f"{base}/large"},
            {"url": f"{base}/wanted?status=404", "expect_status": [404]},
            {"url": f"{base}/x", "method": "POST", "body_file": {"file": "0" * 22}},
        ]
        result = await bench.run(http_gather, {"requests": requests})
    problems = [
        (one["error"]["type"], one["error"]["retryable"]) if not one["ok"] else None
        for one in result["results"]
    ]
    assert problems == [
        None,
        ("http_status", True),
        ("http_status", False),
        ("connection_failed", True),
        ("address_refused", False),
        ("too_large", False),
        None,
        ("file_not_found", False),
    ]
    assert sorted(seen) == ["/busy", "/large", "/none", "/ok", "/wanted"]
    assert len(bench.recorder.items) == len(requests)


async def test_a_result_too_large_for_an_output_item_fails_its_request(bench: Bench) -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(body=b"x" * (1 << 20), content_type="text/plain")

    async with serving(handler) as port:
        result = await bench.run(http_gather, {"requests": [{"url": f"http://127.0.0.1:{port}/"}]})
    assert result["results"][0]["error"]["type"] == "too_large"


async def test_the_total_size_of_responses_is_limited(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_worker.tasks.http.responses.MAX_TOTAL_BYTES", 100_000)

    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(body=b"x" * 30_000, content_type="text/plain")

    async with serving(handler) as port:
        requests = [{"url": f"http://127.0.0.1:{port}/"}] * 4
        error = await failure(bench, http_gather, {"requests": requests})
    assert (error.type, error.retryable) == ("too_large", False)


async def test_the_total_size_of_results_is_limited(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_worker.tasks.http.responses.MAX_TOTAL_BYTES", 10_000)

    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(headers={"X-Long": "x" * 4000})

    async with serving(handler) as port:
        requests = [{"url": f"http://127.0.0.1:{port}/"}] * 3
        error = await failure(bench, http_gather, {"requests": requests})
    assert (error.type, error.retryable) == ("too_large", False)


async def test_a_race_stops_at_the_total_size_of_responses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_worker.tasks.http.responses.MAX_TOTAL_BYTES", 100_000)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(1 << 14))

    async with serving(handler) as port:
        requests = [{"url": f"http://127.0.0.1:{port}/"}] * 4
        error = await failure(bench, http_race, {"requests": requests})
    assert (error.type, error.retryable) == ("too_large", False)


async def test_with_on_error_fail_the_first_error_cancels_the_others(bench: Bench) -> None:
    gates = Gates()
    async with serving(gates) as port:
        base = f"http://127.0.0.1:{port}"
        requests = [
            {"url": f"{base}/slow"},
            {"url": f"{base}/bad?status=503&key=abc"},
            {"url": f"{base}/later"},
        ]
        payload = {"requests": requests, "on_error": "fail", "concurrency": 2}
        running = asyncio.create_task(failure(bench, http_gather, payload))
        await eventually(lambda: sorted(gates.inside) == ["bad", "slow"])
        gates.gate("bad").set()
        error = await running
        await eventually(lambda: gates.gone == ["slow"])
    assert (error.type, error.retryable) == ("http_status", False)
    assert error.message == f"request 1: GET {base}/bad answered 503"
    assert sorted(gates.inside) == ["bad", "slow"]


@pytest.mark.parametrize("function", [http_gather, http_race])
async def test_each_request_has_a_timeout(bench: Bench, function: Any) -> None:
    gates = Gates()
    gates.gate("quick").set()
    async with serving(gates) as port:
        base = f"http://127.0.0.1:{port}"
        stuck = {"requests": [{"url": f"{base}/stuck"}], "timeout": "50ms"}
        if function is http_gather:
            result = await bench.run(
                function, {**stuck, "requests": [*stuck["requests"], {"url": f"{base}/quick"}]}
            )
            assert [one.get("error", {}).get("type") for one in result["results"]] == [
                "timeout",
                None,
            ]
        else:
            error = await failure(bench, function, stuck)
            assert (error.type, error.retryable) == ("all_failed", False)
            assert "took longer than" in error.message
        await eventually(lambda: gates.gone == ["stuck"])


@pytest.mark.parametrize("function", [http_gather, http_race])
async def test_a_cancelled_job_closes_its_connections(bench: Bench, function: Any) -> None:
    gates = Gates()
    async with serving(gates) as port:
        requests = [{"url": f"http://127.0.0.1:{port}/{name}"} for name in "abc"]
        running = asyncio.create_task(bench.run(function, {"requests": requests}))
        await eventually(lambda: len(gates.inside) == 3)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await eventually(lambda: sorted(gates.gone) == ["a", "b", "c"])


async def test_an_empty_gather_has_an_empty_result(bench: Bench) -> None:
    assert await bench.run(http_gather, {"requests": []}) == {"results": []}


async def test_the_first_success_wins_and_the_other_connections_are_closed(bench: Bench) -> None:
    gates = Gates()
    async with serving(gates) as port:
        base = f"http://127.0.0.1:{port}"
        urls = [
            f"{base}/a",
            f"{base}/b?status=500",
            f"{base}/c",
            "http://127.0.0.1:1/",
            f"{base}/d",
        ]
        running = asyncio.create_task(
            bench.run(http_race, {"requests": [{"url": url} for url in urls]})
        )
        await eventually(lambda: sorted(gates.inside) == ["a", "b", "c", "d"])
        gates.gate("b").set()
        await eventually(
            lambda: bench.recorder.progressed and bench.recorder.progressed[-1]["current"] == 2
        )
        gates.gate("c").set()
        result = await running
        await eventually(lambda: sorted(gates.gone) == ["a", "d"])
    assert (result["index"], result["status"], result["json"]) == (2, 200, {"path": "c"})
    jsonschema_rs.validator_for(RACE.entry.result_schema).validate(result)


async def test_a_race_without_a_success_lists_the_errors(bench: Bench) -> None:
    seen: list[str] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append(request.path)
        return await paths(request)

    async with serving(handler) as port:
        base = f"http://127.0.0.1:{port}"
        requests = [{"url": f"{base}/a?status=503&key=abc"}, {"url": f"{base}/b?status=404"}]
        error = await failure(bench, http_race, {"requests": requests})
    assert (error.type, error.retryable) == ("all_failed", False)
    assert error.message == (
        f"none of 2 requests succeeded: request 0: GET {base}/a answered 503;"
        f" request 1: GET {base}/b answered 404"
    )
    assert sorted(seen) == ["/a", "/b"]


ONE = {"url": "https://example.org/"}
REFUSED = [
    (GATHER, {}),
    (GATHER, {"requests": [ONE], "unknown": 1}),
    (GATHER, {"requests": [{**ONE, "unknown": 1}]}),
    (GATHER, {"requests": [{"url": "ftp://example.org/"}]}),
    (GATHER, {"requests": [ONE], "concurrency": 0}),
    (GATHER, {"requests": [ONE], "concurrency": 101}),
    (GATHER, {"requests": [ONE], "on_error": "ignore"}),
    (GATHER, {"requests": [ONE], "timeout": 0}),
    (GATHER, {"requests": [ONE], "timeout": "soon"}),
    (GATHER, {"requests": [ONE] * 10_001}),
    (RACE, {"requests": []}),
    (RACE, {"requests": [ONE] * 101}),
    (RACE, {"requests": [ONE], "concurrency": 1}),
]


@pytest.mark.parametrize(("task", "payload"), REFUSED)
def test_the_schema_and_the_worker_refuse_the_same(task: Any, payload: dict[str, Any]) -> None:
    assert not jsonschema_rs.validator_for(task.entry.payload_schema).is_valid(payload)
    with pytest.raises(ValidationError):
        task.signature.payload.validate_python(payload)


@pytest.mark.parametrize("timeout", [0.5, 3600, "30s", "250ms", "2h"])
def test_durations_are_accepted_by_both(timeout: Any) -> None:
    payload = {"requests": [ONE], "timeout": timeout}
    jsonschema_rs.validator_for(GATHER.entry.payload_schema).validate(payload)
    GATHER.signature.payload.validate_python(payload)


class Surprising(Names):
    """Fails for one name in a way that no part of the client expects."""

    async def resolve(self, host: str, *more: Any, **options: Any) -> Any:
        if host.startswith("surprise"):
            raise KeyError(host)
        return await super().resolve(host, *more, **options)


async def test_an_unexpected_exception_of_one_request_is_its_own_error(bench: Bench) -> None:
    settings = Settings(http_allow=LOOPBACK_NETWORKS)
    async with (
        serving(paths) as port,
        open_http(settings, resolver=Surprising(good=["127.0.0.1"])) as http,
    ):
        odd = Bench(replace(bench.resources, http=http), bench.pools)
        requests = [{"url": f"http://{name}.test:{port}/"} for name in ("surprise", "good")]
        results = (await odd.run(http_gather, {"requests": requests}))["results"]
        assert (results[0]["ok"], results[0]["error"]["type"]) == (False, "exception:KeyError")
        assert results[1]["json"] == {"path": "/"}
        assert (await odd.run(http_race, {"requests": requests}))["index"] == 1
        assert (await failure(odd, http_gather, {"requests": requests, "on_error": "fail"})).type
