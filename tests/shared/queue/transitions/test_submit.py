"""Submissions: idempotency, start times, expiry, and the catalogue that workers publish."""

import asyncio

import msgspec
import pytest

from tandem_shared.errors import KeyReused
from tandem_shared.jobs.record import job_json
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Submitted
from tests.shared.queue.model.shard import Shard, entry, job


async def test_a_job_is_queued_as_submitted(shard: Shard) -> None:
    id = await shard.add(
        payload=b'{"n": 1}', queue="mail", priority="high", max_attempts=5, tenant="acme"
    )
    record = await shard.queue.get(id, tenant="acme")
    assert record is not None
    assert (record.state, record.task, record.queue, record.priority) == (
        State.QUEUED,
        "t",
        "mail",
        "high",
    )
    assert (record.attempt, record.max_attempts, record.tenant) == (0, 5, "acme")
    assert record.submitted == record.stamp == shard.us
    assert record.due == shard.ms
    assert record.scheduled_for is None
    assert await shard.queue.payload(id, tenant="acme") == b'{"n": 1}'
    assert await shard.place(id) == ["q:mail:high"]


async def test_a_job_belongs_to_one_tenant(shard: Shard) -> None:
    id = await shard.add(tenant="acme")
    assert await shard.queue.get(id) is None
    assert await shard.queue.payload(id) is None
    assert await shard.queue.cancel(id) is None
    assert (await shard.snapshot()).jobs[id]["state"] == "queued"


async def test_an_unknown_job_is_not_found(shard: Shard) -> None:
    assert await shard.queue.get("nobody") is None
    assert await shard.queue.payload("nobody") is None
    assert await shard.queue.cancel("nobody") is None
    assert await shard.queue.output("nobody") == []


async def test_a_repeated_submission_changes_nothing(shard: Shard) -> None:
    one = job(idempotency_key="k")
    two = job(expires_in=60)
    first = [await shard.queue.submit(one), await shard.queue.submit(two)]
    before = await shard.snapshot()
    await shard.turn(1)
    assert [await shard.queue.submit(one), await shard.queue.submit(two)] == first
    after = await shard.snapshot()
    assert (after.jobs, after.zsets, after.counts, after.events) == (
        before.jobs,
        before.zsets,
        before.counts,
        before.events,
    )


async def test_a_repeated_submission_returns_the_current_state(shard: Shard) -> None:
    one = job()
    await shard.queue.submit(one)
    worker = await shard.worker()
    await worker.end(await worker.take())
    answer = await shard.queue.submit(one)
    assert (answer.id, answer.state) == (one.id, State.SUCCEEDED)


async def test_an_idempotency_key_runs_once(shard: Shard) -> None:
    first = await shard.queue.submit(
        job(payload=b'{"a": 1, "b": 2}', idempotency_key="k", priority="high")
    )
    # The same content spelled differently, and other options.
    again = await shard.queue.submit(job(payload=b'{"b":2,"a":1}', idempotency_key="k"))
    assert again == first._replace(replayed=True)
    assert list((await shard.snapshot()).jobs) == [first.id]


async def test_an_idempotency_key_belongs_to_its_content(shard: Shard) -> None:
    first = await shard.queue.submit(job(payload=b'{"a": 1}', idempotency_key="k"))
    for other in (
        job(payload=b'{"a": 2}', idempotency_key="k"),
        job("u", payload=b'{"a": 1}', idempotency_key="k"),
    ):
        with pytest.raises(KeyReused):
            await shard.queue.submit(other)
    assert list((await shard.snapshot()).jobs) == [first.id]


async def test_large_numbers_are_compared_exactly(shard: Shard) -> None:
    await shard.queue.submit(
        job(payload=b'{"n": 123456789012345678901234567890}', idempotency_key="k")
    )
    with pytest.raises(KeyReused):
        await shard.queue.submit(
            job(payload=b'{"n": 123456789012345678901234567891}', idempotency_key="k")
        )


async def test_idempotency_keys_are_per_tenant(shard: Shard) -> None:
    ids = {
        (await shard.queue.submit(job(payload=payload, idempotency_key="k", tenant=tenant))).id
        for tenant, payload in (("acme", b"{}"), ("bolt", b'{"other": 1}'), ("acme", b"{}"))
    }
    assert len(ids) == 2


