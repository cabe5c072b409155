"""Both Python clients against processes that are cut off, killed and started again."""

import asyncio
import io
import os
import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tandem_jobs.client.client import AsyncClient, Client
from tandem_jobs.client.errors import JobCancelled, JobFailed, Problem
from tandem_jobs.client.models import Entry, Job
from tandem_shared.errors import Misconfigured, Unavailable
from tests.conftest import eventually
from tests.journeys.pair import KEY, ROOT, START_SECONDS, Pair, cutting

CUTS = 50


class EitherClient:
    """A blocking or an asyncio client, called as coroutines either way."""

    def __init__(self, *, blocking: bool) -> None:
        self._blocking = blocking
        self._open: list[Client | AsyncClient] = []
        self.retry_reasons: list[str] = []

    def to(self, url: str, *, patience: float = START_SECONDS) -> "EitherClient":
        """Call this URL from now on."""
        kind = Client if self._blocking else AsyncClient
        self._open.append(kind(url, KEY, patience=patience, on_retry=self.retry_reasons.append))
        return self

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self._open[-1], name)

        async def call(*arguments: Any, **named: Any) -> Any:
            if self._blocking:
                return await asyncio.to_thread(method, *arguments, **named)
            return await method(*arguments, **named)

        return call

    async def entries(
        self, job: Job | str, seen: list[Entry] | None = None, **named: Any
    ) -> list[Entry]:
        """All entries of a stream; `seen` grows as they arrive."""
        client, entries = self._open[-1], [] if seen is None else seen
        if isinstance(client, Client):

            def read() -> None:
                for entry in client.stream(job, **named):
                    entries.append(entry)

            await asyncio.to_thread(read)
        else:
            async for entry in client.stream(job, **named):
                entries.append(entry)
        return entries

    async def close(self) -> None:
        for client in self._open:
            if isinstance(client, Client):
                client.close()
            else:
                await client.close()


