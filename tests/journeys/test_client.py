"""Both Python clients against real processes that are cut off, killed and restarted."""

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


class Speaker:
    """Either client, as coroutines."""

    def __init__(self, *, blocking: bool) -> None:
        self._blocking = blocking
        self._open: list[Client | AsyncClient] = []
        self.troubles: list[str] = []

    def to(self, url: str, *, patience: float = START_SECONDS) -> "Speaker":
        """A client of this URL from here on."""
        kind = Client if self._blocking else AsyncClient
        self._open.append(kind(url, KEY, patience=patience, on_retry=self.troubles.append))
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
        """All of a stream; `seen` grows as they come."""
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


@pytest.fixture(params=["blocking", "suspending"])
async def speaker(request: pytest.FixtureRequest) -> AsyncIterator[Speaker]:
    speaker = Speaker(blocking=request.param == "blocking")
    yield speaker
    await speaker.close()


def numbers(entries: list[Entry]) -> list[int]:
    return [entry.data["number"] for entry in entries if entry.type == "output"]


# ------------------------------------------------------------------------------------------ streams


async def test_a_stream_cut_fifty_times_is_complete_and_in_order(
    pair: Pair, speaker: Speaker
) -> None:
    job = await speaker.to(pair.url).submit("client.counts", {"count": 2000})
    async with cutting(
        pair.url, cuts=CUTS, max_bytes=12_000, seed=random.randrange(1 << 30)
    ) as proxy:
        entries = await speaker.to(proxy.url).entries(job)
        assert proxy.cuts_left == 0
    assert numbers(entries) == list(range(2000))
    assert len({entry.id for entry in entries}) == len(entries)
    assert [entry.type for entry in entries[-2:]] == ["state", "end"]
    assert entries[-1].job.state == "succeeded"


async def test_a_stream_lives_through_an_api_that_is_killed(
    pair: Pair, speaker: Speaker, tmp_path: Path
) -> None:
    upto = tmp_path / "upto"
    upto.write_text("10")
    job = await speaker.to(pair.url).submit("client.counts", {"count": 30, "upto": str(upto)})
    seen: list[Entry] = []
    reading = asyncio.create_task(speaker.entries(job, seen, types="output"))
    for allowed in (20, 30):
        await eventually(lambda: len(seen) == allowed - 10, START_SECONDS)  # noqa: B023 - it is called before the next turn
        pair.kill_api()
        await eventually(lambda: speaker.troubles, START_SECONDS)
        upto.write_text(str(allowed))
        await pair.start_api()
    entries = await reading
    assert numbers(entries) == list(range(30))
    assert entries[-1].type == "end"


async def test_a_call_and_a_stream_live_through_a_redis_that_restarts(
    pair: Pair, speaker: Speaker, tmp_path: Path
) -> None:
    upto = tmp_path / "upto"
    upto.write_text("10")
    job = await speaker.to(pair.url).submit("client.counts", {"count": 20, "upto": str(upto)})
    seen: list[Entry] = []
    reading = asyncio.create_task(speaker.entries(job, seen, types="output"))
    await eventually(lambda: len(seen) == 10, START_SECONDS)
    pair.stop_redis()
    asking = asyncio.create_task(speaker.get(job))
    await eventually(
        lambda: any("cannot serve" in trouble for trouble in speaker.troubles), START_SECONDS
    )
    await pair.start_redis()
    assert (await asking).id == job.id
    upto.write_text("20")
    assert numbers(await reading) == list(range(20))


async def test_a_stream_goes_on_after_an_entry_and_knows_its_end(
    pair: Pair, speaker: Speaker
) -> None:
    job = await speaker.to(pair.url).submit("client.counts", {"count": 50})
    entries = await speaker.entries(job, types=["output", "log"])
    assert {entry.type for entry in entries} == {"output", "end"}
    rest = await speaker.entries(job, types="output", after=entries[39].id)
    assert numbers(rest) == list(range(40, 50))
    assert await speaker.entries(job, after=entries[-1].id) == []


async def test_a_reader_that_stops_lets_go(pair: Pair) -> None:
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


# --------------------------------------------------------------------------------- submit, and wait


async def test_a_job_submitted_under_cuts_is_one_job(pair: Pair, speaker: Speaker) -> None:
    queue = f"cuts-{os.urandom(4).hex()}"
    async with cutting(pair.url, cuts=5, max_bytes=500, seed=random.randrange(1 << 30)) as proxy:
        speaker.to(proxy.url)
        jobs = [
            await speaker.submit("client.ends", {"result": n}, queue=queue, delay="1h")
            for n in range(3)
        ]
        assert proxy.cuts_left == 0
    assert len({job.id for job in jobs}) == 3
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(base_url=pair.url, headers=headers, trust_env=False) as client:
        queues = (await client.get("/v1/queues")).json()["items"]
    assert [one["scheduled"] for one in queues if one["name"] == queue] == [3]


async def test_the_same_key_brings_the_same_job(pair: Pair, speaker: Speaker) -> None:
    key = f'invoice "é" {os.urandom(4).hex()}'
    first = await speaker.to(pair.url).submit("client.ends", idempotency_key=key)
    again = await speaker.submit("client.ends", idempotency_key=key, priority="high")
    assert again.id == first.id
    with pytest.raises(Problem) as caught:
        await speaker.submit("client.ends", {"result": 1}, idempotency_key=key)
    assert (caught.value.status, caught.value.type) == (422, "/problems/idempotency-key-reused")


