"""An API without keys is safe from web pages: of other origins, and with rebound names."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from tandem_shared.queue.queue import Queue
from tests.api.browser import needs_browser, rendered
from tests.api.serving import problem, serving

KEY = "tk_some_0123456789abcdef"
JOB = {"task": "t.any", "payload": {}}
# What a page may send without asking the API first, which is what makes these attacks possible.
ATTACKS = """<!doctype html><body><iframe name=sink></iframe><script>
const api = "%s", job = JSON.stringify({task: "t.any", payload: {}});
const send = (path, body) => fetch(api + path, {method: "POST", mode: "no-cors", body});
const form = (path, kind) => {
  const form = document.createElement("form");
  Object.assign(form, {method: "POST", action: api + path, target: "sink", enctype: kind});
  document.body.append(form);
  form.submit();
};
(async () => {
  await send("/v1/jobs", new Blob([job]));
  await send("/v1/jobs", new TextEncoder().encode(job));
  await send("/v1/jobs", job);
  await send("/v1/jobs/bulk", new Blob(["[" + job + "]"]));
  await send("/v1/jobs/replay", new Blob(["{}"]));
  await send("/v1/queues/default/pause");
  await send("/v1/files", new Blob(["data"]));
  navigator.sendBeacon(api + "/v1/jobs", new Blob([job]));
  form("/v1/queues/default/pause", "text/plain");
  await new Promise(done => setTimeout(done, 1000));
  document.body.append("attacked");
})();
</script>"""


@asynccontextmanager
async def page_server(html: str) -> AsyncIterator[int]:
    """The port of a server that answers every request with the page."""
    body = html.encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@needs_browser
async def test_a_page_of_another_origin_changes_nothing(
    client: httpx2.AsyncClient, queue: Queue, tmp_path: Path
) -> None:
    api = str(client.base_url).rstrip("/")
    async with page_server(ATTACKS % api) as port:
        url = f"http://attacker.example:{port}/"
        dom, _ = await rendered(url, tmp_path / "profile", "attacker.example")
    assert "attacked" in dom
    counted = [
        line
        for line in (await client.get("/metrics")).text.splitlines()
        if line.startswith("tandem_http_requests") and '"POST"' in line
    ]
    assert any('"403"' in line for line in counted), counted  # they did arrive
    assert not any('"2' in line for line in counted), counted
    assert (await client.get("/v1/jobs")).json()["items"] == []
    assert [one.name for one in await queue.stats() if one.paused or one.queued] == []


@needs_browser
async def test_a_rebound_name_reads_nothing(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    id = (await client.post("/v1/jobs", json=JOB)).json()["id"]
    for name, read in (("127.0.0.1", True), ("attacker.example", False)):
        url = f"http://{name}:{client.base_url.port}/v1/jobs/{id}"
        dom, _ = await rendered(url, tmp_path / name, "attacker.example")
        assert (id in dom and '"state":"queued"' in dom) == read, dom
        assert ("the Host must be" in dom) != read


async def curl(client: httpx2.AsyncClient, path: str, *options: str) -> tuple[int, str]:
    """The status and the body of a request by curl."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "--max-time", "20", "--noproxy", "*", "-w", "\n%{http_code}"),
        *options,
        f"{str(client.base_url).rstrip('/')}{path}",
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    body, _, status = output.decode().rpartition("\n")
    return int(status), body


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:1", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]", 200),
        ("[::1]:8000", 200),
        ("app.example", 200),
        ("attacker.example", 403),
        ("127.0.0.1.attacker.example", 403),
        ("localhost.attacker.example:8000", 403),
        ("app.example.attacker.example", 403),
        ("[::1].attacker.example", 403),
        ("attacker.example:127.0.0.1", 403),
        ("0.0.0.0", 403),
        ("", 403),
    ],
)
async def test_the_host_is_this_machine_or_named(
    redis_url: str, redis: object, tmp_path: Path, host: str, status: int
) -> None:
    async with serving(redis_url, tmp_path, origins="https://app.example") as client:
        header = f"Host: {host}" if host else "Host;"
        assert (await curl(client, "/livez", "-H", header))[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Origin": "http://127.0.0.1:{port}"}, 202),
        ({"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}, 202),
        ({"Sec-Fetch-Site": "same-origin"}, 202),
        ({"Sec-Fetch-Site": "none"}, 202),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-site"}, 403),
    ],
)
async def test_unsafe_requests_come_from_own_pages(
    redis_url: str, worker: object, tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async with serving(redis_url, tmp_path, origins="https://app.example") as client:
        options = [
            part
            for name, value in headers.items()
            for part in ("-H", f"{name}: {value.format(port=client.base_url.port)}")
        ]
        answer = await curl(client, "/v1/jobs", "--json", json.dumps(JOB), *options)
        assert answer[0] == status, answer
        assert (await curl(client, "/v1/files", "-F", "file=@-;filename=x", *options))[0] == (
            201 if status == 202 else 403
        )
        assert (await curl(client, "/v1/jobs", *options))[0] == 200


@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["open", "keys"])
async def test_json_needs_its_type(
    redis_url: str, worker: object, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    async with serving(redis_url, tmp_path, keys=keys) as client:
        headers = {"Authorization": f"Bearer {KEY}"}
        for path, body in (
            ("/v1/jobs", json.dumps(JOB)),
            ("/v1/jobs/bulk", json.dumps([JOB])),
            ("/v1/jobs/replay", '{"state": "failed", "dry_run": true}'),
        ):
            for kind in ({}, {"Content-Type": "text/plain"}):
                answer = await client.post(path, content=body, headers={**headers, **kind})
                assert problem(answer)[0] == 415, (path, kind)
            typed = {**headers, "Content-Type": "application/json"}
            assert (await client.post(path, content=body, headers=typed)).is_success


async def test_forms_reach_no_endpoint_but_uploads(client: httpx2.AsyncClient) -> None:
    for path in ("/v1/queues/default/pause", "/v1/jobs/01JC8XW3T4Z5/cancel"):
        assert problem(await client.post(path, data={"a": "b"}))[0] == 415
    assert (await client.post("/v1/queues/default/pause")).is_success
    assert (await client.post("/v1/queues/default/resume")).is_success


async def test_with_keys_any_host_and_origin_is_served(
    redis_url: str, worker: object, tmp_path: Path
) -> None:
    async with serving(redis_url, tmp_path, keys=(KEY,)) as client:
        headers = {
            "Authorization": f"Bearer {KEY}",
            "Host": "app.example",
            "Origin": "https://other.example",
            "Sec-Fetch-Site": "cross-site",
        }
        assert (await client.post("/v1/jobs", json=JOB, headers=headers)).status_code == 202


@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["open", "keys"])
async def test_two_authorization_headers_are_malformed(
    redis_url: str, redis: object, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    async with serving(redis_url, tmp_path, keys=keys) as client:
        one = ("-H", f"Authorization: Bearer {KEY}")
        assert (await curl(client, "/v1/jobs", *one))[0] == 200
        assert (await curl(client, "/v1/jobs", *one, *one))[0] == 400
