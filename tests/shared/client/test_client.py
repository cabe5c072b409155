"""Where the client sends its key, and the problems that it reads."""

import httpx2
import pytest

from tandem_jobs.client.client import Client
from tandem_jobs.client.errors import problem_of
from tandem_jobs.client.http import build_request
from tandem_jobs.client.transport import Request
from tandem_shared.errors import Misconfigured


@pytest.mark.parametrize(
    ("path", "url", "given"),
    [
        ("/v1/jobs/x", "http://here.example/tandem/v1/jobs/x", True),
        ("//elsewhere.example/x", "http://here.example/tandem//elsewhere.example/x", True),
        ("https://elsewhere.example/signed?x=1", "https://elsewhere.example/signed?x=1", False),
    ],
)
async def test_only_the_api_gets_the_key(path: str, url: str, *, given: bool) -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        request = build_request(
            client, "http://here.example/tandem", "tk_abcd_secret", Request("GET", path), b""
        )
    assert ("authorization" in request.headers) == given
    assert str(request.url) == url


@pytest.mark.parametrize("key", ["two words", "schlüssel", "line\nend"])
def test_an_invalid_key_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Client("http://127.0.0.1:1", key)
    assert key not in str(caught.value)


def test_url_and_key_default_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_URL", "nowhere")
    with pytest.raises(Misconfigured, match="TANDEM_URL"):
        Client()
    monkeypatch.setenv("TANDEM_API_KEY", "two words")
    with pytest.raises(Misconfigured, match="TANDEM_API_KEY"):
        Client("http://127.0.0.1:1")


def test_the_response_of_a_proxy_is_a_problem_too() -> None:
    problem = problem_of(502, "text/html", b"<h1>Bad\n\n gateway</h1>")
    assert (problem.status, problem.type, str(problem)) == (
        502,
        "about:blank",
        "HTTP status 502: <h1>Bad gateway</h1>",
    )
    assert problem_of(500, "application/problem+json", b"[]").title == "HTTP status 500"