async def test_a_wait_lives_through_an_api_that_is_killed(
    pair: Pair, speaker: Speaker, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    job = await speaker.to(pair.url).submit("client.ends", {"result": {"n": 1}, "go": str(go)})
    waiting = asyncio.create_task(speaker.result(job))
    pair.kill_api()
    await eventually(lambda: speaker.troubles, START_SECONDS)
    await pair.start_api()
    go.touch()
    assert await waiting == {"n": 1}
    final = await speaker.wait(job.id)
    assert (final.state, final.attempt, final.attempts[0].outcome) == ("succeeded", 1, "succeeded")
    assert final.progress is not None
    assert final.progress.message == "page 3"


async def test_a_wait_has_an_end(pair: Pair, speaker: Speaker) -> None:
    job = await speaker.to(pair.url).submit(
        "client.ends", delay=60, tags={"a": "b"}, retry={"max_attempts": 2}
    )
    assert (job.state, job.tags, job.max_attempts) == ("scheduled", {"a": "b"}, 2)
    with pytest.raises(TimeoutError, match="scheduled"):
        await speaker.wait(job, timeout=0.05)
    assert (await speaker.cancel(job)).state == "cancelled"
    with pytest.raises(JobCancelled) as caught:
        await speaker.result(job)
    assert caught.value.job.state == "cancelled"
    assert await speaker.result(again := await speaker.replay(job)) is None
    assert (again.tags, again.max_attempts, again.id != job.id) == ({"a": "b"}, 2, True)


async def test_a_failed_job_says_why(pair: Pair, speaker: Speaker) -> None:
    job = await speaker.to(pair.url).submit("client.ends", {"error": "card_declined"}, wait=20)
    assert job.state == "failed"
    with pytest.raises(JobFailed, match="no more cards") as caught:
        await speaker.result(job)
    assert (caught.value.error.type, caught.value.error.attempt) == ("card_declined", 1)


# ----------------------------------------------------------------------------------------- refusals


async def test_a_refusal_is_a_problem(pair: Pair, speaker: Speaker) -> None:
    speaker.to(pair.url)
    with pytest.raises(Problem) as caught:
        await speaker.submit("client.counts", {"count": "many"})
    problem = caught.value
    assert (problem.status, problem.type) == (422, "/problems/validation")
    assert [error.pointer for error in problem.errors] == ["/payload/count"]
    with pytest.raises(Problem) as caught:
        await speaker.get("../../livez")
    assert (caught.value.status, caught.value.type) == (404, "/problems/not-found")


async def test_a_wrong_key_is_a_problem_and_told_to_nobody(pair: Pair) -> None:
    with (
        Client(pair.url, "tk_abcd_wrongwrongwrongwrong") as client,
        pytest.raises(Problem) as caught,
    ):
        client.get("x")
    assert caught.value.status == 401
    assert "wrong" not in str(caught.value)


async def test_patience_ends(speaker: Speaker) -> None:
    speaker.to("http://127.0.0.1:1", patience=0.3)
    with pytest.raises(Unavailable, match="refused"):
        await speaker.get("x")
    with pytest.raises(Unavailable, match="refused"):
        await speaker.entries("x")
    with pytest.raises(TimeoutError):
        await speaker.to("http://127.0.0.1:1").wait("x", timeout=0.2)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://here/", "http://", "http://here:port/", "http://here/?x=1"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured, match="TANDEM_URL"):
        Client(url)


# -------------------------------------------------------------------------------------------- files


async def test_files_are_whole_however_often_they_are_cut(
    pair: Pair, speaker: Speaker, tmp_path: Path
) -> None:
    data = random.randbytes(3 << 20)
    source, copy = tmp_path / "source.bin", tmp_path / "copy.bin"
    source.write_bytes(data)
    async with cutting(
        pair.url, cuts=8, max_bytes=600_000, seed=random.randrange(1 << 30)
    ) as proxy:
        file = await speaker.to(proxy.url).upload(source)
        assert (file.name, file.size) == ("source.bin", len(data))
        assert await speaker.download(file, copy) == len(data)
    assert copy.read_bytes() == data
    out = io.BytesIO()
    await speaker.to(pair.url).download(file.reference, out)
    assert out.getvalue() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.bin", "source.bin"]


async def test_a_stream_of_bytes_is_uploaded_without_knowing_its_size(
    pair: Pair, speaker: Speaker
) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a b a\n")
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        file = await speaker.to(pair.url).upload(pipe, name="words.txt")
    assert (file.name, file.size, file.content_type) == ("words.txt", 6, "text/plain")


async def test_a_failed_download_leaves_nothing(
    pair: Pair, speaker: Speaker, tmp_path: Path
) -> None:
    with pytest.raises(Problem):
        await speaker.to(pair.url).download("nothing/there", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


async def test_a_result_that_became_a_file_is_followed(pair: Pair, speaker: Speaker) -> None:
    job = await speaker.to(pair.url).submit("client.ends", {"size": 300_000})
    assert await speaker.result(job) == "x" * 300_000
    (file,) = (await speaker.get(job)).files
    hashed = await speaker.submit("file.hash", {"source": file.reference}, wait=20)
    assert hashed.result["sha256"] == file.sha256
    for named in (file, file.reference):
        out = io.BytesIO()
        assert await speaker.download(named, out) == file.size


# --------------------------------------------------------------------------------------------- docs


def test_the_page_does_what_it_says(pair: Pair, tmp_path: Path) -> None:
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
