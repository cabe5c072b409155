"""Ends of attempts: the fence, repeats, and what each outcome does to the job."""

import msgspec
import pytest
from redis.exceptions import ResponseError

from tandem_shared.jobs.states import FINAL, State
from tandem_shared.queue.messages import Finish, Report
from tests.shared.queue.model.laws import broken
from tests.shared.queue.model.shard import Shard, job

FAILURE = b'{"type":"exception:ValueError","message":"no","retryable":true,"attempt":1}'
DAY = 86_400_000


async def test_success(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    await shard.turn(1)
    claimed = await worker.take()
    await shard.turn(2)
    assert await worker.end(claimed, body=b'{"n": 1}', files=b'[{"name": "a"}]') == "ok"
    record = await shard.get(id)
    assert (record.state, record.result, record.files, record.error) == (
        State.SUCCEEDED,
        b'{"n": 1}',
        b'[{"name": "a"}]',
        None,
    )
    assert record.ended == record.stamp == shard.us
    (attempt,) = record.attempts
    assert attempt == (1, shard.us - 2_000_000, shard.us, "succeeded", worker.id)
    assert await shard.place(id) == []


@pytest.mark.parametrize("outcome", ["failed", "timeout"])
async def test_failure(shard: Shard, outcome: str) -> None:
    id = await shard.add()
    worker = await shard.worker()
    assert await worker.end(await worker.take(), State.FAILED, outcome, body=FAILURE) == "ok"
    record = await shard.get(id)
    assert (record.state, record.error, record.result) == (State.FAILED, FAILURE, None)
    assert record.attempts[0].outcome == outcome


async def test_a_retry_starts_later_under_a_new_token(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    first = await worker.take()
    assert await worker.end(first, State.RETRYING, body=FAILURE, delay=3) == "ok"
    record = await shard.get(id)
    assert (record.state, record.error, record.due) == (State.RETRYING, FAILURE, shard.ms + 3000)
    assert (await worker.call()).next_due == 3.0
    await shard.wait(3)
    second = await worker.take()
    assert (second.attempt, second.token != first.token) == (2, True)
    assert await worker.end(second) == "ok"
    record = await shard.get(id)
    assert [attempt.outcome for attempt in record.attempts] == ["failed", "succeeded"]
    assert await shard.events(id) == [
        "queued",
        "running",
        "retrying",
        "queued",
        "running",
        "succeeded",
    ]


async def test_a_retry_can_start_at_once(shard: Shard) -> None:
    await shard.add()
    worker = await shard.worker()
    await worker.end(await worker.take(), State.RETRYING, body=FAILURE)
    assert (await worker.take()).attempt == 2


async def test_the_last_attempt_is_not_retried(shard: Shard) -> None:
    id = await shard.add(max_attempts=1)
    worker = await shard.worker()
    assert await worker.end(await worker.take(), State.RETRYING, body=FAILURE, delay=3) == "failed"
    record = await shard.get(id)
    assert (record.state, record.error) == (State.FAILED, FAILURE)


async def test_a_released_job_is_not_charged_and_keeps_its_place(shard: Shard) -> None:
    id = await shard.add(max_attempts=1)
    worker = await shard.worker()
    due = (await shard.get(id)).due
    await shard.turn(5)
    later = await shard.add()
    for _ in range(5):
        (claimed,) = await worker.claim(slots=1)
        assert (claimed.id, claimed.attempt) == (id, 1)
        assert await worker.end(claimed, State.QUEUED) == "ok"
        record = await shard.get(id)
        assert (record.state, record.attempt, record.due) == (State.QUEUED, 0, due)
        assert record.attempts[-1].outcome == "released"
    assert [one.id for one in await worker.claim()] == [id, later]


async def test_a_repeated_finish_is_ok_and_changes_nothing(shard: Shard) -> None:
    ids = await shard.submit(*(job() for _ in range(4)))
    worker = await shard.worker()
    claimed = {one.id: one for one in await worker.claim()}
    outcomes = [
        Finish(ids[0], claimed[ids[0]].token, State.SUCCEEDED, "succeeded", b"1"),
        Finish(ids[1], claimed[ids[1]].token, State.FAILED, "failed", FAILURE),
        Finish(ids[2], claimed[ids[2]].token, State.RETRYING, "failed", FAILURE, 9.0),
        Finish(ids[3], claimed[ids[3]].token, State.QUEUED, "released"),
    ]
    assert await shard.queue.finish(outcomes) == ["ok"] * 4
    before = await shard.snapshot()
    await shard.turn(1)
    assert await shard.queue.finish(outcomes) == ["ok"] * 4
    after = await shard.snapshot()
    assert (after.jobs, after.zsets, after.events) == (before.jobs, before.zsets, before.events)


async def test_a_finish_twice_in_one_call_counts_once(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    end = Finish(id, claimed.token, State.RETRYING, "failed", FAILURE, 1.0)
    assert await shard.queue.finish([end, end]) == ["ok", "ok"]
    assert len((await shard.get(id)).attempts) == 1


@pytest.mark.parametrize(
    "to", [State.SUCCEEDED, State.FAILED, State.RETRYING, State.QUEUED, State.CANCELLED]
)
async def test_an_old_token_is_rejected(shard: Shard, to: State) -> None:
    id = await shard.add()
    old = await shard.worker()
    first = await old.take()
    await old.lose()
    new = await shard.worker()
    assert await old.end(first, to, body=b"1") == "lost"  # while the job waits
    second = await new.take()
    before = await shard.snapshot()
    assert await old.end(first, to, body=b"1") == "lost"  # while another runs it
    assert (await shard.snapshot()).jobs == before.jobs
    assert await new.end(second, body=b"2") == "ok"
    assert await old.end(first, to, body=b"1") == "lost"  # and afterwards
    record = await shard.get(id)
    assert (record.state, record.result) == (State.SUCCEEDED, b"2")


async def test_finishing_a_missing_record_returns_gone(shard: Shard) -> None:
    assert await shard.queue.finish([Finish("nobody", "1.w", State.SUCCEEDED, "succeeded")]) == [
        "gone"
    ]
    assert (await shard.snapshot()).jobs == {}  # no record is created


@pytest.mark.parametrize("to", [State.WAITING, State.SCHEDULED, State.RUNNING])
async def test_transitions_outside_the_table_are_errors(shard: Shard, to: State) -> None:
    one, two = await shard.add(), await shard.add()
    worker = await shard.worker()
    claimed = {each.id: each for each in await worker.claim()}
    before = await shard.snapshot()
    with pytest.raises(ResponseError, match=f"no transition running -> {to.value}"):
        await shard.queue.finish(
            [
                Finish(one, claimed[one].token, State.SUCCEEDED, "succeeded"),
                Finish(two, claimed[two].token, to, "failed"),
            ]
        )
    after = await shard.snapshot()
    assert (after.jobs, after.zsets, after.counts) == (before.jobs, before.zsets, before.counts)


async def test_a_record_in_an_unknown_state_is_left_alone(shard: Shard) -> None:
    id = await shard.add()
    key = f"{shard.queue.prefix}job:{id}"
    await shard.redis.hset(key, "state", "dreaming")
    with pytest.raises(ResponseError, match="no transition dreaming -> cancelled"):
        await shard.queue.cancel(id)
    assert await shard.redis.hget(key, "state") == b"dreaming"
    await shard.redis.hset(key, "state", "queued")


async def test_the_record_remembers_fifty_attempts(shard: Shard) -> None:
    id = await shard.add(max_attempts=100)
    worker = await shard.worker()
    for _ in range(60):
        await worker.end(await worker.take(), State.RETRYING, body=FAILURE)
    attempts = (await shard.get(id)).attempts
    assert [attempt.number for attempt in attempts] == list(range(11, 61))


@pytest.mark.parametrize("to", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
async def test_final_records_expire_after_the_retention(shard: Shard, to: State) -> None:
    id = (await shard.queue.submit(job(idempotency_key="k"))).id
    worker = await shard.worker()
    claimed = await worker.take()
    assert await shard.report(Report(id, claimed.token, 1, "output", b"1"), limit=99) == ["ok"]
    before = (await shard.snapshot()).ttl
    kept = [key for key in before if key.startswith(("job:", "idem:", "out:"))]
    assert [before[key] for key in kept] == [-1, -1, -1]
    await worker.end(claimed, to)
    after = (await shard.snapshot()).ttl
    for key in kept:
        assert 7 * DAY - 60_000 < after[key] <= 7 * DAY
    # Later calls do not prolong its life.
    await shard.queue.cancel(id)
    await shard.queue.submit(job(idempotency_key="k"))
    assert await shard.report(Report(id, claimed.token, 2, "output", b"2"), limit=99) == ["lost"]
    again = (await shard.snapshot()).ttl
    assert all(0 < again[key] <= after[key] for key in kept)


async def test_a_final_record_never_changes(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    await worker.end(claimed, State.FAILED, body=FAILURE)
    before = (await shard.snapshot()).jobs[id]
    for to in (State.SUCCEEDED, State.RETRYING, State.QUEUED):
        await worker.end(claimed, to, body=b"2")
    await shard.queue.cancel(id)
    await shard.silence()
    replay = await shard.add(replay_of=id)
    assert (await shard.get(replay)).options.replay_of == id
    assert (await shard.snapshot()).jobs[id] == before


async def test_stamps_grow_while_the_clock_steps_back(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    stamps = [(await shard.get(id)).stamp]
    for _ in range(3):
        await shard.turn(-1)
        claimed = await worker.take()
        stamps.append((await shard.get(id)).stamp)
        assert claimed.token.startswith(str(stamps[-1]))
        await worker.end(claimed, State.QUEUED)
        stamps.append((await shard.get(id)).stamp)
    assert stamps == [stamps[0] + n for n in range(7)]
    assert not broken(await shard.snapshot())


async def test_results_are_bytes(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    body = msgspec.json.encode({"text": "ümläut \x00 \u2028 % \r\n", "n": 2**70})
    await worker.end(await worker.take(), body=body)
    assert (await shard.get(id)).result == body


async def test_rare_fields_are_read_whatever_the_number_of_fields(shard: Shard) -> None:
    """A record with a key and its limit has as many fields as a started one."""
    worker = await shard.worker()
    for given in (
        {},
        {"idempotency_key": "a"},
        {"idempotency_key": "b", "expires_in": 9},
        {"concurrency_key": "c"},
    ):
        for to in (None, State.SUCCEEDED, State.FAILED, State.RETRYING, State.QUEUED):
            keys = {name: f"{value}{to}" for name, value in given.items() if name.endswith("key")}
            first = await shard.add(**given | keys)
            next = await shard.add(**given | keys) if "concurrency_key" in given else None
            if to is not None:
                await worker.end(await worker.take(), to, body=FAILURE)
            if await shard.state(first) not in FINAL:
                assert await shard.queue.cancel(first) is not None
            after = await shard.snapshot()
            assert broken(after) == []
            assert next is None or after.jobs[next]["state"] == "queued"
            assert all(left > 0 for key, left in after.ttl.items() if key.startswith("idem:"))
            assert after.zsets.get("expiries", {}) == {}
            if next is not None:
                await shard.queue.cancel(next)
