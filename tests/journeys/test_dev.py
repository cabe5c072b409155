"""`tandem dev` as a user runs it."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tandem_shared.dev.servers import redis_program
from tests.conftest import eventually
from tests.shared.dev.test_servers import alive

TASKS = ["http.request", "sql.query", "file.hash", "text.wordcount"]
START_SECONDS = 60.0  # at most; a start takes three


class Dev:
    """A running `tandem dev` and what it has printed."""

    def __init__(self, data: Path, *options: str, **environment: str) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tandem_jobs.cli",
                "dev",
                "--data-dir",
                str(data),
                "--port",
                "0",
                *options,
            ],
            env={**env, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def pids(self, name: str) -> list[int]:
        """The process ids of a child, one for each start that became ready."""
        return [
            int(pid)
            for pid in re.findall(rf"{name}: ready after [\d.]+ s \(pid (\d+)\)", self.text)
        ]

    def family(self) -> list[int]:
        return [one.pid for one in psutil.Process(self.process.pid).children(recursive=True)]

    async def url(self) -> str:
        """The URL of the API, once everything is ready."""
        await eventually(
            lambda: "tandem   | serving at" in self.text or self.process.poll() is not None,
            START_SECONDS,
        )
        found = re.search(r"tandem   \| serving at (http://\S+)", self.text)
        assert found, self.text
        return found[1]

    async def exit_code(self) -> int:
        """The exit code, once it has ended."""
        await eventually(lambda: self.process.poll() is not None, START_SECONDS)
        await asyncio.to_thread(self._reader.join, 10)
        assert self.process.returncode is not None
        return self.process.returncode

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        if self.process.stdout:
            self.process.stdout.close()


@contextmanager
def dev(data: Path, *options: str, **environment: str) -> Iterator[Dev]:
    running = Dev(data, *options, **environment)
    try:
        yield running
    finally:
        running.kill()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as client:
        yield client


async def get(http: aiohttp.ClientSession, url: str) -> Any:
    try:
        async with http.get(url) as response:
            return await response.json() if response.ok else None
    except (aiohttp.ClientError, TimeoutError):
        return None


async def test_once_runs_one_job_of_each_family_and_leaves_no_process_behind(
    tmp_path: Path,
) -> None:
    with dev(tmp_path, "--once") as running:
        await eventually(
            lambda: running.pids("worker") or running.process.poll() is not None, START_SECONDS
        )
        family = running.family()
        assert await running.exit_code() == 0, running.text
    announced = re.findall(
        r"^demo     \| ([a-z]+\.[a-z]+): .*(?<!uploading its input)$", running.text, re.MULTILINE
    )
    assert announced == TASKS
    assert running.text.count('"type":"end"') + running.text.count("succeeded") >= len(TASKS)
    assert "4 of 4 jobs succeeded" in running.text
    assert len(re.findall(r"first result after \d+ ms", running.text)) == len(TASKS)
    assert running.text.count("$ curl -s http://127.0.0.1:") >= 2 * len(TASKS)
    assert (
        "TANDEM_HTTP_ALLOW is not set: tasks may also reach this machine (127.0.0.0/8, ::1)"
        in running.text
    )
    assert len(family) >= 4
    assert not [pid for pid in family if alive(pid)]


async def test_each_child_runs_its_command_line_in_its_own_process_group(
    tmp_path: Path,
) -> None:
    with dev(
        tmp_path, "--no-demo", "--workers", "2", TANDEM_MARK="kept", PYTHONPATH=str(Path.cwd())
    ) as running:
        await running.url()
        children = psutil.Process(running.process.pid).children()
        commands = {child.pid: " ".join(child.cmdline()) for child in children}
        for part, count in (
            (redis_program().name, 1),
            ("nx-27017", 1),
            (" api --host", 1),
            (" worker", 2),
        ):
            assert sum(part in command for command in commands.values()) == count, commands
        assert not any("daemonize yes" in command for command in commands.values())
        for child in children:
            assert os.getpgid(child.pid) == child.pid
            if "redis-server" in commands[child.pid]:
                continue  # Redis overwrites its environment with its process title
            assert child.environ()["TANDEM_MARK"] == "kept"
            assert child.environ()["PYTHONPATH"].split(os.pathsep)[0] == str(Path.cwd())
            assert child.environ()["TANDEM_DRAIN"] == "5"


async def test_a_second_one_with_the_same_data_is_refused(tmp_path: Path) -> None:
    with dev(tmp_path, "--no-demo") as first, dev(tmp_path, "--no-demo") as second:
        for one, other in ((first, second), (second, first)):
            await eventually(
                lambda: first.process.poll() is not None or second.process.poll() is not None,
                START_SECONDS,
            )
            if one.process.poll() is not None:
                assert await one.exit_code() == 2
                assert one.lines == [
                    f"--data-dir: another tandem dev (pid {other.process.pid}) uses {tmp_path}",
                ]
                await other.url()
                break


async def test_a_killed_child_is_restarted(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    with dev(tmp_path, "--no-demo") as running:
        url = await running.url()
        for name in ("worker", "redis", "api", "mongo"):
            pid = running.pids(name)[-1]
            os.kill(pid, signal.SIGKILL)
            await eventually(ready_after(running, name, pid), START_SECONDS)
            assert f"{name}: killed by SIGKILL; restarting" in running.text
        pid = running.pids("worker")[-1]
        await eventually(lambda: served_by(http, url, pid))
        assert running.process.poll() is None


def ready_after(running: Dev, name: str, pid: int) -> Callable[[], bool]:
    return lambda: running.pids(name)[-1] != pid


async def served_by(http: aiohttp.ClientSession, url: str, pid: int) -> bool:
    answer = await get(http, f"{url}/v1/workers")
    return answer is not None and pid in [worker["pid"] for worker in answer["items"]]


async def test_all_children_end_with_it_when_it_is_killed(tmp_path: Path) -> None:
    with dev(tmp_path, "--no-demo") as running:
        await running.url()
        family = running.family()
        assert len(family) >= 4
        running.process.kill()
        await eventually(lambda: not [pid for pid in family if alive(pid)])
    with dev(tmp_path, "--no-demo") as again:
        await again.url()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_everything_and_keeps_the_data(
    tmp_path: Path, http: aiohttp.ClientSession, how: signal.Signals
) -> None:
    (tmp_path / "mine.txt").write_text("stays")
    held: list[asyncio.StreamWriter] = []
    answering = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        await answering.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        body = {
            "task": "http.request",
            "payload": {"url": f"http://127.0.0.1:{port}/"},
            "options": {"timeout": "5m"},
        }
        with dev(tmp_path, "--no-demo", TANDEM_DRAIN="1s") as first:
            url = await first.url()
            async with http.post(f"{url}/v1/jobs", json=body) as response:
                assert response.status == 202, await response.text()
                path = (await response.json())["links"]["self"]
            await eventually(lambda: len(held) == 1)
            family = first.family()
            first.process.send_signal(how)
            assert await first.exit_code() == 0
            assert first.lines[-1].endswith("stopped")
            assert not [pid for pid in family if alive(pid)]
            assert "killed" not in first.text
        answering.set()
        with dev(tmp_path, "--no-demo") as second:
            url = await second.url()
            job = await eventually(lambda: done(http, url + path))
            assert (job["state"], job["attempt"], job["result"]["text"]) == (
                "succeeded",
                1,
                "ok",
            ), json.dumps(job)
    assert (tmp_path / "mine.txt").read_text() == "stays"


async def done(http: aiohttp.ClientSession, url: str) -> Any:
    job = await get(http, url)
    return job if job and job["done"] else None


async def test_configured_servers_are_used(tmp_path: Path, redis_url: str) -> None:
    with dev(
        tmp_path,
        "--once",
        TANDEM_REDIS_URL=redis_url,
        TANDEM_MONGO__MAIN="mongodb://user:SECRET@127.0.0.1:1/x",
        TANDEM_HTTP_ALLOW="",
        TANDEM_KEYS="tk_abcd_0123456789SECRETSECRET",
    ) as running:
        # An empty TANDEM_HTTP_ALLOW counts as set: the request to this machine is refused.
        assert await running.exit_code() == 1, running.text
    assert "3 of 4 jobs succeeded" in running.text
    assert not running.pids("redis")
    assert not running.pids("mongo")
    assert not (tmp_path / "redis.log").exists()
    assert "SECRET" not in running.text
    assert "$TANDEM_API_KEY" in running.text


async def test_a_worker_that_cannot_start_ends_everything_at_once_with_its_reason(
    tmp_path: Path,
) -> None:
    with dev(tmp_path, "--no-demo", TANDEM_TASKS="no_such_module") as running:
        assert await running.exit_code() == 2
    assert "worker cannot start with these settings" in running.text
    assert "no_such_module" in running.text
