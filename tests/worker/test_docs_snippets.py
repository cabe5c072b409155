"""Every Python snippet of docs/writing-tasks.md works when pasted into a file."""

import gzip
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from tests.worker.test_http import serving
from worker import Permanent, Retry
from worker.errors import TaskError
from worker.task import load_tasks, of
from worker.testing import Recorder, open_bench, run, upload

PAGE = Path(__file__).parents[2] / "docs" / "writing-tasks.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)

Paste = Callable[[str], ModuleType]


@pytest.fixture
def paste(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paste]:
    """Imports the one snippet that has the given words, from a file of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    pasted: list[str] = []

    def one(words: str) -> ModuleType:
        (snippet,) = (text for text in SNIPPETS if words in text)
        name = f"pasted_{len(sys.modules)}"
        (tmp_path / f"{name}.py").write_text(snippet)
        pasted.append(name)
        return importlib.import_module(name)

    yield one
    for name in pasted:
        del sys.modules[name]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_worker_finds_the_tasks_of_each(snippet: str, paste: Paste) -> None:
    module = paste(snippet)
    names = set(re.findall(r'^@task\("([^"]+)"', snippet, re.MULTILINE))
    assert names
    assert names <= load_tasks([module.__name__]).keys()


async def test_the_first_one_greets(paste: Paste) -> None:
    greet = paste('@task("greet"').greet
    seen = Recorder()
    assert await run(greet, {"name": "Ada", "times": 2}, sink=seen) == "Hello, Ada"
    assert seen.items == [{"greeting": 1}, {"greeting": 2}]
    assert seen.progressed[-1] == {"current": 2, "total": 2, "message": None}
    assert seen.lines == [{"level": "info", "message": "greeted", "name": "Ada"}]
    with pytest.raises(ValidationError):
        await run(greet, {"times": 2})
    assert of(greet).entry.summary == "Greet somebody, as often as asked."
    assert of(greet).entry.payload_schema["required"] == ["name"]


async def test_the_places_where_code_runs(paste: Paste) -> None:
    module = paste("numbers.primes")

    async def streamed(task: Callable[..., Any], payload: Any) -> list[Any]:
        seen = Recorder()
        assert await run(task, payload, sink=seen) is None
        return seen.items

    assert await streamed(module.count, 3) == [0, 1, 2]
    assert await streamed(module.squares, [2, 3]) == [{"number": 2, "square": 4}, {"number": 3, "square": 9}]
    assert await run(module.primes, 20) == [2, 3, 5, 7, 11, 13, 17, 19]


async def test_the_errors(paste: Paste) -> None:
    price = paste("price.find").price
    assert await run(price, {"item": "book"}) == 12
    with pytest.raises(Permanent, match="no item is called cup"):
        await run(price, {"item": "cup"})
    assert of(price).retry.cap == 60


async def test_the_files(paste: Paste) -> None:
    module = paste('@task("compress")')
    async with open_bench() as resources:
        seen = Recorder()
        source = await upload(resources, b"as it was" * 100, "plain.txt")
        packed = await run(module.compress, {"source": source}, resources=resources, sink=seen)
    assert packed.name == "packed.gz"
    assert gzip.decompress(seen.files["packed.gz"]) == b"as it was" * 100


async def test_the_web(paste: Paste) -> None:
    weather = paste('@task("weather.read"').weather
    asked: list[str] = []

    async def station(request: web.BaseRequest) -> web.Response:
        asked.append(request.path_qs)
        known = {"/oslo": (200, {"temperature": 4.5}), "/busy": (503, {}), "/long": (200, "x" * 200_000)}
        status, body = known.get(request.path, (404, {}))
        return web.json_response(body, status=status)

    async with serving(station) as port, open_bench(http_allow="127.0.0.0/8") as resources:
        base = f"http://127.0.0.1:{port}"
        assert await run(weather, {"url": f"{base}/oslo"}, resources=resources) == 4.5
        for path, error in (("none", Permanent), ("busy", Retry), ("long", TaskError)):
            with pytest.raises(error):
                await run(weather, {"url": f"{base}/{path}"}, resources=resources)
    assert asked[0] == "/oslo?unit=celsius"
    async with open_bench(http_allow="") as resources:
        with pytest.raises(TaskError, match="may call"):
            await run(weather, {"url": base}, resources=resources)


async def test_the_test(paste: Paste) -> None:
    await paste("lines.longest").test_the_longest_line_is_found()
