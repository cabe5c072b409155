"""GET /metrics, read by the Prometheus parser."""

from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from tandem_api.operations.metrics import MAX_QUEUES
from tests.api.fake_worker import FakeWorker
from tests.api.server.test_supervisor import address, api, ready, several
from tests.api.serving import serving
from tests.conftest import eventually

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in families
        for one in family.samples
    }


def sample(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


async def scrape(client: httpx2.AsyncClient) -> Samples:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples(answer.text)


async def test_queues_by_state_and_age(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    await client.post("/v1/jobs", json={"task": "t.any"})
    await client.post(
        "/v1/jobs", json={"task": "t.any", "options": {"delay": "1h", "queue": "other"}}
    )
    found = await scrape(client)
    assert sample(found, "tandem_queue_jobs", queue="default", state="queued") == 1
    assert sample(found, "tandem_queue_jobs", queue="default", state="scheduled") == 0
    assert sample(found, "tandem_queue_jobs", queue="other", state="scheduled") == 1
    assert (sample(found, "tandem_queue_oldest_age_seconds", queue="default") or 0) > 0
    assert sample(found, "tandem_queue_oldest_age_seconds", queue="other") == 0
    assert sample(found, "tandem_redis_up") == 1


async def test_queues_that_clients_name_are_no_endless_series(
    client: httpx2.AsyncClient,
) -> None:
    jobs = [
        {"task": "t.any", "options": {"queue": f"q{number}"}}
        for number in (*range(MAX_QUEUES + 40), 7, 7)
    ]
    assert (await client.post("/v1/jobs/bulk", json=jobs)).status_code == 200
    found = await scrape(client)
    queues = {dict(labels)["queue"] for name, labels in found if name == "tandem_queue_jobs"}
    assert len(queues) == MAX_QUEUES + 1
    assert sample(found, "tandem_queue_jobs", queue="q7", state="waiting") == 3
    assert sample(found, "tandem_queue_jobs", queue="*", state="waiting") == 40


async def test_requests_by_route_method_and_status(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = (await client.post("/v1/jobs", json={"task": "t.any"})).json()["id"]
    for _ in range(3):
        await client.get(f"/v1/jobs/{id}")
    await client.get("/v1/jobs/nobody")
    await client.get("/not/a/route/of/ours")
    await client.request("BREW", "/v1/jobs")
    found = await scrape(client)
    job = "/v1/jobs/{id}"
    assert sample(found, "tandem_http_requests_total", method="GET", route=job, status="200") == 3
    assert sample(found, "tandem_http_requests_total", method="GET", route=job, status="404") == 1
    assert (
        sample(found, "tandem_http_requests_total", method="GET", route="other", status="404") == 1
    )
    assert sample(found, "tandem_http_request_seconds_count", method="GET", route=job) == 4
    assert not [
        key for key in found if id in str(key) or "BREW" in str(key) or "not/a/route" in str(key)
    ]


async def test_the_wait_for_redis_is_measured(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = (await client.post("/v1/jobs", json={"task": "t.any"})).json()["id"]
    for _ in range(3):
        await client.get(f"/v1/jobs/{id}")
    found = await scrape(client)
    for call, count in (("submit", 1), ("read", 3), ("output", 0)):
        assert sample(found, "tandem_http_redis_calls_total", call=call) == count
        assert bool(sample(found, "tandem_http_redis_seconds_total", call=call)) is bool(count)


async def test_openmetrics_is_served_on_request(client: httpx2.AsyncClient) -> None:
    answer = await client.get(
        "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_without_redis_the_other_metrics_remain(
    redis_url: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    async with serving(f"redis://127.0.0.1:{unused_tcp_port}/0", tmp_path) as client:
        await client.get("/livez")
        found = await scrape(client)
    assert sample(found, "tandem_redis_up") == 0
    assert (
        sample(found, "tandem_http_requests_total", method="GET", route="/livez", status="200") == 1
    )


@pytest.mark.parametrize("key", ["tk_main_0123456789abcdef"])
async def test_metrics_require_a_key_once_keys_are_set(
    redis_url: str, tmp_path: Path, key: str
) -> None:
    async with serving(redis_url, tmp_path, keys=(key,)) as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (
            await client.get("/metrics", headers={"Authorization": f"Bearer {key}"})
        ).status_code == 200


async def test_metrics_of_all_processes_add_up(
    redis_url: str, redis: Redis, worker: FakeWorker, tmp_path: Path
) -> None:
    async with api(tmp_path, redis_url, "--port", "0", "--processes", "2") as process:
        url = await address(process)
        await ready(url)
        await several(process, 2)
        for _ in range(20):  # one connection each: the kernel spreads them over the processes
            async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
                assert (await client.get("/livez")).status_code == 200

        async def all_counted() -> bool:
            async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
                found = await scrape(client)
            return (
                sample(
                    found, "tandem_http_requests_total", method="GET", route="/livez", status="200"
                )
                == 20
            )

        await eventually(all_counted)
