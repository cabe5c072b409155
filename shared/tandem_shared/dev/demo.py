"""The demo of `tandem dev`: one job of each family on real input, over HTTP as any client does it.

Each job is announced by its task, shown with the curl lines that do the same, printed as its stream
comes, and its result checked against what Python itself says of the same input.
"""

import asyncio
import contextlib
import hashlib
import json
import pydoc_data
import re
import shlex
import sqlite3
import sys
import sysconfig
import time
import zoneinfo
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

TABLE_FILE = "demo.db"
JOB_LIMIT = 60.0  # seconds for one job of the demo
CATALOGUE_LIMIT = 30.0  # seconds until the API knows what the workers can do
SHOWN_ITEMS = 4  # output items of one job
SHOWN_WIDTH = 200  # characters of one line
LINE_MAX = 4 << 20  # bytes; an entry holds a result of at most 256 KiB

QUERY = (
    "SELECT region, count(*) AS zones, min(january) AS westmost, max(january) AS eastmost,"
    " sum(january <> july) AS with_summer_time FROM time_zones GROUP BY region ORDER BY zones DESC"
)


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the demo runs. `begun`: when `tandem dev` was started, of the monotonic clock."""

    url: str
    key: str | None
    data: Path
    connection: str  # the SQL connection that the workers have to `data`/TABLE_FILE
    tutorial: bool  # whether the workers know text.wordcount
    begun: float


class Unsuccessful(Exception):
    """A step of the demo did not go as it should; says how."""


async def run(setting: Setting, say: Callable[[str], None]) -> bool:
    """Run the demo; whether every job succeeded with the right result."""
    headers = {"Authorization": f"Bearer {setting.key}"} if setting.key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=JOB_LIMIT)
    async with aiohttp.ClientSession(
        setting.url, headers=headers, timeout=timeout, read_bufsize=LINE_MAX
    ) as client:
        show = Demo(setting, client, say)
        jobs = [show.request, show.query, show.hash, *([show.words] if setting.tutorial else [])]
        succeeded = 0
        for job in jobs:
            try:
                async with asyncio.timeout(JOB_LIMIT + CATALOGUE_LIMIT):
                    await job()
                succeeded += 1
            except Unsuccessful as error:
                say(f"  failed: {error}")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                say(f"  failed: {type(error).__name__}: {error}")
    say(f"{succeeded} of {len(jobs)} jobs succeeded")
    return succeeded == len(jobs)


class Demo:
    """The four jobs."""

    def __init__(
        self, setting: Setting, client: aiohttp.ClientSession, say: Callable[[str], None]
    ) -> None:
        self._setting = setting
        self._client = client
        self._say = say
        self._first_result: float | None = None

    async def request(self) -> None:
        """`http.request`: this API's own description."""
        result, _ = await self._job(
            "http.request", {"url": f"{self._setting.url}/openapi.json"}, "an HTTP request"
        )
        _check(result["status"], 200, "status")

    async def query(self) -> None:
        """`sql.query`: Python's time zones, from a table made of them."""
        path = self._setting.data / TABLE_FILE
        zones = await asyncio.to_thread(load_time_zones, path)
        what = f"a query of the {zones} time zones that Python knows, loaded into {path}"
        result, items = await self._job(
            "sql.query", {"connection": self._setting.connection, "sql": QUERY}, what
        )
        _check(sum(item["zones"] for item in items), zones, "zones in all rows")
        _check(result["row_count"], len(items), "row_count")

    async def hash(self) -> None:
        """`file.hash`: the Python that runs this, uploaded."""
        source, expected = await asyncio.to_thread(_python)
        reference = await self._upload("file.hash", source)
        result, _ = await self._job("file.hash", {"source": reference}, f"the hash of {source}")
        _check(result["sha256"], expected, "sha256")

    async def words(self) -> None:
        """`text.wordcount`, of the tutorial docs/examples/wordcount.py: what Python says of itself."""
        source, expected = await asyncio.to_thread(_text)
        reference = await self._upload("text.wordcount", source)
        result, _ = await self._job(
            "text.wordcount", {"source": reference}, f"the words of {source}"
        )
        _check(result["words"], expected, "words")

    async def _upload(self, task: str, source: Path) -> dict[str, Any]:
        self._say(f"{task}: its file first")
        self._curl("/v1/files", "-F", f"file=@{source}")
        with source.open("rb") as file:
            form = aiohttp.FormData()
            form.add_field(
                "file", file, filename=source.name, content_type="application/octet-stream"
            )
            async with self._client.post("/v1/files", data=form) as response:
                uploaded = await _good(response)
        self._say(f"  {_short(json.dumps(uploaded))}")
        return {"file": uploaded["id"]}

    async def _job(self, task: str, payload: dict[str, Any], what: str) -> tuple[Any, list[Any]]:
        """The result and the output items of a job that succeeded."""
        await self._known(task)
        body = json.dumps({"task": task, "payload": payload})
        self._say(f"{task}: {what}")
        self._curl("/v1/jobs", "-H", "Content-Type: application/json", "-d", body)
        begun = time.monotonic()
        first: float | None = None
        async with self._client.post(
            "/v1/jobs", json={"task": task, "payload": payload}
        ) as response:
            path = (await _good(response))["links"]["stream"]
        accept = {"Accept": "application/x-ndjson"}
        self._curl(path, "-N", "-H", "Accept: application/x-ndjson")
        items: list[Any] = []
        last: dict[str, Any] = {}
        async with self._client.get(path, headers=accept) as response:
            async for line in _lines(response):
                last = json.loads(line)
                if last["type"] == "output":
                    items.append(last["data"])
                if first is None and last["type"] in ("output", "end"):
                    first = time.monotonic()
                if last["type"] != "output" or len(items) <= SHOWN_ITEMS:
                    self._say(f"  {_short(line)}")
                elif len(items) == SHOWN_ITEMS + 1:
                    self._say("  … (more items)")
        if last.get("type") != "end" or first is None:
            raise Unsuccessful("the stream was cut off")
        job = last["data"]
        if job["state"] != "succeeded":
            raise Unsuccessful(f"{job['state']}: {json.dumps(job['error'])}")
        self._say(f"  result: {_short(json.dumps(job['result']))}")
        self._say(
            f"  first result after {(first - begun) * 1000:.0f} ms, done after {_ms_since(begun)}"
        )
        if self._first_result is None:
            self._first_result = first - self._setting.begun
            self._say(
                f"  the first job's was there {self._first_result:.1f} s after tandem dev was started"
            )
        return job["result"], items

    async def _known(self, task: str) -> None:
        # A worker shows up a moment before the API has read again what workers can do.
        try:
            async with asyncio.timeout(CATALOGUE_LIMIT):
                while True:
                    async with self._client.get(f"/v1/tasks/{task}") as response:
                        if response.ok:
                            return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Unsuccessful(f"no worker offers {task}") from None

    def _curl(self, path: str, *arguments: str) -> None:
        key = ' -H "Authorization: Bearer $TANDEM_API_KEY"' if self._setting.key else ""
        self._say(
            f"  $ curl -s {shlex.quote(self._setting.url + path)}{key} {shlex.join(arguments)}"
        )