@pytest.fixture(params=["blocking", "asyncio"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[EitherClient]:
    either = EitherClient(blocking=request.param == "blocking")
    yield either
    await either.close()


def numbers(entries: list[Entry]) -> list[int]:
    return [entry.data["number"] for entry in entries if entry.type == "output"]


async def test_a_stream_cut_fifty_times_is_complete_and_in_order(
    pair: Pair, either: EitherClient
) -> None:
    job = await either.to(pair.url).submit("client.counts", {"count": 2000})
    async with cutting(
        pair.url, cuts=CUTS, max_bytes=12_000, seed=random.randrange(1 << 30)
    ) as proxy:
        entries = await either.to(proxy.url).entries(job)
        assert proxy.cuts_left == 0
    assert numbers(entries) == list(range(2000))
    assert len({entry.id for entry in entries}) == len(entries)
    assert [entry.type for entry in entries[-2:]] == ["state", "end"]
    assert entries[-1].job.state == "succeeded"


async def test_a_stream_survives_an_api_that_is_killed(
    pair: Pair, either: EitherClient, tmp_path: Path
) -> None:
    upto = tmp_path / "upto"
    upto.write_text("10")
    job = await either.to(pair.url).submit("client.counts", {"count": 30, "upto": str(upto)})
    seen: list[Entry] = []
    reading = asyncio.create_task(either.entries(job, seen, types="output"))
    for allowed in (20, 30):
        await eventually(lambda: len(seen) == allowed - 10, START_SECONDS)  # noqa: B023 - called before the next iteration
        pair.kill_api()
        await eventually(lambda: either.retry_reasons, START_SECONDS)
        upto.write_text(str(allowed))
        await pair.start_api()
    entries = await reading
    assert numbers(entries) == list(range(30))
    assert entries[-1].type == "end"


async def test_a_call_and_a_stream_survive_a_restart_of_redis(
    pair: Pair, either: EitherClient, tmp_path: Path
) -> None:
    upto = tmp_path / "upto"
    upto.write_text("10")
    job = await either.to(pair.url).submit("client.counts", {"count": 20, "upto": str(upto)})
    seen: list[Entry] = []
    reading = asyncio.create_task(either.entries(job, seen, types="output"))
    await eventually(lambda: len(seen) == 10, START_SECONDS)
    pair.stop_redis()
    asking = asyncio.create_task(either.get(job))
    await eventually(
        lambda: any("not available" in trouble for trouble in either.retry_reasons), START_SECONDS
    )
    await pair.start_redis()
    assert (await asking).id == job.id
    upto.write_text("20")
    assert numbers(await reading) == list(range(20))


async def test_a_stream_resumes_after_an_entry_and_is_empty_after_its_end(
    pair: Pair, either: EitherClient
) -> None:
    job = await either.to(pair.url).submit("client.counts", {"count": 50})
    entries = await either.entries(job, types=["output", "log"])
    assert {entry.type for entry in entries} == {"output", "end"}
    rest = await either.entries(job, types="output", after=entries[39].id)
    assert numbers(rest) == list(range(40, 50))
    assert await either.entries(job, after=entries[-1].id) == []


async def test_a_reader_may_stop_early(pair: Pair) -> None:
    async with AsyncClient(pair.url, KEY) as client:
        job = await client.submit("client.counts", {"count": 5000})
        stream = client.stream(job, "output")
        first = await anext(stream)
        await stream.aclose()
        assert first.data["number"] == 0
        idle = client.stream(await client.submit("client.ends", delay=60))
        assert (await anext(idle)).job.state == "scheduled"
        waiting = asyncio.ensure_future(anext(idle))
        waiting.cancel()
        await asyncio.wait([waiting])
        await idle.aclose()
    with Client(pair.url, KEY) as blocking:
        entries = blocking.stream(job, "output")
        assert next(entries).data["number"] == 0
        entries.close()


async def test_a_job_submitted_under_cuts_is_one_job(pair: Pair, either: EitherClient) -> None:
    queue = f"cuts-{os.urandom(4).hex()}"
    async with cutting(pair.url, cuts=5, max_bytes=500, seed=random.randrange(1 << 30)) as proxy:
        either.to(proxy.url)
        jobs = [
            await either.submit("client.ends", {"result": n}, queue=queue, delay="1h")
            for n in range(3)
        ]
        assert proxy.cuts_left == 0
    assert len({job.id for job in jobs}) == 3
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(base_url=pair.url, headers=headers, trust_env=False) as client:
        queues = (await client.get("/v1/queues")).json()["items"]
    assert [one["scheduled"] for one in queues if one["name"] == queue] == [3]


async def test_the_same_key_returns_the_same_job(pair: Pair, either: EitherClient) -> None:
    key = f'invoice "é" {os.urandom(4).hex()}'
    first = await either.to(pair.url).submit("client.ends", idempotency_key=key)
    again = await either.submit("client.ends", idempotency_key=key, priority="high")
    assert again.id == first.id
    with pytest.raises(Problem) as caught:
        await either.submit("client.ends", {"result": 1}, idempotency_key=key)
    assert (caught.value.status, caught.value.type) == (422, "/problems/idempotency-key-reused")


async def test_a_wait_survives_an_api_that_is_killed(
    pair: Pair, either: EitherClient, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    job = await either.to(pair.url).submit("client.ends", {"result": {"n": 1}, "go": str(go)})
    waiting = asyncio.create_task(either.result(job))
    pair.kill_api()
    await eventually(lambda: either.retry_reasons, START_SECONDS)
    await pair.start_api()
    go.touch()
    assert await waiting == {"n": 1}
    final = await either.wait(job.id)
    assert (final.state, final.attempt, final.attempts[0].outcome) == ("succeeded", 1, "succeeded")
    assert final.progress is not None
    assert final.progress.message == "page 3"


async def test_a_wait_times_out_and_ends_with_the_job(pair: Pair, either: EitherClient) -> None:
    job = await either.to(pair.url).submit(
        "client.ends", delay=60, tags={"a": "b"}, retry={"max_attempts": 2}
    )
    assert (job.state, job.tags, job.max_attempts) == ("scheduled", {"a": "b"}, 2)
    with pytest.raises(TimeoutError, match="scheduled"):
        await either.wait(job, timeout=0.05)
    assert (await either.cancel(job)).state == "cancelled"
    with pytest.raises(JobCancelled) as caught:
        await either.result(job)
    assert caught.value.job.state == "cancelled"
    assert await either.result(again := await either.replay(job)) is None
    assert (again.tags, again.max_attempts, again.id != job.id) == ({"a": "b"}, 2, True)


async def test_the_result_of_a_failed_job_raises_its_reason(
    pair: Pair, either: EitherClient
) -> None:
    job = await either.to(pair.url).submit("client.ends", {"error": "card_declined"}, wait=20)
    assert job.state == "failed"
    with pytest.raises(JobFailed, match="no more cards") as caught:
        await either.result(job)
    assert (caught.value.error.type, caught.value.error.attempt) == ("card_declined", 1)


async def test_a_refusal_is_a_problem(pair: Pair, either: EitherClient) -> None:
    either.to(pair.url)
    with pytest.raises(Problem) as caught:
        await either.submit("client.counts", {"count": "many"})
    problem = caught.value
    assert (problem.status, problem.type) == (422, "/problems/validation")
    assert [error.pointer for error in problem.errors] == ["/payload/count"]
    with pytest.raises(Problem) as caught:
        await either.get("../../livez")
    assert (caught.value.status, caught.value.type) == (404, "/problems/not-found")


async def test_a_wrong_key_is_a_problem_that_does_not_show_it(pair: Pair) -> None:
    with (
        Client(pair.url, "tk_abcd_wrongwrongwrongwrong") as client,
        pytest.raises(Problem) as caught,
    ):
        client.get("x")
    assert caught.value.status == 401
    assert "wrong" not in str(caught.value)


async def test_a_client_gives_up_after_its_patience(either: EitherClient) -> None:
    either.to("http://127.0.0.1:1", patience=0.3)
    with pytest.raises(Unavailable, match="refused"):
        await either.get("x")
    with pytest.raises(Unavailable, match="refused"):
        await either.entries("x")
    with pytest.raises(TimeoutError):
        await either.to("http://127.0.0.1:1").wait("x", timeout=0.2)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://here/", "http://", "http://here:port/", "http://here/?x=1"]
)
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured, match="TANDEM_URL"):
        Client(url)


async def test_files_are_complete_although_connections_are_cut(
    pair: Pair, either: EitherClient, tmp_path: Path
) -> None:
    data = random.randbytes(3 << 20)
    source, copy = tmp_path / "source.bin", tmp_path / "copy.bin"
    source.write_bytes(data)
    async with cutting(
        pair.url, cuts=8, max_bytes=600_000, seed=random.randrange(1 << 30)
    ) as proxy:
        file = await either.to(proxy.url).upload(source)
        assert (file.name, file.size) == ("source.bin", len(data))
        assert await either.download(file, copy) == len(data)
    assert copy.read_bytes() == data
    out = io.BytesIO()
    await either.to(pair.url).download(file.reference, out)
    assert out.getvalue() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.bin", "source.bin"]


async def test_a_pipe_is_uploaded_without_knowing_its_size(
    pair: Pair, either: EitherClient
) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a b a\n")
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        file = await either.to(pair.url).upload(pipe, name="words.txt")
    assert (file.name, file.size, file.content_type) == ("words.txt", 6, "text/plain")


async def test_a_failed_download_leaves_nothing(
    pair: Pair, either: EitherClient, tmp_path: Path
) -> None:
    with pytest.raises(Problem):
        await either.to(pair.url).download("nothing/there", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


async def test_a_result_that_became_a_file_is_downloaded(pair: Pair, either: EitherClient) -> None:
    job = await either.to(pair.url).submit("client.ends", {"size": 300_000})
    assert await either.result(job) == "x" * 300_000
    (file,) = (await either.get(job)).files
    hashed = await either.submit("file.hash", {"source": file.reference}, wait=20)
    assert hashed.result["sha256"] == file.sha256
    for named in (file, file.reference):
        out = io.BytesIO()
        assert await either.download(named, out) == file.size


def test_the_examples_of_the_page_run(pair: Pair, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "client.md").read_text()
    script = "".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    (tmp_path / "words.txt").write_text("to be or not to be\n")
    environment = {
        **os.environ,
        "TANDEM_URL": pair.url,
        "TANDEM_API_KEY": KEY,
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=START_SECONDS,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "{'word': 'to', 'count': 2}",
        "{'word': 'be', 'count': 2}",
        "{'words': 6, 'distinct': 4}",
        "/problems/validation ['/payload/uri', '/payload/url']",
    ]
