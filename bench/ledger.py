"""How long one page of a large ledger takes, by filter.

    .venv/bin/python bench/ledger.py [--rows N] [--url sqlite:///path | postgres://…]

Fills an empty ledger with SQL, then requests pages by every filter: the first, one deep inside, and
filters that match little or nothing. Prints the median and the worst time. Without a URL it uses a
temporary SQLite file and a temporary PostgreSQL.
"""

import argparse
import asyncio
import sqlite3
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter

import asyncpg

from tandem_shared.dev.servers import die_with_parent
from tandem_shared.errors import Misconfigured
from tandem_shared.jobs.ids import id_prefix
from tandem_shared.jobs.states import State
from tandem_shared.ledger.database import Database
from tandem_shared.ledger.ledger import Ledger
from tandem_shared.ledger.query import JobFilter
from tests.postgres import postgres_server

FIRST_SECONDS = 1_790_000_000  # when the first job was submitted; the others follow every 10 ms
STATEMENT_ROWS = 20_000  # inserted by one statement
PAGE_ROWS = 50
ROUNDS = 7

# Of 1,000 jobs, 3 are not final and 12 failed. There are 40 tasks and 5 queues; every second job
# has a tag with one of 20,000 customers.
JOBS = """
WITH RECURSIVE n(i) AS (SELECT {low} UNION ALL SELECT i + 1 FROM n WHERE i < {high})
INSERT INTO tandem_jobs (id, tenant, task, queue, priority, state, stamp, attempt,
  max_attempts, submitted, due, began, ended, version, options, attempts, result, error, payload,
  words)
SELECT {id}, 'default', 'shop.task' || (i / 7 % 40), 'queue' || (i / 3 % 5), 'normal', {state},
  {us} + 5000, 1, 3, {us}, {us} / 1000, {us} + 1000,
  CASE WHEN i % 1000 < 997 THEN {us} + 5000 END, 1,
  '{{"timeout":30,"retry":{{"max_attempts":3}}}}', '1 1 2 succeeded host-1-abcdef' || {line},
  '{{"status":200,"rows":' || i || '}}', {error},
  '{{"customer":' || (i % 20000) || ',"items":[3,1,4,1,5]}}',
  {id} || ' shop.task' || (i / 7 % 40) || ' customer=' || (i % 20000)
    || CASE WHEN i % 1000 < 12 THEN ' card_declined no. ' || i ELSE '' END
FROM n
"""
ERROR = """CASE WHEN i % 1000 < 12
  THEN '{{"type":"card_declined","message":"no. ' || i || '","retryable":false,"attempt":1}}' END"""
STATE = """CASE WHEN i % 1000 < 12 THEN 'failed' WHEN i % 1000 < 30 THEN 'cancelled'
  WHEN i % 1000 < 997 THEN 'succeeded' WHEN i % 1000 = 997 THEN 'running'
  WHEN i % 1000 = 998 THEN 'queued' ELSE 'scheduled' END"""
TAGS = """
WITH RECURSIVE n(i) AS (SELECT {low} UNION ALL SELECT i + 1 FROM n WHERE i < {high})
INSERT INTO tandem_tags (tenant, tag, job)
SELECT 'default', 'customer=' || (i % 20000), {id} FROM n WHERE i % 2 = 0
"""
LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def sql(text: str, low: int, high: int, *, sqlite: bool) -> str:
    """The INSERT statement for these rows."""
    ms = f"({FIRST_SECONDS}000 + i * 10)" if sqlite else f"({FIRST_SECONDS}000::bigint + i * 10)"
    digit = "substr('{letters}', 1 + (({ms} >> {shift}) & 31), 1)"
    if not sqlite:
        digit = "substr('{letters}', 1 + (({ms} >> {shift}) & 31)::int, 1)"
    id = " || ".join(
        digit.format(letters=LETTERS, ms=ms, shift=shift) for shift in range(45, -1, -5)
    )
    return text.format(
        low=low, high=high, id=f"({id} || '0000bench00a')", us=f"({ms} * 1000)", state=STATE,
        error=ERROR.format(), line="char(10)" if sqlite else "chr(10)",
    )  # fmt: skip


