"""The ledger on SQLite and PostgreSQL: rows only get newer, lists are complete, old rows expire."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem_shared.errors import Misconfigured, Unavailable
from tandem_shared.jobs.ids import id_prefix, new_id
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.states import FINAL, State
from tandem_shared.ledger.database import Database
from tandem_shared.ledger.ledger import Ledger, open_ledger
from tandem_shared.ledger.query import JobFilter, Query
from tandem_shared.ledger.rows import COLUMNS, row_from_values
from tandem_shared.settings import load_settings
from tests.shared.ledger.rows import BEGAN, facts, many


@pytest.fixture
async def ledger(any_ledger_url: str) -> AsyncIterator[Ledger]:
    async with open_ledger(load_settings(database_url=any_ledger_url)) as ledger:
        yield ledger


async def find_all(ledger: Ledger, wanted: JobFilter, limit: int = 7) -> list[Record]:
    """All pages of a list."""
    page = await ledger.find(wanted, limit=limit)
    found = page.records
    while page.next is not None:
        page = await ledger.find(wanted, before=page.next, limit=limit)
        assert len(page.records) <= limit
        found += page.records
    return found


async def test_a_job_comes_back_as_it_was_written(ledger: Ledger) -> None:
    id = new_id()
    attempts = (
        f"1 {BEGAN} {BEGAN + 5} failed host-1-ab\n2 {BEGAN + 9} {BEGAN + 10} succeeded host-2-cd\n"
    )
    values = facts(
        State.SUCCEEDED,
        BEGAN + 10,
        result='{"a": "\\u0000 ü"}',
        attempts=attempts,
        run=12,
        cancel=BEGAN + 3,
        tags={"customer": "17"},
        progress='{"current": 1}',
        files='[{"name": "x"}]',
        began=BEGAN + 9,
        ck="k",
        cl=2,
    )
    await ledger.save([row_from_values(id, values)])
    record = await ledger.get(id, tenant="default")
    assert record is not None
    assert (record.state, record.stamp, record.ended) == (State.SUCCEEDED, BEGAN + 10, BEGAN + 10)
    assert [(one.outcome, one.worker) for one in record.attempts] == [
        ("failed", "host-1-ab"),
        ("succeeded", "host-2-cd"),
    ]
    assert record.result == '{"a": "\\u0000 ü"}'.encode()
    assert (record.scheduled_for, record.cancel, record.files) == (
        0.012,
        BEGAN + 3,
        b'[{"name": "x"}]',
    )
    assert record.options.tags == {"customer": "17"}
    assert await ledger.payload(id, tenant="default") == b'{"n": 1}'
    assert await ledger.get(id, tenant="acme") is None
    assert await ledger.payload(id, tenant="acme") is None
    assert await ledger.get("unknown", tenant="default") is None


async def test_texts_with_nul_are_stored(ledger: Ledger) -> None:
    id = new_id()
    values = facts(
        State.FAILED, tags={"a\0b": "c\0"}, error='{"type":"x","message":"a\\u0000b"}', token="\0"
    )
    await ledger.save([row_from_values(id, values)])
    assert [
        one.id for one in (await ledger.find(JobFilter(tags=(("a\0b", "c\0"),)), limit=5)).records
    ] == [id]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
async def test_any_order_and_repetition_of_batches_gives_the_same_rows(
    ledger: Ledger, data: st.DataObject
) -> None:
    states = [State.QUEUED, State.RUNNING, State.RETRYING, State.RUNNING, State.SUCCEEDED]
    lives = {new_id(): data.draw(st.integers(1, len(states))) for _ in range(3)}
    versions = [(id, number) for id, length in lives.items() for number in range(length)]
    order = data.draw(st.permutations(versions)) + data.draw(
        st.lists(st.sampled_from(versions), max_size=6)
    )
    at = 0
    while at < len(order):
        size = data.draw(st.integers(1, 4))
        # A batch contains a job once, as of when the batch was read.
        batch = dict(order[at : at + size])
        await ledger.save(
            [
                row_from_values(id, facts(states[number], BEGAN + number, tags={"n": id}))
                for id, number in batch.items()
            ]
        )
        at += size
        missed = [one for one in order[at - size : at] if batch[one[0]] != one[1]]
        await asyncio.gather(
            *(ledger.save([row_from_values(id, facts(states[n], BEGAN + n))]) for id, n in missed)
        )
    for id, length in lives.items():
        record = await ledger.get(id, tenant="default")
        assert record is not None
        assert (record.state, record.stamp) == (states[length - 1], BEGAN + length - 1)


FILTERS = [
    JobFilter(),
    JobFilter(tenant="acme"),
    JobFilter(tenant="unknown"),
    JobFilter(states=frozenset({State.FAILED})),
    JobFilter(states=FINAL),
    JobFilter(task="a.one"),
    JobFilter(task="a.one", states=frozenset({State.QUEUED, State.RUNNING})),
    JobFilter(queue="mail"),
    JobFilter(queue="mail", states=frozenset({State.SUCCEEDED})),
    JobFilter(queue="mail", task="b"),
    JobFilter(tags=(("customer", "3"),)),
    JobFilter(tags=(("customer", "3"), ("odd", "ja"))),
    JobFilter(tags=(("customer", "3"),), states=FINAL, task="b", queue="default"),
    JobFilter(since=BEGAN + 100_000_000),
    JobFilter(until=BEGAN + 100_000_000, queue="mail"),
    JobFilter(since=BEGAN + 50_000_000, until=BEGAN + 50_000_001),
    JobFilter(tags=(("odd", "nein"),), since=BEGAN + 20_000_000, until=BEGAN + 200_000_000),
    JobFilter(q="no. 1"),
    JobFilter(q="100%_of!it", states=frozenset({State.FAILED})),
    JobFilter(q="100__of"),
    JobFilter(q="customer=4"),
    JobFilter(q="a.o"),
]


@pytest.mark.parametrize("scan_rows", [(5, 11), (500,)])
async def test_every_filter_finds_the_jobs_that_match_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, scan_rows: tuple[int, ...]
) -> None:
    # Either many scans per list, or one.
    monkeypatch.setattr("tandem_shared.ledger.ledger.SCAN_ROWS", scan_rows)
    rows = many(300)
    await ledger.save(rows)
    jobs = [
        record
        for one in rows
        if (record := await ledger.get(one.id, tenant=one.tenant)) is not None
    ]
    assert len(jobs) == 300
    for wanted in FILTERS:
        expected = sorted((one.id for one in jobs if wanted.matches(one)), reverse=True)
        assert expected or wanted in (JobFilter(tenant="unknown"), JobFilter(q="100__of"))
        assert [one.id for one in await find_all(ledger, wanted)] == expected, wanted


async def test_a_page_is_stable_while_new_jobs_arrive(ledger: Ledger) -> None:
    rows = many(30)
    await ledger.save(rows[:20])
    first = await ledger.find(JobFilter(), limit=5)
    await ledger.save(rows[20:])
    second = await ledger.find(JobFilter(), before=first.next, limit=5)
    ids = sorted((one.id for one in rows[:20] if one.tenant == "default"), reverse=True)
    assert [one.id for one in first.records + second.records] == ids[:10]


async def test_a_slow_list_ends_its_page_early(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_shared.ledger.ledger.SCAN_ROWS", (10,))
    monkeypatch.setattr("tandem_shared.ledger.ledger.SEARCH_SECONDS", 0.0)
    await ledger.save(many(100))
    page = await ledger.find(JobFilter(q="no such word"), limit=5)
    assert (page.records, page.next is None) == ([], False)
    assert await find_all(ledger, JobFilter(q="no such word")) == []


PLANS = [
    (JobFilter(), "tandem_jobs_state"),
    (JobFilter(states=frozenset({State.FAILED})), "tandem_jobs_state"),
    (JobFilter(task="a.one"), "tandem_jobs_task"),
    (JobFilter(queue="mail", states=FINAL), "tandem_jobs_queue"),
    (JobFilter(tags=(("customer", "3"),)), "tandem_tags_tag"),
    (JobFilter(since=BEGAN + 10_000_000, until=BEGAN + 900_000_000), "tandem_jobs_state"),
    (JobFilter(q="card"), "tandem_jobs_state"),
]


async def test_no_list_reads_the_whole_table(ledger: Ledger) -> None:
    await ledger.save(many(500))
    # Forty copies of each, so that PostgreSQL plans for a large table.
    columns = ", ".join((*COLUMNS, "payload", "words"))
    text = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)"
        f" INSERT INTO tandem_jobs (id, {columns})"
        f" SELECT id || 'x' || i, {columns} FROM tandem_jobs, n"
    )
    await ledger.database.write([(text, [()])])
    if not ledger.database.sqlite:
        await ledger.database.write([("ANALYZE tandem_jobs", [()]), ("ANALYZE tandem_tags", [()])])
    explain = "EXPLAIN QUERY PLAN " if ledger.database.sqlite else "EXPLAIN "
    for wanted, index in PLANS:
        text, values = Query(wanted, ("j.id", "j.state")).page(id_prefix(BEGAN / 1e6 + 400), 51, 51)
        plan = "\n".join(
            str(line[-1]) for line in await ledger.database.read(explain + text, values)
        )
        assert index in plan, plan
        assert "Seq Scan" not in plan, plan
        assert "Backward using tandem_jobs_pkey" not in plan, plan
        assert "SCAN tandem" not in plan, plan


async def test_final_jobs_expire_by_state_and_age(ledger: Ledger) -> None:
    rows = many(200)
    await ledger.save(rows)
    records = {one.id: await ledger.get(one.id, tenant=one.tenant) for one in rows}
    expired = {
        id
        for id, one in records.items()
        if one is not None and one.state in (State.SUCCEEDED, State.CANCELLED)
    }
    # These jobs end in 2027, so only a negative age makes them old.
    keep = dict.fromkeys((State.SUCCEEDED, State.CANCELLED), -1e9)
    removed = [await ledger.expire({State.SUCCEEDED: 0.0, State.CANCELLED: 0.0}, now=time.time())]
    assert removed == [0]
    while found := await ledger.expire({**keep, State.RUNNING: -1e9}, limit=13, now=time.time()):
        assert found <= 13
        removed.append(found)
    assert sum(removed) == len(expired)
    left = {one.id async for one, _ in ledger.export()}
    assert left == set(records) - expired
    assert {
        tag[0] for tag in await ledger.database.read("SELECT DISTINCT job FROM tandem_tags")
    } <= left


async def test_export_yields_jobs_oldest_first_by_time_and_state(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_shared.ledger.ledger.EXPORT_ROWS", 7)
    rows = many(60)
    await ledger.save(random.Random(2).sample(rows, 60))
    assert [one.id async for one, _ in ledger.export()] == [one.id for one in rows]
    some = [
        (one.state, payload)
        async for one, payload in ledger.export(
            since=BEGAN / 1e6 + 10, until=BEGAN / 1e6 + 50, states=[State.FAILED, State.QUEUED]
        )
    ]
    assert some
    assert dict(some) == {State.FAILED: b'{"n": 1}', State.QUEUED: None}
    between = [
        one.id async for one, _ in ledger.export(since=BEGAN / 1e6 + 10, until=BEGAN / 1e6 + 50)
    ]
    assert between == [one.id for one in rows[10:50]]


async def test_concurrent_starts_migrate_once(any_ledger_url: str) -> None:
    async with AsyncExitStack() as stack:
        databases = [Database(any_ledger_url) for _ in range(4)]
        for one in databases:
            stack.push_async_callback(one.close)
        await asyncio.gather(*(one.open() for one in databases))
        ledgers = [Ledger(one) for one in databases]
        rows = many(40)
        await asyncio.gather(*(one.save(rows) for one in ledgers))
        assert len([1 async for _ in ledgers[0].export()]) == 40
        assert await databases[0].read("SELECT app, name FROM tortoise_migrations") == [
            ("tandem", "m0001_jobs")
        ]


async def test_an_unreachable_database_is_unavailable_and_keeps_its_password_secret() -> None:
    database = Database("postgres://me:hunter2@127.0.0.1:1/nowhere")
    with pytest.raises(Unavailable) as error:
        await database.open()
    assert "hunter2" not in str(error.value)
    await database.close()


async def test_a_directory_that_cannot_be_created_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable):
        await Database(f"sqlite://{tmp_path}/file/tandem.db").open()


@pytest.mark.parametrize(
    "url",
    [
        "postgres://me:hunter2@host:port/x",
        "postgres://me:hunter2@host/x?sslmode=maybe",
    ],
)
def test_an_invalid_url_stops_the_start(url: str) -> None:
    with pytest.raises(Misconfigured, match="TANDEM_DATABASE_URL") as error:
        Database(url)
    assert "hunter2" not in str(error.value)
