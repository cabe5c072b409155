"""The demo of `tandem dev`: one job of each family on real input, through the Python client.

Each job is shown with the curl lines that do the same and with the entries of its stream, and its
result is checked against what Python computes from the same input.
"""

import asyncio
import contextlib
import hashlib
import pydoc_data
import re
import shlex
import sqlite3
import sys
import sysconfig
import time
import zoneinfo
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from tandem_jobs.client.client import AsyncClient
from tandem_jobs.client.errors import Problem
from tandem_jobs.client.models import Entry, Job
from tandem_shared.dev.plan import TABLE_FILE, Plan
from tandem_shared.errors import TandemError

JOB_SECONDS = 60.0  # for one job
CATALOGUE_SECONDS = 30.0  # until the API knows the workers' tasks
POLL_SECONDS = 0.05
MAX_SHOWN_ITEMS = 4  # output items of one job
MAX_LINE_CHARS = 200

QUERY = (
    "SELECT region, count(*) AS zones, min(january) AS westmost, max(january) AS eastmost,"
    " sum(january <> july) AS with_summer_time FROM time_zones GROUP BY region ORDER BY zones DESC"
)


class WrongResult(Exception):
    """A job of the demo returned something other than Python computes."""


async def run(plan: Plan, started: float, print_line: Callable[[str], None]) -> bool:
    """Run the demo; whether every job succeeded with the right result.

    `started`: when `tandem dev` was started, on the monotonic clock.
    """
    async with AsyncClient(plan.url, plan.key, patience=JOB_SECONDS) as client:
        demo = Demo(plan, started, client, print_line)
        jobs = [demo.request, demo.query, demo.hash, *([demo.words] if plan.tutorial else [])]
        succeeded = 0
        for job in jobs:
            try:
                async with asyncio.timeout(JOB_SECONDS + CATALOGUE_SECONDS):
                    await job()
                succeeded += 1
            except (WrongResult, TandemError, TimeoutError, OSError) as error:
                print_line(f"  failed: {str(error) or type(error).__name__}")
    print_line(f"{succeeded} of {len(jobs)} jobs succeeded")
    return succeeded == len(jobs)


class Demo:
    """The four jobs."""

    def __init__(
        self, plan: Plan, started: float, client: AsyncClient, print_line: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._started = started
        self._client = client
        self._print = print_line
        self._has_result = False

    async def request(self) -> None:
        """`http.request`: this API's own description."""
        payload = {"url": f"{self._plan.url}/openapi.json"}
        result, _ = await self._run("http.request", payload, "an HTTP request")
        _check(result["status"], 200, "status")

    async def query(self) -> None:
        """`sql.query`: Python's time zones, from a table made of them."""
        path = self._plan.data / TABLE_FILE
        zones = await asyncio.to_thread(load_time_zones, path)
        payload = {"connection": self._plan.connection, "sql": QUERY}
        what = f"a query of the {zones} time zones that Python knows, loaded into {path}"
        result, items = await self._run("sql.query", payload, what)
        _check(sum(item["zones"] for item in items), zones, "zones in all rows")
        _check(result["row_count"], len(items), "row_count")

    async def hash(self) -> None:
        """`file.hash`: the running Python's executable, uploaded."""
        await self._run_on_file("file.hash", "hash", "sha256", _python)

    async def words(self) -> None:
        """`text.wordcount` of docs/examples/wordcount.py: a text that comes with Python."""
        await self._run_on_file("text.wordcount", "words", "words", _text)

    async def _run_on_file(
        self, task: str, what: str, field: str, sample: Callable[[], tuple[Path, object]]
    ) -> None:
        """Upload a file, run the task on it and check a field of its result.

        `sample` returns the path of the file and the expected value of the field.
        """
        source, expected = await asyncio.to_thread(sample)
        self._print(f"{task}: uploading its input")
        self._curl("/v1/files", "-F", f"file=@{source}")
        file = await self._client.upload(source)
        self._print(f"  {_short(_json(file))}")
        result, _ = await self._run(task, {"source": file.reference}, f"the {what} of {source}")
        _check(result[field], expected, field)

    async def _run(self, task: str, payload: dict[str, Any], what: str) -> tuple[Any, list[Any]]:
        """The result and the output items of a job."""
        self._print(f"{task}: {what}")
        body = _json({"task": task, "payload": payload})
        self._curl("/v1/jobs", "-H", "Content-Type: application/json", "-d", body)
        job, submitted = await self._submit(task, payload)
        accept = "Accept: application/x-ndjson"
        self._curl(f"/v1/jobs/{job.id}/stream", "-N", "-H", accept)
        items: list[Any] = []
        arrivals: list[float] = []
        async for entry in self._client.stream(job):
            if entry.type in ("output", "end"):
                arrivals.append(time.monotonic())
            if entry.type == "output":
                items.append(entry.data)
            self._show_entry(entry, len(items))
        result = await self._client.result(job)
        self._print(f"  result: {_short(_json(result))}")
        first, last = (1000 * (moment - submitted) for moment in (arrivals[0], arrivals[-1]))
        self._print(f"  first result after {first:.0f} ms, done after {last:.0f} ms")
        if not self._has_result:
            self._has_result = True
            passed = arrivals[0] - self._started
            self._print(f"  this first result came {passed:.1f} s after the start of tandem dev")
        return result, items

    async def _submit(self, task: str, payload: dict[str, Any]) -> tuple[Job, float]:
        """The job and when it was submitted, after a new worker's tasks have reached the API."""
        deadline = time.monotonic() + CATALOGUE_SECONDS
        while True:
            submitted = time.monotonic()
            try:
                return await self._client.submit(task, payload), submitted
            except Problem as problem:
                if problem.type != "/problems/unknown-task" or submitted > deadline:
                    raise
            await asyncio.sleep(POLL_SECONDS)

    def _show_entry(self, entry: Entry, count: int) -> None:
        if entry.type != "output" or count <= MAX_SHOWN_ITEMS:
            self._print(f"  {entry.type}: {_short(bytes(entry.raw).decode())}")
        elif count == MAX_SHOWN_ITEMS + 1:
            self._print("  … (more items)")

    def _curl(self, path: str, *arguments: str) -> None:
        key = ' -H "Authorization: Bearer $TANDEM_API_KEY"' if self._plan.key else ""
        url = shlex.quote(self._plan.url + path)
        self._print(f"  $ curl -s {url}{key} {shlex.join(arguments)}")


def load_time_zones(path: Path) -> int:
    """Fill the table `time_zones` of the SQLite file; the number of Python's time zones. Blocks.

    `january` and `july` are the offsets from UTC in those months of this year, in hours.
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
    """The executable of the running Python, and its SHA-256."""
    path = Path(sys.executable).resolve()
    with path.open("rb") as file:
        return path, hashlib.file_digest(file, "sha256").hexdigest()


def _text() -> tuple[Path, int]:
    """A text that comes with Python, and its number of words as the tutorial counts them."""
    licence = Path(sysconfig.get_path("stdlib"), "LICENSE.txt")
    path = licence if licence.exists() else Path(pydoc_data.__file__).with_name("topics.py")
    words = re.findall(r"[\w'’]+", path.read_text(encoding="utf-8"))
    return path, sum(1 for word in words if word.strip("'’_"))


def _check(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise WrongResult(f"{what} is {found!r}, expected {expected!r}")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _short(text: str) -> str:
    if len(text) <= MAX_LINE_CHARS:
        return text
    return f"{text[:MAX_LINE_CHARS]}… ({len(text)} characters)"
