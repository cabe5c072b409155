"""The pages of the API in a real browser without a network, and their headers."""

import re
from pathlib import Path

import httpx2
import pytest

from tests.api.browser import needs_browser, rendered
from tests.api.serving import problem, serving

PAGES = ("/docs", "/problems/validation", "/problems/unknown-task", "/problems/job-failed")


@needs_browser
async def test_the_documentation_works_without_a_network(
    client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    dom, complaints = await rendered(f"{client.base_url}/docs", tmp_path / "profile")
    assert complaints == ""
    for operation in ("jobs-submitJob", "jobs-listJobs", "files-uploadFile"):
        assert f'id="operations-{operation}"' in dom


@pytest.mark.parametrize("path", PAGES)
async def test_pages_have_a_strict_policy_and_only_own_files(
    client: httpx2.AsyncClient, path: str
) -> None:
    page = await client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["x-content-type-options"] == "nosniff"
    policy = dict(
        directive.strip().partition(" ")[::2]
        for directive in page.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert "<style" not in page.text
    assert not re.search(r"<script(?! src=)", page.text)
    for link in re.findall(r'(?:src|href)="([^"]*)"', page.text):
        assert "//" not in link
        file = await client.get(str(page.url.join(link)))
        assert (file.status_code, file.headers.get("x-content-type-options")) in (
            (200, "nosniff"),
            (200, None),  # openapi.json
        )


async def test_pages_need_no_key(redis_url: str, redis: object, tmp_path: Path) -> None:
    async with serving(redis_url, tmp_path, keys=("tk_some_0123456789abcdef",)) as client:
        for path in (*PAGES, "/docs/start.js", "/docs/favicon.svg", "/docs/swagger-ui.css"):
            assert (await client.get(path)).status_code == 200, path
        assert problem(await client.get("/v1/jobs"))[0] == 401


async def test_the_type_of_every_problem_is_a_page(client: httpx2.AsyncClient) -> None:
    for method, path, status in (
        ("GET", "/v1/jobs?state=x", 422),
        ("GET", "/v1/jobs/x", 404),
        ("PUT", "/v1/jobs", 405),
        ("GET", "/v1/jobs?cursor=x", 400),
    ):
        answer = await client.request(method, path)
        assert answer.status_code == status
        page = await client.get(answer.json()["type"])
        assert (page.status_code, answer.json()["title"] in page.text) == (200, True)
    assert problem(await client.get("/problems/nothing"))[0] == 404