async def test_concurrent_submissions_with_one_key_make_one_job(shard: Shard) -> None:
    answers = await asyncio.gather(
        *(shard.queue.submit(job(idempotency_key="k")) for _ in range(50))
    )
    assert len({answer.id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert len((await shard.snapshot()).jobs) == 1


async def test_concurrent_submissions_with_one_key_and_different_content_conflict(
    shard: Shard,
) -> None:
    jobs = [job(payload=b'{"n": %d}' % n, idempotency_key="k") for n in range(10)]
    answers = await asyncio.gather(
        *(shard.queue.submit(one) for one in jobs), return_exceptions=True
    )
    assert sum(isinstance(answer, Submitted) for answer in answers) == 1
    assert sum(isinstance(answer, KeyReused) for answer in answers) == 9


async def test_a_key_is_free_once_its_record_has_expired(shard: Shard) -> None:
    first = await shard.queue.submit(job(idempotency_key="k"))
    worker = await shard.worker()
    await worker.end(await worker.take())
    # The key expires a moment after its record.
    await shard.redis.delete(f"{shard.queue.prefix}job:{first.id}")
    second = await shard.queue.submit(job(payload=b'{"other": 1}', idempotency_key="k"))
    assert second.id != first.id
    assert not second.replayed
    assert (
        await shard.queue.submit(job(payload=b'{"other": 1}', idempotency_key="k"))
    ).id == second.id


async def test_bulk_submissions_keep_their_order(shard: Shard) -> None:
    jobs = [job(idempotency_key=str(n % 1000)) for n in range(1200)]
    jobs[700] = job(payload=b'{"other": 1}', idempotency_key="0")
    answers = await shard.queue.submit_many(jobs)
    assert isinstance(answers[700], KeyReused)
    ids = [answer.id for answer in answers if isinstance(answer, Submitted)]
    assert ids[:700] == [one.id for one in jobs[:700]]
    assert ids[-200:] == [one.id for one in jobs[:200]]
    stats = {one.name: one.waiting for one in await shard.queue.stats()}
    assert stats == {"default": 999}


async def test_large_payloads_take_several_calls(shard: Shard) -> None:
    jobs = [job(payload=b'"%s"' % (b"x" * 700_000)) for _ in range(4)]
    answers = await shard.queue.submit_many(jobs)
    assert [answer.id for answer in answers if isinstance(answer, Submitted)] == [
        one.id for one in jobs
    ]
    assert len(await shard.queue.submit_many([])) == 0


@pytest.mark.parametrize("when", [{"delay": 60.0}, {"run_at": 1_800_000_000.0 + 11 + 60}])
async def test_a_scheduled_job_waits_for_its_time(shard: Shard, when: dict[str, float]) -> None:
    id = await shard.add(**when)
    record = await shard.get(id)
    assert record.state is State.SCHEDULED
    assert record.scheduled_for == (shard.ms + 60_000) / 1000
    worker = await shard.worker()
    await shard.wait(59)
    claim = await worker.call()
    assert (claim.jobs, claim.next_due) == ([], 1.0)
    await shard.wait(1)
    assert await shard.state(id) is State.QUEUED
    assert (await worker.take()).id == id
    assert await shard.events(id) == ["scheduled", "queued", "running"]


@pytest.mark.parametrize("when", [{"delay": 0.0}, {"delay": 0.0004}, {"run_at": 1_700_000_000.0}])
async def test_a_start_time_in_the_past_is_now(shard: Shard, when: dict[str, float]) -> None:
    record = await shard.get(await shard.add(**when))
    assert (record.state, record.due, record.scheduled_for) == (State.QUEUED, shard.ms, None)


async def test_a_claim_queues_scheduled_jobs_that_are_due(shard: Shard) -> None:
    id = await shard.add(delay=1)
    worker = await shard.worker()
    await shard.turn(1)
    assert (await worker.take()).id == id


async def test_due_jobs_are_queued_in_portions(shard: Shard) -> None:
    await shard.submit(*(job(delay=1) for _ in range(450)))
    await shard.turn(1)
    worker = await shard.worker()
    claim = await worker.call(slots=1)
    assert claim.next_due == 0.0
    await shard.queue.tick()
    await shard.queue.tick()
    assert (await shard.snapshot()).counts == {"default queued": 449, "default running": 1}


async def test_a_job_expires_while_it_waits(shard: Shard) -> None:
    ids = {
        "queued": await shard.add(expires_in=5),
        "scheduled": await shard.add(expires_in=5, delay=60),
        "waiting": await shard.add(task="u", queue="mail", expires_in=5),
    }
    started = await shard.add(expires_in=5, priority="high")
    worker = await shard.worker()
    (claimed,) = await worker.claim(slots=1)
    assert claimed.id == started
    assert await (await shard.worker(queues=["mail"])).claim() == []
    for state, id in ids.items():
        assert await shard.state(id) == state
    await shard.wait(4)
    assert await shard.state(ids["queued"]) is State.QUEUED
    await shard.wait(1)
    for id in ids.values():
        record = await shard.get(id)
        assert record.state is State.FAILED
        assert record.error is not None
        assert b'"expired"' in record.error
        assert b'"retryable":false' in record.error
    assert await shard.state(started) is State.RUNNING
    # The running attempt may still succeed.
    await worker.end(claimed)
    assert await shard.state(started) is State.SUCCEEDED


FAULT = b'{"type":"card","message":"say \\",\\"retryable\\":","retryable":true,"attempt":1}'


@pytest.mark.parametrize("how", ["too late", "in time", "lost", "released"])
async def test_no_attempt_starts_after_the_expiry_and_the_error_names_the_last_failure(
    shard: Shard, how: str
) -> None:
    id = await shard.add(expires_in=30)
    worker = await shard.worker()
    claimed = await worker.take()
    if how == "lost":
        worker.held.clear()
        await shard.silence()
    elif how == "released":
        assert await worker.end(claimed, State.QUEUED) == "ok"
    else:
        assert await worker.end(
            claimed, State.RETRYING, body=FAULT, delay=30 if how == "too late" else 29
        ) == ("failed" if how == "too late" else "ok")
    shown = msgspec.json.decode(job_json(await shard.get(id)))
    if how == "too late":
        assert (shown["state"], shown["error"]["next_attempt_at"]) == ("failed", None)
        assert shown["error"]["message"].endswith(
            "; it is not retried, since the next attempt would start after expires_in"
        )
    else:
        assert shown["state"] == ("retrying" if how == "in time" else "queued")
        await shard.wait(31)
        shown = msgspec.json.decode(job_json(await shard.get(id)))
        assert "no further attempt started within expires_in" in shown["error"]["message"]
    assert shown["state"] == "failed"
    assert shown["error"]["type"] == {"lost": "worker_lost", "released": "expired"}.get(how, "card")
    if how in ("too late", "in time"):
        assert shown["error"]["message"].startswith('say ","retryable":; ')
        assert (shown["error"]["retryable"], shown["error"]["attempt"]) == (True, 1)
    assert await worker.claim() == []
    assert [one["outcome"] for one in shown["attempts"]] == [
        {"lost": "worker_lost", "released": "released"}.get(how, "failed")
    ]


async def test_expired_jobs_never_start(shard: Shard) -> None:
    await shard.submit(*(job(expires_in=5) for _ in range(300)))
    alive = await shard.add()
    worker = await shard.worker()
    await shard.wait(4)
    await shard.turn(2)
    assert [one.id for one in await worker.claim(slots=100)] == [alive]
    snapshot = await shard.snapshot()
    assert snapshot.counts == {"default running": 1}


async def test_workers_publish_their_tasks(shard: Shard) -> None:
    assert await shard.queue.catalogue_entries() == []
    assert await shard.queue.catalogue_stamp() == b""
    await shard.worker({"b": 2, "a": 1})
    assert [(one.name, one.version) for one in await shard.queue.catalogue_entries()] == [
        ("a", 1),
        ("b", 2),
    ]
    stamp = await shard.queue.catalogue_stamp()
    await shard.turn(1)
    await shard.worker({"a": 1})
    assert await shard.queue.catalogue_stamp() == stamp  # nothing new
    await shard.worker({"b": 1})
    # An older version does not replace a newer one.
    assert [one.version for one in await shard.queue.catalogue_entries()] == [1, 2]
    assert await shard.queue.catalogue_stamp() == stamp
    await shard.worker({"b": 3})
    assert [one.version for one in await shard.queue.catalogue_entries()] == [1, 3]
    assert await shard.queue.catalogue_stamp() != stamp


async def test_an_unreadable_catalogue_entry_is_skipped(shard: Shard) -> None:
    await shard.worker({"a": 1})
    broken = {"b": b'{"name": "b", "version": "of a later day"}', "c": b"none"}
    await shard.redis.hset(f"{shard.queue.prefix}catalogue", mapping=broken)
    assert [one.name for one in await shard.queue.catalogue_entries()] == ["a"]


async def test_hidden_tasks_are_not_published(shard: Shard) -> None:
    worker = await shard.worker()
    info = (await shard.queue.workers())[0]
    await shard.queue.register(info, [entry("t")], [entry("tick")])
    assert [one.name for one in await shard.queue.catalogue_entries()] == ["t"]
    assert not (await worker.call()).registered  # its catalogue has changed
