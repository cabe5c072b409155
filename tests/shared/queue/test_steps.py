"""Results of steps: fenced by the token, kept once, bounded, and kept as long as the record."""

import pytest

from tandem_shared.jobs.states import State
from tandem_shared.queue import steps
from tandem_shared.queue.steps import KeptStep, Step
from tests.shared.queue.model.shard import Shard


async def test_a_later_attempt_gets_the_steps_of_an_earlier_one(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    first = await worker.take()
    before = await shard.get(id)
    assert await shard.queue.steps.load(id, first.token) == {}
    assert await shard.queue.steps.keep(Step(id, first.token, "a ü", b'{"n":1}')) == (
        "ok",
        b'{"n":1}',
    )
    assert (await shard.get(id)).etag == before.etag  # clients do not see steps
    await worker.end(first, State.RETRYING)
    await shard.wait(1)
    second = await worker.take()
    assert await shard.queue.steps.load(id, second.token) == {"a ü": b'{"n":1}'}


async def test_only_the_current_attempt_keeps_and_reads_steps(shard: Shard) -> None:
    id = await shard.add()
    zombie = await shard.worker()
    first = await zombie.take()
    await shard.silence()
    second = await (await shard.worker()).take()
    assert await shard.queue.steps.keep(Step(id, first.token, "a", b"1")) == ("lost", b"1")
    assert await shard.queue.steps.load(id, first.token) is None
    assert await shard.queue.steps.load(id, second.token) == {}
    for unknown in ("nobody", id[:-1]):
        assert (await shard.queue.steps.keep(Step(unknown, second.token, "a", b"1"))).word == "lost"


async def test_a_kept_step_does_not_change(shard: Shard) -> None:
    id = await shard.add()
    token = (await (await shard.worker()).take()).token
    for _ in range(2):  # the reply was lost
        assert await shard.queue.steps.keep(Step(id, token, "a", b"1")) == KeptStep("ok", b"1")
    assert await shard.queue.steps.keep(Step(id, token, "a", b"22")) == KeptStep("ok", b"1")
    assert await shard.field(id, "sb") == "2"


async def test_steps_are_bounded_in_number_and_bytes(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "MAX_JOB_STEPS", 3)
    monkeypatch.setattr(steps, "MAX_JOB_STEP_BYTES", 20)
    id = await shard.add()
    token = (await (await shard.worker()).take()).token

    async def keep(name: str, size: int) -> str:
        return (await shard.queue.steps.keep(Step(id, token, name, b"1" * size))).word

    assert await keep("a", 10) == "ok"
    assert await keep("b", 9) == "full"
    assert [await keep("b", 4), await keep("c", 3)] == ["ok", "ok"]  # 20 bytes including the names
    assert await keep("d", 0) == "full"
    assert await keep("a", 10) == "ok"
    assert set(await shard.queue.steps.load(id, token) or ()) == {"a", "b", "c"}


@pytest.mark.parametrize("to", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
async def test_steps_live_as_long_as_the_record(shard: Shard, to: State) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    await shard.queue.steps.keep(Step(id, claimed.token, "a", b"1"))
    assert (await shard.snapshot()).ttl[f"steps:{id}"] == -1
    await worker.end(claimed, to)
    ttl = (await shard.snapshot()).ttl
    assert 0 < ttl[f"job:{id}"] - 60_000 < ttl[f"steps:{id}"] <= ttl[f"job:{id}"] + 60_000
    assert (await shard.queue.steps.keep(Step(id, claimed.token, "b", b"1"))).word == "lost"


async def test_steps_of_a_job_cancelled_between_attempts_expire(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    await shard.queue.steps.keep(Step(id, claimed.token, "a", b"1"))
    await worker.end(claimed, State.RETRYING, delay=100)
    await shard.queue.cancel(id)
    assert (await shard.snapshot()).ttl[f"steps:{id}"] > 0
