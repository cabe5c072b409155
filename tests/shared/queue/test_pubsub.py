"""Subscriptions to jobs: every reader sees every change, over one connection for all."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from tandem_shared.jobs.states import State
from tandem_shared.queue import pubsub as module
from tandem_shared.queue.messages import Report
from tandem_shared.queue.pubsub import ChangeSignal
from tandem_shared.queue.queue import Queue
from tests.conftest import eventually
from tests.shared.queue.model.shard import Shard


async def pubsub(redis: Redis) -> list[dict[str, Any]]:
    """The connections with subscriptions."""
    clients: list[dict[str, Any]] = await redis.client_list(_type="pubsub")
    return [client for client in clients if client["sub"] != "0"]


async def channels(shard: Shard) -> set[str]:
    """The jobs whose changes are subscribed to."""
    skip = len(f"{shard.queue.prefix}news:")
    return {name.decode()[skip:] for name in await shard.redis.pubsub_channels()} - {""}


async def quiet(shard: Shard, change: ChangeSignal) -> None:
    """Consumes the signals of the subscription itself: a later one most likely means a change."""
    await eventually(lambda: channels(shard))
    for _ in range(3):
        await change.wait(0.05)


async def signalled(change: ChangeSignal) -> None:
    # Less than the 5 s of the poll.
    await asyncio.wait_for(change._event.wait(), 4)
    await change.wait()


async def test_a_new_subscriber_reads_at_once(shard: Shard) -> None:
    id = await shard.add()
    async with shard.queue.subscribe(id) as change:
        await signalled(change)
    async with shard.queue.subscribe(id) as change:
        await signalled(change)


async def test_only_visible_changes_are_published(shard: Shard) -> None:
    worker = await shard.worker()
    async with shard.redis.pubsub(ignore_subscribe_messages=True) as listener:
        await listener.psubscribe(f"{shard.queue.prefix}news:*")
        id = await shard.add(delay=1)
        await shard.wait(1)
        claimed = await worker.take()
        for number, type in enumerate(("progress", "output", "log"), 1):
            await shard.queue.report([Report(id, claimed.token, number, type, b"1")] * 2, limit=99)
        await worker.beat()
        await shard.queue.tick()
        for _ in range(2):
            await shard.queue.cancel(id)
        await worker.beat()
        for _ in range(2):
            await worker.end(claimed, State.CANCELLED)
        await shard.redis.publish(f"{shard.queue.prefix}news:{id}", "the end")
        received: list[str] = []
        while received[-1:] != ["the end"]:
            message = await listener.get_message(timeout=5)
            if message is not None:
                assert message["channel"].decode().endswith(f":{id}")
                received.append(message["data"].decode())
    assert received == [
        *(
            "scheduled",
            "queued",
            "running",
            "progress",
            "output",
            "log",
            "running",
            "cancelled",
            "the end",
        )
    ]


async def test_a_subscriber_is_notified_of_each_change(shard: Shard) -> None:
    id = await shard.add(delay=1)
    worker = await shard.worker()
    async with shard.queue.subscribe(id) as change:
        await quiet(shard, change)
        await shard.wait(1)
        await signalled(change)
        claimed = await worker.take()
        await signalled(change)
        await shard.queue.report([Report(id, claimed.token, 1, "output", b"1")], limit=99)
        await signalled(change)
        await worker.end(claimed)
        await signalled(change)


async def test_subscribers_share_one_connection(shard: Shard) -> None:
    ids = [await shard.add() for _ in range(20)]
    contexts = [shard.queue.subscribe(id) for id in ids * 2]
    changes = [await context.__aenter__() for context in contexts]
    for change in changes:
        await signalled(change)
    assert await eventually(lambda: channels(shard)) <= set(ids)

    async def all_of_them() -> bool:
        return await channels(shard) == set(ids)

    await eventually(all_of_them)
    assert len(await pubsub(shard.redis)) == 1
    await quiet(shard, changes[0])
    for change in changes:
        await change.wait(0)
    await shard.queue.cancel(ids[7])
    await signalled(changes[7])
    await signalled(changes[27])
    for context in contexts:
        await context.__aexit__(None, None, None)

    async def none() -> bool:
        return not await channels(shard)

    await eventually(none)
    assert shard.queue._subscriptions._signals == {}


async def test_a_job_can_be_subscribed_to_again(shard: Shard) -> None:
    id = await shard.add()
    for _ in range(3):
        async with shard.queue.subscribe(id) as change:
            await signalled(change)
            await quiet(shard, change)
    async with shard.queue.subscribe(id) as change:
        await quiet(shard, change)
        await shard.queue.cancel(id)
        await signalled(change)


async def test_a_broken_connection_makes_all_subscribers_read_again(shard: Shard) -> None:
    id = await shard.add()
    async with shard.queue.subscribe(id) as change:
        await quiet(shard, change)
        (client,) = await pubsub(shard.redis)
        await shard.redis.client_kill_filter(_id=client["id"])
        await signalled(change)

        async def back() -> bool:
            others = [one for one in await pubsub(shard.redis) if one["id"] != client["id"]]
            return await channels(shard) == {id} and len(others) == 1

        await eventually(back)
        await quiet(shard, change)
        await shard.queue.cancel(id)
        await signalled(change)


async def test_a_wait_ends_after_its_timeout_and_returns_whether_it_was_set(shard: Shard) -> None:
    async with shard.queue.subscribe("nobody") as change:
        await quiet(shard, change)
        for seconds in (0.01, 0, -1):
            assert await change.wait(seconds) is False
        timeouts: tuple[float | None, ...] = (0.01, 0, -1, None)
        for timeout in timeouts:
            change.set()
            assert await change.wait(timeout) is True


async def test_a_change_whose_message_was_lost_is_found(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "MAX_CALL_JOBS", 2)
    ids = [await shard.add() for _ in range(5)]
    contexts = [shard.queue.subscribe(id) for id in ids]
    changes = [await context.__aenter__() for context in contexts]
    subscriptions = shard.queue._subscriptions
    await eventually(lambda: set(subscriptions._versions) == set(ids))
    for change in changes:
        await quiet(shard, change)
    for field in ("v", "o"):
        for id, change in zip(ids, changes, strict=True):
            # A change without a message.
            await shard.redis.hset(f"{shard.queue.prefix}job:{id}", field, "1790000000000000")
            await signalled(change)
    for context in contexts:
        await context.__aexit__(None, None, None)
    assert subscriptions._versions == {}


async def test_closing_releases_waiters_and_the_connection(redis: Redis) -> None:
    queue = Queue(redis)
    async with queue.subscribe("one") as change:
        await signalled(change)
        wait = asyncio.create_task(change.wait())
        await queue.close()
        await asyncio.wait_for(wait, 4)

    async def gone() -> bool:
        return not await pubsub(redis)

    await eventually(gone)
    await queue.close()  # twice does no harm


async def test_many_subscribers_can_come_and_go_at_once(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CALL_JOBS", 7)
    subscriptions = shard.queue._subscriptions
    async with shard.queue.subscribe("first") as change:
        await quiet(shard, change)
        contexts = {f"job-{number}": shard.queue.subscribe(f"job-{number}") for number in range(50)}
        changes = {id: await context.__aenter__() for id, context in contexts.items()}
        for id in list(contexts)[::3]:
            await contexts.pop(id).__aexit__(None, None, None)
        again = shard.queue.subscribe("job-0")
        changes["job-0"], contexts["job-0"] = await again.__aenter__(), again

        async def exact() -> bool:
            return await channels(shard) == {"first", *contexts}

        await eventually(exact)
        for id in contexts:
            await signalled(changes[id])
        for context in contexts.values():
            await context.__aexit__(None, None, None)
        await eventually(lambda: only_first(shard))
    assert subscriptions._signals == {}


async def only_first(shard: Shard) -> bool:
    return await channels(shard) == {"first"}
