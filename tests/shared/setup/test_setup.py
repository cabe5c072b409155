"""Installations that are set up wrongly, and where real processes say so."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tandem_shared.dev.servers import die_with_parent, free_port, redis_server
from tests.conftest import eventually, running


class Process:
    """An API or a worker whose log lines are read from a file."""

    def __init__(self, kind: str, folder: Path, **given: str) -> None:
        self.log, self.port = folder / f"{kind}.log", free_port()
        env = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
        env |= {
            "TANDEM_PORT": str(self.port),
            "TANDEM_LOG": "json",
            "TANDEM_LINGER": "0",
            "TANDEM_STORE_URL": (folder / "files").as_uri(),
            "TANDEM_DATABASE_URL": f"sqlite://{folder / 'tandem.db'}",
            **given,
        }
        self.env = env
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                die_with_parent([sys.executable, "-m", f"tandem_{kind}"]),
                env=env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]

    def said(self, text: str) -> bool:
        return any(text in str(line) for line in self.lines())

    def ready(self) -> Any:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/readyz", timeout=5
            ) as answer:
                return json.load(answer)
        except OSError:
            return None

    def warns(self, text: str) -> bool:
        return any(text in one["detail"] for one in (self.ready() or {}).get("warnings", ()))


@contextmanager
def process(kind: str, folder: Path, **given: str) -> Iterator[Process]:
    one = Process(kind, folder, **given)
    try:
        yield one
    finally:
        one.child.terminate()  # so that a worker retires, and no other test sees it
        try:
            one.child.communicate(timeout=20)  # closes the pipe, too
        finally:
            one.child.kill()


def doctor(env: dict[str, str]) -> tuple[int, str]:
    argv = [sys.executable, "-m", "tandem_jobs.cli", "doctor"]
    done = subprocess.run(
        argv, env={**env, "TANDEM_LEASE": "1"}, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def forgetful_redis() -> Iterator[str]:
    """The URL of a Redis as packages install it, with a bound on its memory."""
    options = ("--appendonly", "no", "--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    # A short name, for its socket; and not where the Redis of the other tests has its own.
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        good = redis_server(Path(directory))
        with running(replace(good, argv=(*good.argv, *options))):
            yield good.url


async def test_a_redis_that_may_forget_jobs_is_reported_everywhere(
    forgetful_redis: str, tmp_path: Path
) -> None:
    given = {"TANDEM_REDIS_URL": forgetful_redis}
    with process("api", tmp_path, **given) as api, process("worker", tmp_path, **given) as worker:
        for words in ("maxmemory-policy is allkeys-lru", "appendonly is no"):
            await eventually(partial(api.warns, words), 60)
            await eventually(partial(api.said, words), 60)
            await eventually(partial(worker.said, words), 60)
        code, text = await asyncio.to_thread(doctor, api.env)
    assert code == 1
    assert "setup-weak: redis (maxmemory-policy is allkeys-lru" in text


async def test_our_own_redis_is_not_warned_about(redis_url: str, tmp_path: Path) -> None:
    with process("api", tmp_path, TANDEM_REDIS_URL=redis_url) as api:
        await eventually(lambda: (api.ready() or {}).get("warnings") == [], 60)
        _, text = await asyncio.to_thread(doctor, api.env)
        assert "setup-weak" not in text  # other tests leave jobs in this Redis
        levels = {line["event"]: line["level"] for line in api.lines()}
    assert [event for event, level in levels.items() if level == "warning"] == [
        "TANDEM_KEYS is not set: the API is open to everybody on this machine"
    ]


async def test_a_missing_bucket_is_named_by_log_probe_and_upload(
    redis_url: str, s3_url: str, tmp_path: Path
) -> None:
    assert s3_url.startswith("s3://")  # and its fixture sets the endpoint and the credentials
    given = {"TANDEM_REDIS_URL": redis_url, "TANDEM_STORE_URL": "s3://nowhere/x"}
    with process("api", tmp_path, **given) as api, process("worker", tmp_path, **given) as worker:
        words = "TANDEM_STORE_URL: the file store failed"
        await eventually(lambda: api.warns(words), 60)
        await eventually(lambda: worker.said(words), 60)
        upload = await asyncio.to_thread(
            subprocess.run,
            ["curl", "-s", "--data-binary", "hello", f"http://127.0.0.1:{api.port}/v1/files"],
            capture_output=True,
            check=True,
        )
    assert json.loads(upload.stdout)["status"] == 503
    assert api.said("does not exist")


async def test_a_database_that_does_not_exist_is_named(
    redis_url: str, postgres_url: str, tmp_path: Path
) -> None:
    base, _, options = postgres_url.partition("?")
    url = f"{base.rpartition('/')[0]}/nowhere?{options}"
    given = {"TANDEM_REDIS_URL": redis_url, "TANDEM_DATABASE_URL": url}
    with process("api", tmp_path, **given) as api, process("worker", tmp_path, **given) as worker:
        words = "the database does not exist"
        await eventually(lambda: api.warns(words), 60)
        await eventually(lambda: worker.said(words), 60)


async def test_workers_with_another_store_and_lease_are_named(
    redis_url: str, tmp_path: Path
) -> None:
    given = {"TANDEM_REDIS_URL": redis_url}
    other = {"TANDEM_STORE_URL": (tmp_path / "other").as_uri(), "TANDEM_LEASE": "20s"}
    with process("worker", tmp_path, **given, **other) as worker:
        await eventually(lambda: worker.said("worker is ready"), 60)
        with process("api", tmp_path, **given) as api:
            await eventually(lambda: api.warns("TANDEM_STORE_URL differs"), 60)
            await eventually(lambda: api.warns("TANDEM_LEASE differs"), 60)
            assert not api.warns("TANDEM_DATABASE_URL differs"), api.ready()
            assert api.said("TANDEM_STORE_URL differs")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://127.0.0.1:{free}/0", "connection refused"),
        ("redis://nohost.invalid/0", "the host name is unknown"),
        ("unix:///nonexistent/redis.sock", "there is no such socket"),
    ],
)
async def test_an_unreachable_redis_comes_with_its_reason(
    url: str, reason: str, tmp_path: Path
) -> None:
    given = {"TANDEM_REDIS_URL": url.format(free=free_port())}
    with process("worker", tmp_path, **given) as worker:
        await eventually(lambda: worker.said(reason), 60)
        assert reason in str(worker.lines()[0])
