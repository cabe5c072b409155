"""Every Python snippet of docs/writing-tasks.md works when pasted into a file."""

import asyncio
import csv
import gzip
import importlib
import io
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from PIL import ExifTags, Image, ImageChops, ImageStat
from pydantic import ValidationError

from tandem_worker.errors import Permanent, Retry, TaskError
from tandem_worker.jobs.locks import LocalLocks
from tandem_worker.loader import load_tasks
from tandem_worker.task import task_of
from tandem_worker.testing import Recorder, open_bench, run, upload
from tests.worker.connectors.http.servers import serving
from tests.worker.connectors.sql.databases import Database

PAGE = Path(__file__).parents[2] / "docs" / "writing-tasks.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)

Paste = Callable[[str], ModuleType]


@pytest.fixture
def paste(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paste]:
    """Import the one snippet that contains the given words, from a new file."""
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
    assert task_of(greet).entry.summary == "Greet somebody, once or several times."
    assert task_of(greet).entry.payload_schema["required"] == ["name"]


async def test_the_places_where_code_runs(paste: Paste) -> None:
    module = paste("numbers.primes")

    async def streamed(task: Callable[..., Any], payload: Any) -> list[Any]:
        seen = Recorder()
        assert await run(task, payload, sink=seen) is None
        return seen.items

    assert await streamed(module.count, 3) == [0, 1, 2]
    assert await streamed(module.squares, [2, 3]) == [
        {"number": 2, "square": 4},
        {"number": 3, "square": 9},
    ]
    assert await run(module.primes, 20) == [2, 3, 5, 7, 11, 13, 17, 19]


async def test_the_errors(paste: Paste) -> None:
    price = paste("price.find").price
    assert await run(price, {"item": "book"}) == 12
    with pytest.raises(Permanent, match="no item is called cup"):
        await run(price, {"item": "cup"})
    assert task_of(price).retry.cap == 60


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
        known = {
            "/oslo": (200, {"temperature": 4.5}),
            "/busy": (503, {}),
            "/long": (200, "x" * 200_000),
        }
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
        with pytest.raises(TaskError, match="may not call"):
            await run(weather, {"url": base}, resources=resources)


async def test_the_steps(paste: Paste) -> None:
    book = paste('@task("seat.book"').book
    seen = Recorder()
    first = await run(book, ["A1", "B2"], sink=seen)
    again = await run(book, ["A1", "B2", "C3"], sink=seen, attempt=2)
    assert again[:2] == first
    assert [(one.seat, len(one.number)) for one in again] == [("A1", 36), ("B2", 36), ("C3", 36)]
    assert seen.steps["reserve C3"] == {"seat": "C3", "number": again[2].number}


async def test_the_locks(paste: Paste, tmp_path: Path) -> None:
    set_stock = paste('@task("stock.set"').set_stock
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as shop, shop:
        shop.execute("CREATE TABLE stock (item TEXT PRIMARY KEY, amount INTEGER, fence INTEGER)")
        shop.execute("CREATE TABLE count (item TEXT, amount INTEGER)")
        shop.execute("INSERT INTO stock VALUES ('cup', 0, 3)")
    locks = LocalLocks()
    async with open_bench(sql={"shop": f"sqlite://{path}?mode=rw"}) as resources:
        for _ in range(3):
            with pytest.raises(Retry, match="a later holder"):
                await run(set_stock, {"item": "cup", "amount": 9}, resources=resources, locks=locks)
        setting = (
            run(set_stock, {"item": "cup", "amount": n}, resources=resources, locks=locks)
            for n in (5, 6)
        )
        assert await asyncio.gather(*setting) == [4, 5]
    with closing(sqlite3.connect(path)) as shop:
        assert shop.execute("SELECT * FROM stock").fetchall() == [("cup", 6, 5)]
        assert shop.execute("SELECT * FROM count").fetchall() == [("cup", 5), ("cup", 6)]


async def test_the_thumbnail(paste: Paste) -> None:
    thumbnail = paste('@task("image.thumbnail"').thumbnail
    photo = Image.effect_mandelbrot((300, 400), (-2, -1, 1, 1), 50)
    data = io.BytesIO()
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # as cameras mark a picture that lies on its side
    photo.save(data, "JPEG", exif=turned)
    async with open_bench() as resources:
        seen = Recorder()
        source = await upload(resources, data.getvalue(), "photo.jpg")
        made = await run(thumbnail, {"image": source, "width": 100}, resources=resources, sink=seen)
        assert (made.name, made.content_type) == ("thumbnail.png", "image/png")
        with Image.open(io.BytesIO(seen.files["thumbnail.png"])) as small:
            assert (small.format, small.size) == ("PNG", (100, 75))
            wanted = photo.transpose(Image.Transpose.ROTATE_270).resize((100, 75)).convert("RGB")
            difference = ImageChops.difference(small.convert("RGB"), wanted)
            assert ImageStat.Stat(difference).mean < [8.0] * 3
        text = await upload(resources, b"no image", "photo.jpg")
        with pytest.raises(Permanent, match="the file is not an image"):
            await run(thumbnail, {"image": text}, resources=resources)


async def test_the_report(paste: Paste, database: Database) -> None:
    report = paste('@task("sales.report"').report
    await database.rows("CREATE TABLE sale (city text, day date, amount integer)")
    await database.rows(
        "INSERT INTO sale VALUES ('Oslo', '2030-01-01', 1), ('Oslo', '2030-01-02', 2),"
        " ('Bern', '2029-12-31', 7), ('Rome, Italy', '2030-01-02', 40),"
        " ('Rome, Italy', '2030-01-03', 2)"
    )
    async with open_bench(sql={"shop": database.url}) as resources:
        seen = Recorder()
        made = await run(report, {"since": "2030-01-02"}, resources=resources, sink=seen)
    assert made.content_type == "text/csv"
    assert list(csv.reader(io.StringIO(seen.files["sales.csv"].decode()))) == [
        ["city", "total"],
        ["Rome, Italy", "42"],
        ["Oslo", "2"],
    ]
    assert seen.progressed[-1]["current"] == 2


async def test_the_fan_out(paste: Paste) -> None:
    send_all = paste('@task("invitations.send"').send_all
    asked: list[tuple[str, str]] = []
    full = {"Bo"}

    async def post(request: web.BaseRequest) -> web.Response:
        person = (await request.json())["to"]
        asked.append((person, request.headers["Idempotency-Key"]))
        return web.Response(status=503 if person in full else 200, text=f"receipt {len(asked)}")

    async with serving(post) as port, open_bench(http_allow="127.0.0.0/8") as resources:
        payload = {"url": f"http://127.0.0.1:{port}/", "people": ["Ada", "Bo", "Cy", "Ada"]}
        seen = Recorder()
        with pytest.raises(Retry, match="the invitation of Bo was answered 503"):
            await run(send_all, payload, resources=resources, sink=seen, job_id="J")
        assert seen.progressed[-1] == {"current": 2, "total": 3, "message": "invited"}
        assert set(seen.steps) == {"invite Ada", "invite Cy"}
        full.clear()
        sent = await run(send_all, payload, resources=resources, sink=seen, job_id="J", attempt=2)
    assert sorted(asked) == [("Ada", "J Ada"), ("Bo", "J Bo"), ("Bo", "J Bo"), ("Cy", "J Cy")]
    assert [(one.person, one.number[:8]) for one in sent] == [
        (name, "receipt ") for name in ("Ada", "Bo", "Cy")
    ]
    assert sent[1].number == "receipt 4"


async def test_the_test(paste: Paste) -> None:
    await paste("lines.longest").test_the_longest_line_is_found()
