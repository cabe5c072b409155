"""The metrics that a worker exposes to Prometheus."""

import socket
import urllib.request
from asyncio import to_thread
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tandem_shared.errors import Misconfigured
from tandem_worker import task
from tandem_worker.errors import Permanent
from tandem_worker.jobs.job import Job
from tandem_worker.runtime.metrics import BUCKET_SECONDS, Durations, WorkerMetrics, serving
from tests.conftest import eventually
from tests.worker.workers import Client, make_worker, working


@task("metrics.number")
async def number(payload: int) -> int:
    if payload < 0:
        raise Permanent("negative", "below zero")
    return payload


@task("metrics.chatty")
async def chatty(job: Job, payload: int) -> None:
    for number in range(payload):
        await job.emit("x" * 60_000 + str(number))


def scrape(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (one.name, frozenset(one.labels.items())): one.value
            for family in families
            for one in family.samples
        }


async def test_attempts_by_task_and_outcome(
    client: Client, redis_url: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    async with working(redis_url, tmp_path, number, metrics_port=unused_tcp_port) as worker:
        for payload in (1, 2, -1):
            await client.end(await client.submit(number, payload))
        found = await to_thread(scrape, unused_tcp_port)

    def value(name: str, **labels: str) -> float | None:
        return found.get((name, frozenset(labels.items())))

    assert value("tandem_attempts_total", task="metrics.number", outcome="succeeded") == 2
    assert value("tandem_attempts_total", task="metrics.number", outcome="failed") == 1
    assert value("tandem_attempt_run_seconds_count", task="metrics.number") == 3
    assert value("tandem_attempt_wait_seconds_count", task="metrics.number") == 3
    assert value("tandem_worker_running") == 0
    assert value("tandem_worker_concurrency") == worker.max_jobs
    assert (value("process_resident_memory_bytes") or 0) > 0


async def test_time_by_phase(
    client: Client, redis_url: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    async with working(redis_url, tmp_path, number, chatty, metrics_port=unused_tcp_port):
        await client.result(await client.submit(number, 1))
        await client.result(await client.submit(chatty, 100))

        async def ledger_follows() -> bool:
            lag = await client.queue.events.lag()
            return lag is not None and lag.entries == 0

        await eventually(ledger_follows)
        found = await to_thread(scrape, unused_tcp_port)

    def value(name: str, phase: str) -> float:
        return found[name, frozenset({("phase", phase)})]

    assert found["tandem_attempt_write_seconds_count", frozenset()] == 2
    assert found["tandem_attempt_write_seconds_sum", frozenset()] > 0
    for phase, items in (
        ("claim", 2),
        ("finish", 2),
        ("report", 100),
        ("ledger_read", 2),
        ("ledger_write", 2),
    ):
        assert value("tandem_worker_phase_seconds_count", phase) >= 1
        assert value("tandem_worker_phase_seconds_sum", phase) > 0
        assert value("tandem_worker_phase_items_total", phase) >= items
    assert value("tandem_worker_phase_items_total", "finish") == 2
    assert value("tandem_worker_phase_items_total", "archive") > 0


async def test_a_port_in_use_stops_the_start(redis_url: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        worker = make_worker(redis_url, tmp_path, number, metrics_port=taken.getsockname()[1])
        with pytest.raises(Misconfigured, match="TANDEM_METRICS_PORT"):
            await worker.async_run()
        await worker.close()


def test_port_0_serves_nothing() -> None:
    with serving(WorkerMetrics([], 1), "127.0.0.1", 0) as port:
        assert port == 0


@given(st.lists(st.floats(0, 1e6)))
def test_buckets_count_durations_up_to_their_bounds(seconds: list[float]) -> None:
    durations = Durations()
    for one in seconds:
        durations.observe(one)
    counts = dict(durations.buckets())
    assert counts["+Inf"] == len(seconds)
    for bound in BUCKET_SECONDS:
        assert counts[str(bound)] == sum(one <= bound for one in seconds)
