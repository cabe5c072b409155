"""Every HTTP task is guarded: none calls a special address in any spelling or redirect."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tandem_worker.errors import TaskError
from tandem_worker.tasks.http.download import download as http_download
from tandem_worker.tasks.http.gather import gather as http_gather
from tandem_worker.tasks.http.gather import race as http_race
from tandem_worker.tasks.http.webhook import webhook as http_webhook
from tests.worker.bench import Bench, open_bench
from tests.worker.connectors.http.servers import SPELLINGS, serving

ONLY = "127.0.0.2"  # the only allowed address here


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, http_allow=(ONLY,)) as opened:
        yield opened


async def each(bench: Bench, url: str) -> dict[str, tuple[str, bool, str]]:
    """The errors of all tasks that call the URL: type, retryable, message."""
    payloads: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
        ("download", http_download, {"url": url}),
        ("gather", http_gather, {"requests": [{"url": url}], "on_error": "fail"}),
        ("race", http_race, {"requests": [{"url": url}]}),
        ("webhook", http_webhook, {"url": url, "type": "a", "data": 1}),
    ]
    became = {}
    for name, function, payload in payloads:
        with pytest.raises(TaskError) as caught:
            await bench.run(function, payload)
        became[name] = (caught.value.type, caught.value.retryable, caught.value.message)
    return became


@pytest.mark.parametrize("host", SPELLINGS)
async def test_no_task_reaches_a_special_address(bench: Bench, host: str) -> None:
    reached: list[str] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        reached.append(request.path)
        return web.Response()

    async with serving(handler) as port:
        became = await each(bench, f"http://{host}:{port}/secret?key=abc")
    assert reached == []
    assert {name: one[:2] for name, one in became.items()} == {
        "download": ("address_refused", False),
        "gather": ("address_refused", False),
        "race": ("all_failed", False),
        "webhook": ("address_refused", False),
    }
    assert "may not call" in became["race"][2]
    assert not any("abc" in message for _, _, message in became.values())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_task_follows_a_redirect_to_a_special_address(bench: Bench, status: int) -> None:
    reached: list[str] = []

    async def inner(request: web.BaseRequest) -> web.Response:
        reached.append(request.path)
        return web.Response()

    async with serving(inner) as private:

        async def outer(request: web.BaseRequest) -> web.Response:
            return web.Response(
                status=status, headers={"Location": f"http://127.0.0.1:{private}/inner"}
            )

        async with serving(outer, ONLY) as public:
            became = await each(bench, f"http://{ONLY}:{public}/")
    assert reached == []
    types = {name: one[:2] for name, one in became.items()}
    assert types.pop("webhook") == ("http_status", False)  # it does not follow redirects
    assert types == {
        "download": ("address_refused", False),
        "gather": ("address_refused", False),
        "race": ("all_failed", False),
    }
