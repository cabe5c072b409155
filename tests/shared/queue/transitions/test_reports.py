"""Reports of running jobs, the events about them, and what operators see."""

from typing import Any

import pytest

from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Chunk, QueueStats, Report, WorkerInfo
from tandem_shared.queue.scripts import source
from tests.shared.queue.model.shard import CLOCK, Shard, job


async def test_progress_changes_the_record(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    await shard.turn(1)
    assert await shard.report(
        Report(id, claimed.token, 1, "progress", b'{"current":1}'), limit=99
    ) == ["ok"]
    record = await shard.get(id)
    assert (record.progress, record.stamp, record.output) == (b'{"current":1}', shard.us, shard.us)
    assert await shard.queue.output(id) == [Chunk(shard.us, "progress", 1, b'{"current":1}')]


async def test_output_does_not_change_the_record(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    before = await shard.get(id)
    await shard.turn(1)
    reports = [
        Report(id, claimed.token, 1, "output", b'{"n":1}\n{"n":2}'),
        Report(id, claimed.token, 2, "log", b'{"message":"x"}'),
    ]
    assert await shard.report(*reports, limit=99) == ["ok", "ok"]
    record = await shard.get(id)
    assert (record.stamp, record.etag, record.output) == (before.stamp, before.etag, shard.us + 1)
    assert await shard.queue.output(id) == [
        Chunk(shard.us, "output", 1, b'{"n":1}\n{"n":2}'),
        Chunk(shard.us + 1, "log", 1, b'{"message":"x"}', before=shard.us),
    ]
    # Output and states have one order.
    await worker.end(claimed)
    assert (await shard.get(id)).stamp == shard.us + 2


async def test_a_repeated_report_is_written_once(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    reports = [Report(id, claimed.token, number, "output", b"%d" % number) for number in (1, 2)]
    assert await shard.report(*reports, limit=99) == ["ok", "ok"]
    assert await shard.report(*reports, limit=99) == ["ok", "ok"]
    assert [chunk.items for chunk in await shard.queue.output(id)] == [[b"1"], [b"2"]]


async def test_each_attempt_starts_without_progress_and_counts_its_own_reports(
    shard: Shard,
) -> None:
    id = await shard.add()
    worker = await shard.worker()
    for attempt in (1, 2):
        claimed = await worker.take()
        assert (await shard.get(id)).progress is None
        assert await shard.report(Report(id, claimed.token, 1, "progress", b"1"), limit=99) == [
            "ok"
        ]
        await worker.end(claimed, State.RETRYING, body=b"{}")
        assert [chunk.attempt for chunk in await shard.queue.output(id)] == list(
            range(1, attempt + 1)
        )


async def test_only_the_current_attempt_can_report(shard: Shard) -> None:
    id = await shard.add(max_attempts=9)
    worker = await shard.worker()
    old = await worker.take()

    async def report(token: str) -> list[str]:
        return await shard.report(Report(id, token, 1, "output", b"1"), limit=99)

    await worker.end(old, State.QUEUED)
    assert await report(old.token) == ["lost"]
    new = await worker.take()
    assert await report(old.token) == ["lost"]
    assert await report(new.token) == ["ok"]
    await worker.end(new)
    assert await report(new.token) == ["lost"]
    assert await shard.report(Report("nobody", "1.w", 1, "output", b"1"), limit=99) == ["lost"]
    assert "out:nobody" not in (await shard.snapshot()).ttl


async def test_output_is_limited_across_attempts(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    first = Report(id, claimed.token, 1, "output", b"x" * 60)
    assert await shard.report(first, limit=100) == ["ok"]
    await worker.end(claimed, State.QUEUED)
    claimed = await worker.take()
    reports = [
        Report(id, claimed.token, n, "output", b"x" * size)
        for n, size in ((1, 41), (1, 40), (2, 1))
    ]
    assert await shard.report(*reports, limit=100) == ["full", "ok", "full"]
    assert await shard.report(first, limit=10) == ["lost"]


async def test_a_gap_in_the_numbers_is_not_written(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    reports = [Report(id, claimed.token, n, "output", b"%d" % n) for n in range(1, 6)]
    assert await shard.report(*reports[:2]) == ["ok", "ok"]
    assert await shard.report(*reports[3:]) == ["behind", "behind"]
    assert await worker.end(claimed, reports=5) == "behind"
    assert await shard.state(id) is State.RUNNING
    assert await shard.report(*reports) == ["ok"] * 5
    assert [chunk.body for chunk in await shard.queue.output(id)] == [b"1", b"2", b"3", b"4", b"5"]
    assert await worker.end(claimed, reports=5) == "ok"


async def test_a_lost_entry_returns_under_its_stamp(shard: Shard) -> None:
    id = await shard.add()
    claimed = await (await shard.worker()).take()
    first, second = (Report(id, claimed.token, n, "output", b"%d" % n) for n in (1, 2))
    await shard.report(first)
    before = await shard.copy()
    await shard.turn(1)
    (written,) = await shard.queue.report([second], limit=99)
    await shard.roll_back(before)
    await shard.turn(1)
    assert await shard.report(second._replace(stamp=written.stamp)) == ["ok"]
    chunks = await shard.queue.output(id)
    assert [(chunk.body, chunk.stamp) for chunk in chunks[1:]] == [(b"2", written.stamp)]
    assert (await shard.get(id)).output == written.stamp


async def test_output_is_read_in_pages(shard: Shard) -> None:
    id = await shard.add()
    claimed = await (await shard.worker()).take()
    reports = [Report(id, claimed.token, n, "output", b"%d" % n) for n in range(1, 251)]
    await shard.report(*reports, limit=1 << 20)
    items: list[bytes] = []
    after, pages = 0, []
    while page := await shard.queue.output(id, after):
        pages.append(len(page))
        items += [item for chunk in page for item in chunk.items]
        after = page[-1].stamp
    assert pages == [100, 100, 50]
    assert items == [b"%d" % n for n in range(1, 251)]
    assert len(await shard.queue.output(id, 0, limit=3)) == 3


async def test_output_stamps_grow_while_the_clock_steps_back(shard: Shard) -> None:
    id = await shard.add()
    claimed = await (await shard.worker()).take()
    for number in (1, 2, 3):
        await shard.turn(-10)
        assert await shard.report(Report(id, claimed.token, number, "output", b"1"), limit=99) == [
            "ok"
        ]
    stamps = [chunk.stamp for chunk in await shard.queue.output(id)]
    assert stamps == sorted(set(stamps))


async def test_each_transition_is_one_event(shard: Shard) -> None:
    ids = await shard.submit(*(job(delay=1) for _ in range(2)))
    await shard.wait(1)
    worker = await shard.worker()
    for one in await worker.claim():
        await worker.end(one, State.SUCCEEDED if one.id == ids[0] else State.FAILED, body=b"{}")
    for id, last in zip(ids, ("succeeded", "failed"), strict=True):
        assert await shard.events(id) == ["scheduled", "queued", "running", last]
    # The transitions of one script are one entry: id, state, stamp and attempt per line.
    entries = [text.splitlines() for _, text in (await shard.snapshot()).events]
    assert [len(lines) for lines in entries] == [2, 2, 2, 1, 1]
    stamp = (await shard.get(ids[1])).stamp
    assert entries[-1] == [f"{ids[1]} failed {stamp} 1"]


async def test_counts_match_the_jobs(shard: Shard) -> None:
    await shard.add(queue="mail", delay=60)
    await shard.add(queue="mail", task="u")
    for _ in range(5):
        await shard.add(queue="mail")
    worker = await shard.worker(queues=["mail"])
    one, two, three, *_ = await worker.claim()
    await worker.end(one, State.RETRYING, body=b"{}", delay=60)
    await worker.end(two)
    await worker.end(three, State.QUEUED)
    await shard.add(queue="web")
    mail, web = await shard.queue.stats()
    assert mail == QueueStats("mail", False, 1, 1, 1, 2, 1, mail.oldest_age, 1)
    assert web == QueueStats("web", False, 1, 0, 0, 0, 0, web.oldest_age)


async def test_stats_show_the_age_of_the_oldest_due_job(shard: Shard) -> None:
    await shard.add(priority="low")
    await shard.turn(50)
    await shard.add(priority="high")
    (stats,) = await shard.queue.stats()
    assert stats.oldest_age == 50
    worker = await shard.worker()
    await worker.claim()
    (stats,) = await shard.queue.stats()
    assert stats == QueueStats("default", False, 0, 0, 0, 2, 0, None, 1)


@pytest.mark.parametrize("how", ["succeeded", "cancelled", "expired"])
async def test_names_of_queues_leave_nothing_behind(shard: Shard, how: str) -> None:
    names = [f"customer-{number}" for number in range(500)]
    given: dict[str, Any] = {"expires_in": 5.0} if how == "expired" else {}
    ids = await shard.submit(*(job(queue=name, **given) for name in names))
    assert [one.name for one in await shard.queue.stats()] == sorted(names)
    (only,) = await shard.queue.stats(["customer-7"])
    assert (only.name, only.queued, only.waiting) == ("customer-7", 0, 1)
    if how == "succeeded":
        worker = await shard.worker(queues=names)
        for claimed in await worker.claim(500):
            await worker.end(claimed)
        await shard.queue.retire(worker.id)
    for id in ids if how == "cancelled" else ():
        await shard.queue.cancel(id)
    await shard.wait(10)
    assert {(await shard.get(id)).done for id in ids} == {True}
    assert await shard.queue.stats() == []
    left = (await shard.snapshot()).ttl
    assert [key for key, ttl in left.items() if "customer" in key and ttl < 0] == []
    assert "counts" not in left


async def test_workers_are_listed_with_their_jobs(shard: Shard) -> None:
    ids = await shard.submit(*(job() for _ in range(3)))
    one, two = await shard.worker(), await shard.worker(queues=["mail", "default"])
    await one.claim(slots=2)
    await two.claim()
    await shard.queue.beat(two.id, two.digest, [], draining=True)
    seen = shard.ms / 1000
    workers = {info.id: info for info in await shard.queue.workers()}
    assert workers[one.id] == WorkerInfo(
        one.id,
        "host",
        7,
        ("default",),
        10,
        "1",
        1.5,
        last_seen=seen,
        draining=False,
        running=tuple(sorted(ids[:2])),
    )
    assert (workers[two.id].queues, workers[two.id].draining) == (("mail", "default"), True)
    assert workers[two.id].running == (ids[2],)
    await shard.queue.retire(one.id)
    assert [info.id for info in await shard.queue.workers()] == [two.id]


@pytest.mark.parametrize(("lease", "alive"), [(10.0, 60), (600.0, 1800)])
async def test_a_silent_worker_is_forgotten(shard: Shard, lease: float, alive: int) -> None:
    other = Shard(shard.redis, letter="b", lease=lease)
    await other.turn(0)
    await other.worker()
    await other.turn(alive - 1)
    await other.queue.tick()
    assert len(await other.queue.workers()) == 1
    await other.turn(1)
    await other.queue.tick()
    assert await other.queue.workers() == []


async def test_scripts_get_the_states_from_python() -> None:
    text = source("finish", CLOCK)
    assert "queued = {cancelled = true, failed = true, running = true, waiting = true}" in text
    assert "FINAL, OPEN = {cancelled = true, failed = true, succeeded = true}, {'waiting', " in text
