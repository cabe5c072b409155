"""The API under a path prefix, behind a proxy that keeps the prefix and one that removes it."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import websockets

from tandem_shared.dev.servers import LocalServer, free_port
from tests.api.browser import needs_browser, rendered
from tests.api.fake_worker import FakeWorker
from tests.api.serving import problem, serving
from tests.conftest import eventually, started

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
CONFIGURATION = """
pid {root}/pid; error_log stderr; daemon off; master_process off;
events {{}}
http {{
  access_log off;
  client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
  uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
  server {{
    listen 127.0.0.1:{port};
    location /tandem/ {{
      proxy_pass {target};
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $http_connection;
      proxy_buffering off;
    }}
  }}
}}
"""


@pytest.fixture(params=["kept", "removed", "no proxy"])
async def client(
    request: pytest.FixtureRequest, redis_url: str, worker: FakeWorker, tmp_path: Path
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of nginx, which publishes the API under /tandem, or of the API itself."""
    if NGINX is None and request.param != "no proxy":
        pytest.skip("needs nginx")
    async with serving(redis_url, tmp_path / "store", root_path="/tandem/") as api:
        url = str(api.base_url).rstrip("/")
        if NGINX is None or request.param == "no proxy":
            yield api
            return
        target = url if request.param == "kept" else f"{url}/"
        port = free_port()
        configuration = tmp_path / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(root=tmp_path, port=port, target=target), encoding="utf-8"
        )
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30
        ) as client:

            async def ready() -> bool:
                try:
                    return (await client.get("/tandem/livez")).status_code == 200
                except httpx2.TransportError:
                    return False

            server = LocalServer("nginx", (NGINX, "-c", str(configuration)), "", ready)
            with started(server):
                await eventually(ready)
                yield client


async def test_links_and_locations_lead_back_through_the_proxy(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    sent = await client.post("/tandem/v1/jobs", json={"task": "t.any"})
    assert (sent.status_code, sent.headers["location"]) == (
        202,
        f"/tandem/v1/jobs/{sent.json()['id']}",
    )
    shown = (await client.get(sent.headers["location"])).json()
    assert shown["id"] == sent.json()["id"]
    await worker.drain()
    for link in shown["links"].values():
        assert (await client.get(link)).status_code == 200, link
    accept = {"Accept": "application/jsonl"}
    lines = (await client.get(shown["links"]["stream"], headers=accept)).text.splitlines()
    assert all(f'"self":"{shown["links"]["self"]}"' in line for line in lines)
    await client.post("/tandem/v1/jobs", json={"task": "t.any"})
    page = await client.get("/tandem/v1/jobs", params={"limit": 1})
    following = await client.get(page.links["next"]["url"])
    assert following.json()["items"][0]["links"]["self"] == shown["links"]["self"]
    file = await client.post("/tandem/v1/files", content=b"x")
    assert (await client.get(file.headers["location"])).content == b"x"


async def test_the_prefix_is_in_problems_and_in_the_document(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/tandem/v1/jobs/x")
    assert problem(answer)[0] == 404
    assert answer.json()["instance"] == "/tandem/v1/jobs/x"
    document: dict[str, Any] = (await client.get("/tandem/openapi.json")).json()
    assert document["servers"] == [{"url": "/tandem"}]


async def test_a_websocket_opens_behind_the_proxy(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = (await client.post("/tandem/v1/jobs", json={"task": "t.any"})).json()["id"]
    await worker.drain()
    url = f"ws://127.0.0.1:{client.base_url.port}/tandem/v1/stream"
    async with websockets.connect(url, subprotocols=[websockets.Subprotocol("tandem.v1")]) as ws:
        await ws.send(f'{{"subscribe": "{id}", "types": []}}')
        assert f'"self":"/tandem/v1/jobs/{id}"' in str(await ws.recv())


@needs_browser
async def test_the_documentation_works_behind_the_proxy(
    client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    dom, complaints = await rendered(f"{client.base_url}/tandem/docs", tmp_path / "profile")
    assert (complaints, 'id="operations-jobs-submitJob"' in dom) == ("", True)


@pytest.mark.parametrize("path", ["/v1/jobs", "/tandem/v1/jobs", "/tandemx", "/tandem/tandem/v1"])
async def test_the_prefix_is_removed_once(
    redis_url: str, worker: FakeWorker, tmp_path: Path, path: str
) -> None:
    assert worker.entries
    async with serving(redis_url, tmp_path, root_path="/tandem") as api:
        found = path in ("/v1/jobs", "/tandem/v1/jobs")
        assert (await api.get(path)).status_code == (200 if found else 404)


async def test_only_the_socket_of_the_prefix_is_upgraded(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    assert worker.entries
    async with serving(redis_url, tmp_path, root_path="/tandem") as api:
        address = f"ws://127.0.0.1:{api.base_url.port}"
        for path in ("/v1/stream", "/tandem/v1/stream"):
            async with websockets.connect(f"{address}{path}"):
                pass
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"{address}/other/v1/stream")
        assert refused.value.response.status_code == 404


@pytest.mark.parametrize("path", ["/v1", "/v1/jobs"])
async def test_a_prefix_may_look_like_a_path_of_the_api(
    redis_url: str, worker: FakeWorker, tmp_path: Path, path: str
) -> None:
    async with serving(redis_url, tmp_path, root_path=path) as api:
        sent = await api.post(f"{path}/v1/jobs", json={"task": "t.any"})
        assert (await api.get(sent.headers["location"])).json()["id"] == sent.json()["id"]
        await worker.drain()
