"""A real Redis Cluster of three nodes: clients find the node of the queue's slot and follow it."""

import re
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from arq.cron import cron
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tandem_shared.dev.servers import LocalServer, free_port, is_answering, redis_program
from tandem_shared.errors import Misconfigured, Unavailable
from tandem_shared.queue.connections import connect
from tandem_shared.queue.lookup import SLOT
from tandem_shared.queue.queue import Queue
from tandem_shared.queue.scripts import execute
from tandem_shared.redis_url import parse_cluster_url
from tandem_shared.settings import load_settings
from tandem_worker import task
from tandem_worker.jobs.job import Job
from tandem_worker.runtime.worker import Worker
from tests.conftest import eventually, started
from tests.shared.queue.model.shard import job
from tests.worker.workers import make_worker, open_client, working

SLOTS, NODES = 16384, 3


class Cluster:
    """Three masters; the last one has the slots from SLOT on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = [free_port() for _ in range(NODES)]
        self.nodes: list[Any] = [
            Redis(port=port, socket_timeout=5, decode_responses=True) for port in self.ports
        ]
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.ports[0]}"

    async def start(self) -> None:
        for port in self.ports:
            home = self.directory / str(port)
            home.mkdir()
            argv = (
                *(str(redis_program()), "--port", str(port), "--bind", "127.0.0.1"),
                *("--cluster-enabled", "yes", "--dir", str(home), "--save", ""),
                *("--cluster-node-timeout", "2000"),
            )

            async def ready(port: int = port) -> bool:
                return await is_answering("127.0.0.1", port, b"PING\r\n", b"+PONG")

            self._stack.enter_context(started(LocalServer("redis", argv, "", ready)))
            await eventually(ready)
        shares = (range(5000), range(5000, SLOT), range(SLOT, SLOTS))
        for node, slots in zip(self.nodes, shares, strict=True):
            await execute(node, "CLUSTER", "ADDSLOTS", *slots)
            await execute(node, "CLUSTER", "MEET", "127.0.0.1", self.ports[0])
        await eventually(self._agrees, 60)

    async def _agrees(self) -> bool:
        found = [str(await execute(node, "CLUSTER", "INFO")) for node in self.nodes]
        return all(
            re.search(r"cluster_state\W+ok", info)
            and re.search(rf"cluster_known_nodes\W+{NODES}", info)
            for info in found
        )

    async def move(self, to: int) -> None:
        """Give the slot to another node, without its keys."""
        id = await execute(self.nodes[to], "CLUSTER", "MYID")
        for node in (self.nodes[to], *self.nodes):
            pipe = node.pipeline(transaction=True)  # a node gives away only an empty slot
            pipe.flushall()
            pipe.execute_command("CLUSTER", "SETSLOT", SLOT, "NODE", id)
            await pipe.execute()

    async def close(self) -> None:
        for node in self.nodes:
            await node.aclose()
        self._stack.close()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        await made.start()
        yield made
    finally:
        await made.close()


def beats(worker: Worker) -> bool:
    try:
        worker.control.heartbeat.beat()
    except RedisError:
        return False
    return True


async def test_jobs_run_on_a_cluster_and_follow_the_slot(cluster: Cluster, tmp_path: Path) -> None:
    @task("talks")
    async def talks(job: Job, payload: int) -> int:
        async with job.lock("door"):
            await job.emit(payload)
        return payload + 1

    async with (
        open_client(cluster.url) as client,
        working(cluster.url, tmp_path, talks) as worker,
    ):
        ids = [await client.submit(talks, n) for n in range(20)]
        assert [await client.result(id) for id in ids] == list(range(1, 21))
        assert await client.items(ids[3]) == [3]
        async with client.queue.subscribe(ids[0]) as change:
            assert await change.wait(10)  # subscribed
        worker.control.heartbeat.beat()
        (info,) = await client.queue.workers()
        assert info.id == worker.id
        assert [await node.dbsize() > 0 for node in cluster.nodes] == [False, False, True]

        await cluster.move(0)

        async def served() -> bool:
            try:
                return await client.queue.get(await client.submit(talks, 1)) is not None
            except Unavailable:
                return False

        await eventually(served)
        id = await client.submit(talks, 41)
        assert await client.result(id) == 42
        await eventually(lambda: beats(worker))
        assert (await client.record(id)).attempts[0].worker == worker.id


async def test_a_node_that_is_named_alone_says_what_to_use(cluster: Cluster) -> None:
    for port in cluster.ports:
        redis = connect(f"redis://127.0.0.1:{port}/0")
        queue = Queue(redis)
        with pytest.raises(Unavailable, match=r"which only redis\+cluster:// follows"):
            await queue.submit(job())
        await queue.close()
        await redis.aclose()


async def test_a_cluster_without_enough_nodes_is_unavailable(cluster: Cluster) -> None:
    async with open_client(cluster.url) as client:
        await client.queue.ping()
        for slots in (range(5000), range(5000, SLOT)):
            for node in cluster.nodes:
                await execute(node, "CLUSTER", "DELSLOTS", *slots)

        async def told() -> bool:
            try:
                await client.queue.ping()
            except Unavailable as error:
                return "CLUSTERDOWN" in str(error) and "lacks nodes" in str(error)
            return False

        await eventually(told)


async def test_cron_jobs_of_arq_are_refused_on_a_cluster(tmp_path: Path) -> None:
    async def tick(ctx: dict[Any, Any]) -> None:
        raise AssertionError("never runs")

    with pytest.raises(Misconfigured, match="TANDEM_REDIS_URL: cron jobs"):
        make_worker("redis+cluster://127.0.0.1:1", tmp_path, cron_jobs=[cron(tick, minute=0)])


def test_a_url_names_nodes_and_credentials() -> None:
    found = parse_cluster_url("redis+cluster://me:s%40fe@one:7000,[::1]:7001,two")
    assert found is not None
    assert found.nodes == [("one", 7000), ("::1", 7001), ("two", 6379)]
    assert found.credentials == {"username": "me", "password": "s@fe"}


@pytest.mark.parametrize(
    "url", ["redis+cluster://", "redis+cluster://one:0", "redis+cluster://one/3"]
)
def test_an_invalid_url_stops_the_start_and_shows_no_secret(url: str) -> None:
    with pytest.raises(Misconfigured, match="TANDEM_REDIS_URL") as caught:
        load_settings(redis_url=url.replace("://", "://:hidden@", 1))
    assert "hidden" not in str(caught.value)
