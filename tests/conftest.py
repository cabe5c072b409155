"""Real servers for the tests, one of each per test process, and how tests wait: `eventually`."""

import asyncio
import inspect
import secrets
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, overload

import asyncpg
import httpx2
import pytest
from hypothesis import settings
from redis.asyncio import Redis

from tandem_shared.dev.servers import (
    LocalServer,
    die_with_parent,
    free_port,
    mongo_server,
    redis_program,
    redis_server,
    redis_version,
)
from tandem_shared.errors import Misconfigured
from tests.postgres import postgres_server

T = TypeVar("T")
S3_REGION = "us-east-1"

# Without a deadline: how long an example takes says more about the machine than about the code.
settings.register_profile("tandem", deadline=None)
settings.load_profile("tandem")


def pytest_report_header() -> str:
    """Names the Redis that the tests use: their results hold for that version."""
    try:
        program = redis_program()
    except Misconfigured as error:
        return f"redis: {error}"
    return f"redis: {program} {redis_version(program)}"


@overload
async def eventually(predicate: Callable[[], Awaitable[T]], timeout: float = 10.0) -> T: ...
@overload
async def eventually(predicate: Callable[[], T], timeout: float = 10.0) -> T: ...
async def eventually(predicate: Callable[[], Any], timeout: float = 10.0) -> Any:
    """The first true value of `predicate`, sync or async.

    Raises AssertionError, with the last value, after `timeout` seconds.
    """
    value: object = "missing: the predicate never returned"
    deadline = asyncio.get_running_loop().time() + timeout
    pause = 0.002
    try:
        async with asyncio.timeout_at(deadline):
            while True:
                value = predicate()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, 0.05)
    except TimeoutError:
        if asyncio.get_running_loop().time() < deadline:
            raise  # the predicate's own timeout
        raise AssertionError(f"not true within {timeout} s; the last value was {value!r}") from None


@contextmanager
def started(server: LocalServer, log: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The server's process, killed at the end; wait for it with `await eventually(server.ready)`.

    Its output goes to `log` or nowhere: a server blocks once a pipe that nobody reads is full.
    """
    with subprocess.Popen(
        die_with_parent(server.argv),
        stdin=subprocess.PIPE,
        stdout=log or subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        process_group=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@contextmanager
def running(server: LocalServer) -> Iterator[subprocess.Popen[bytes]]:
    """The same for synchronous fixtures; returns once the server is ready."""
    with tempfile.TemporaryFile() as log, started(server, log) as process:

        async def ready() -> bool:
            if process.poll() is not None:
                log.seek(0)
                output = log.read().decode(errors="replace")
                raise AssertionError(f"{server.name} ended with {process.returncode}: {output}")
            return await server.ready()

        asyncio.run(eventually(ready, timeout=30))
        yield process


def s3_server(port: int) -> LocalServer:
    """moto's server, in memory; it is ready once the bucket `tests` exists."""

    async def ready() -> bool:
        # moto accepts any signature, but wants one.
        scope = f"key/20260101/{S3_REGION}/s3/aws4_request"
        headers = {
            "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"
        }
        try:
            async with httpx2.AsyncClient(trust_env=False, timeout=5) as client:
                answer = await client.put(f"http://127.0.0.1:{port}/tests", headers=headers)
        except httpx2.TransportError:
            return False
        return answer.status_code == 200

    program = Path(sysconfig.get_path("scripts")) / "moto_server"
    return LocalServer(
        "s3", (str(program), "-H", "127.0.0.1", "-p", str(port)), f"http://127.0.0.1:{port}", ready
    )


def s3_environment(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points obstore's S3 client to that server."""
    monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", S3_REGION)


@pytest.fixture(scope="session")
def server_data() -> Iterator[Path]:
    """A directory with a short path, for sockets; servers run by other users may traverse it."""
    path = Path(tempfile.mkdtemp(prefix="tandem-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def ledger_url(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A separate ledger for each test, instead of the default in the working directory."""
    url = f"sqlite://{tmp_path_factory.mktemp('ledger')}/tandem.db"
    monkeypatch.setenv("TANDEM_DATABASE_URL", url)
    return url


@pytest.fixture(scope="session")
def redis_url(server_data: Path) -> Iterator[str]:
    """The Redis of this test process."""
    server = redis_server(server_data)
    with running(server):
        yield server.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of an empty Redis."""
    client = Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=5)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of this test process's S3 server, which has the bucket `tests`."""
    port = free_port()
    with running(s3_server(port)):
        yield port


@pytest.fixture
def s3_url(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty prefix in that bucket, with the environment set up for it."""
    s3_environment(s3_port, monkeypatch)
    return f"s3://tests/{secrets.token_hex(8)}"


@pytest.fixture(scope="session")
def postgres_url(server_data: Path) -> Iterator[str]:
    """The superuser's URL of this test process's PostgreSQL."""
    server = postgres_server(server_data)
    with running(server):
        yield server.url


@pytest.fixture(scope="session")
def mongo_url(server_data: Path) -> Iterator[str]:
    """The URL of this test process's MongoDB-wire server."""
    server = mongo_server(server_data)
    with running(server):
        yield server.url


@pytest.fixture
async def postgres(postgres_url: str) -> AsyncIterator[str]:
    """The URL of a fresh database."""
    name = f"test_{secrets.token_hex(4)}"
    connection = await asyncpg.connect(postgres_url, timeout=10, command_timeout=30)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        yield postgres_url.rpartition("/")[0] + f"/{name}"
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def any_ledger_url(request: pytest.FixtureRequest, ledger_url: str) -> str:
    """An empty database for a ledger, once of each kind."""
    return ledger_url if request.param == "sqlite" else str(request.getfixturevalue("postgres"))