def load_time_zones(path: Path) -> int:
    """Fill the table `time_zones` of the SQLite file with Python's time zones; their number. Blocks.

    Offsets from UTC are in hours, in January and in July of this year.
    """
    year = datetime.now(tz=zoneinfo.ZoneInfo("UTC")).year
    rows = []
    for name in sorted(zoneinfo.available_timezones()):
        zone = zoneinfo.ZoneInfo(name)
        january, july = (
            datetime(year, month, 1, tzinfo=zone).utcoffset() or timedelta() for month in (1, 7)
        )
        region = name.partition("/")[0] if "/" in name else "other"
        rows.append((name, region, january / timedelta(hours=1), july / timedelta(hours=1)))
    with contextlib.closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DROP TABLE IF EXISTS time_zones")
        connection.execute(
            "CREATE TABLE time_zones (name TEXT PRIMARY KEY, region TEXT, january REAL, july REAL)"
        )
        connection.executemany("INSERT INTO time_zones VALUES (?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
    return len(rows)


def _python() -> tuple[Path, str]:
    """The Python that runs this, and its SHA-256."""
    path = Path(sys.executable).resolve()
    with path.open("rb") as file:
        return path, hashlib.file_digest(file, "sha256").hexdigest()


def _text() -> tuple[Path, int]:
    """A text that comes with Python, and the number of its words as the tutorial counts them."""
    licence = Path(sysconfig.get_path("stdlib"), "LICENSE.txt")
    path = licence if licence.exists() else Path(pydoc_data.__file__).with_name("topics.py")
    words = re.findall(r"[\w'’]+", path.read_text(encoding="utf-8"))
    return path, sum(1 for word in words if word.strip("'’_"))


async def _good(response: aiohttp.ClientResponse) -> Any:
    body = await response.text()
    if not response.ok:
        raise Unsuccessful(f"{response.status} {_short(body)}")
    return json.loads(body)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    if not response.ok:
        await _good(response)
    while line := await response.content.readline():
        if text := line.decode().strip():  # an empty one says that the job still runs
            yield text


def _check(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise Unsuccessful(f"{what} is {found!r}, and should be {expected!r}")


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_WIDTH else f"{text[:SHOWN_WIDTH]}… ({len(text)} characters)"


def _ms_since(begun: float) -> str:
    return f"{(time.monotonic() - begun) * 1000:.0f} ms"