def filters(rows: int) -> list[tuple[str, JobFilter, str | None]]:
    """(name, filter, the id below which the page starts) of each query."""
    end = FIRST_SECONDS + rows / 100
    deep = id_prefix(FIRST_SECONDS + rows / 200)
    day = int((end - rows / 400) * 1e6)
    return [
        ("all, first page", JobFilter(), None),
        ("all, deep page", JobFilter(), deep),
        ("state=failed", JobFilter(states=frozenset({State.FAILED})), None),
        ("state=failed, deep page", JobFilter(states=frozenset({State.FAILED})), deep),
        ("state=retrying (none)", JobFilter(states=frozenset({State.RETRYING})), None),
        ("task", JobFilter(task="shop.task7"), None),
        ("task, deep page", JobFilter(task="shop.task7"), deep),
        (
            "task, state=failed",
            JobFilter(task="shop.task7", states=frozenset({State.FAILED})),
            None,
        ),
        ("queue", JobFilter(queue="queue3"), None),
        (
            "queue, state=running",
            JobFilter(queue="queue3", states=frozenset({State.RUNNING})),
            None,
        ),
        ("queue and task", JobFilter(queue="queue3", task="shop.task3"), None),
        ("queue and task (none)", JobFilter(queue="queue2", task="shop.task3"), None),
        ("tag", JobFilter(tags=(("customer", "4712"),)), None),
        (
            "tag, state=failed",
            JobFilter(tags=(("customer", "4002"),), states=frozenset({State.FAILED})),
            None,
        ),
        ("tag (none)", JobFilter(tags=(("customer", "x"),)), None),
        ("since", JobFilter(since=day), None),
        ("since and until", JobFilter(since=day, until=day + 60_000_000), None),
        ("until, state=failed", JobFilter(until=day, states=frozenset({State.FAILED})), None),
        ("q, common", JobFilter(q="card_declined"), None),
        ("q and state=failed", JobFilter(q="declined", states=frozenset({State.FAILED})), None),
        ("q (none), one page", JobFilter(q="no such word"), None),
    ]


async def fill(url: str, rows: int) -> None:
    """Insert `rows` jobs and their tags, over a connection without timeouts."""
    sqlite = url.startswith("sqlite")
    texts = [
        sql(text, low, min(rows, low + STATEMENT_ROWS) - 1, sqlite=sqlite)
        for low in range(0, rows, STATEMENT_ROWS)
        for text in (JOBS, TAGS)
    ]
    if sqlite:
        await asyncio.to_thread(fill_sqlite, url.removeprefix("sqlite://"), [*texts, "ANALYZE"])
        return
    connection = await asyncpg.connect(url)
    try:
        for text in (*texts, "ANALYZE tandem_jobs", "ANALYZE tandem_tags"):
            await connection.execute(text)
    finally:
        await connection.close()


def fill_sqlite(path: str, texts: Sequence[str]) -> None:
    """Run the statements, each in a transaction."""
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        for text in texts:
            with connection:
                connection.execute(text)


async def measure(name: str, url: str, rows: int) -> None:
    """Fill the database, time every query, and print the table."""
    database = Database(url)
    ledger = Ledger(database)
    try:
        await database.open()
        start = perf_counter()
        await fill(url, rows)
        print(f"\n{name}: {rows:,} rows in {perf_counter() - start:.0f} s\n")
        print("| filter | found | median ms | worst ms |\n|---|---|---|---|")
        for label, job_filter, before in filters(rows):
            times = []
            for _ in range(ROUNDS):
                start = perf_counter()
                page = await ledger.find(job_filter, before=before, limit=PAGE_ROWS)
                times.append((perf_counter() - start) * 1000)
            cells = f"{len(page.records)} | {statistics.median(times):.1f} | {max(times):.1f}"
            print(f"| {label} | {cells} |", flush=True)
    finally:
        await database.close()


async def measure_both(root: Path, rows: int) -> None:
    """Measure a new SQLite file and a new PostgreSQL, both below `root`."""
    await measure("SQLite", f"sqlite://{root}/ledger.db", rows)
    try:
        server = await asyncio.to_thread(postgres_server, root)
    except Misconfigured as error:
        print(error)
        return
    process = subprocess.Popen(  # noqa: ASYNC220 - starting it does not block
        die_with_parent(server.argv), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, process_group=0,
    )  # fmt: skip
    try:
        while not await server.ready():  # noqa: ASYNC110 - another process cannot set an event
            await asyncio.sleep(0.1)
        await measure("PostgreSQL", server.url, rows)
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description="Measures the pages of a large ledger.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--url", help="an empty database; by default a temporary SQLite and PostgreSQL"
    )
    options = parser.parse_args()
    if options.url:
        asyncio.run(measure(options.url.partition(":")[0], options.url, options.rows))
        return
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as directory:
        root = Path(directory)
        root.chmod(0o711)  # PostgreSQL may run as another user and must reach its data
        asyncio.run(measure_both(root, options.rows))


if __name__ == "__main__":
    main()
