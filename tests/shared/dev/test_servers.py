"""The servers that `tandem dev` and these tests start."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from tandem_shared.dev.servers import (
    MAX_SOCKET_PATH_BYTES,
    SERVER_PORTS,
    die_with_parent,
    free_port,
    mongo_server,
    redis_server,
)
from tests.conftest import eventually, running


async def test_redis_keeps_what_a_queue_needs(redis: Redis) -> None:
    assert await redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert await redis.config_get("appendonly") == {"appendonly": "yes"}
    assert await redis.config_get("appendfsync") == {"appendfsync": "everysec"}
    await redis.execute_command("HSET", "record", "payload", b"x" * 1000)  # type: ignore[no-untyped-call]  # hset is typed as not awaitable
    # Redis 7 calls the compact encoding listpack; the former name of its setting still works.
    assert await redis.object("encoding", "record") in (b"listpack", b"ziplist")


def test_redis_keeps_its_data_between_runs(tmp_path: Path) -> None:
    async def call(url: str, *command: str) -> object:
        async with Redis.from_url(url, socket_timeout=5) as client:
            return await client.execute_command(*command)

    server = redis_server(tmp_path)
    with running(server) as process:
        asyncio.run(call(server.url, "SET", "kept", "1"))
        process.terminate()
        process.wait(10)
    with running(redis_server(tmp_path)):
        assert asyncio.run(call(server.url, "GET", "kept")) == b"1"


def test_redis_behind_a_long_path_listens_on_loopback(tmp_path: Path) -> None:
    data = tmp_path / ("d" * MAX_SOCKET_PATH_BYTES)
    data.mkdir()
    server = redis_server(data)
    assert server.url.startswith("redis://127.0.0.1:")
    with running(server):
        pass


def test_mongo_starts_beside_another(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with running(mongo_server(tmp_path / "one")), running(mongo_server(tmp_path / "two")):
        assert (tmp_path / "one" / "mongo.db").exists()
        assert (tmp_path / "two" / "mongo.db").exists()


async def test_a_fresh_database_for_each_test(postgres: str) -> None:
    connection = await asyncpg.connect(postgres)
    await connection.execute("CREATE TABLE t (n int)")
    assert await connection.fetchval("SELECT count(*) FROM pg_class WHERE relname = 't'") == 1
    await connection.close()


@pytest.mark.parametrize("watch", [sys.platform != "linux", True])
async def test_a_child_ends_with_its_killed_parent(watch: bool) -> None:
    starter = (
        "import subprocess; from tandem_shared.dev.servers import die_with_parent\n"
        f"command = die_with_parent(['sleep', '600'], watch={watch})\n"
        "child = subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0)\n"
        "print(child.pid, flush=True); child.wait()"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", starter, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    try:
        await eventually(lambda: Path(f"/proc/{child}/cmdline").read_bytes() == b"sleep\x00600\x00")
        assert os.getpgid(child) == child
        parent.kill()
        await parent.wait()
        await eventually(lambda: not alive(child))
    finally:
        if alive(child):
            os.killpg(child, signal.SIGKILL)


def test_a_free_port_is_outside_the_range_that_the_system_hands_out() -> None:
    with socket.socket() as other, socket.socket() as server:
        other.bind(("127.0.0.1", 0))
        assert other.getsockname()[1] not in SERVER_PORTS
        port = free_port()
        assert port in SERVER_PORTS
        server.bind(("127.0.0.1", port))


def test_a_missing_program_is_named() -> None:
    done = subprocess.run(
        die_with_parent(["no-such-program"]),
        check=False,
        capture_output=True,
        text=True,
        process_group=0,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "no-such-program: No such file or directory"


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            != "Z"
        )
    except FileNotFoundError:
        return False
