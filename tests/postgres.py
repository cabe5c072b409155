"""A PostgreSQL server for tests, from the programs on PATH or the pgserver wheel."""

import os
import pwd
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from tandem_shared.dev.servers import (
    LocalServer,
    bundled_program,
    die_with_parent,
    find_program,
    free_port,
    is_answering,
)
from tandem_shared.errors import Misconfigured

SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # a server that accepts connections answers it
SETTINGS = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=200")

# PostgreSQL refuses to run as root. A change of the user clears the signal that ends a process with
# its parent, so it is set again. Imports come first: the user may not read the interpreter's files.
_AS_USER = """
import ctypes, os, pwd, signal, sys
user, *argv = sys.argv[1:]
entry, parent, libc = pwd.getpwnam(user), os.getppid(), ctypes.CDLL(None)
os.initgroups(user, entry.pw_gid)
os.setgid(entry.pw_gid)
os.setuid(entry.pw_uid)
if sys.platform == "linux":
    libc.prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
os.execvp(argv[0], argv)
"""


def postgres_server(data: Path) -> LocalServer:
    """A new cluster in `data` without durability; takes a second to make. Raises Misconfigured."""
    postgres = find_program("postgres") or bundled_program("pgserver", "pginstall/bin/postgres")
    initdb = postgres and postgres.resolve().with_name("initdb")
    if postgres is None or initdb is None or not initdb.exists():
        raise Misconfigured("no postgres with its initdb on PATH; pip install pgserver")
    user = unprivileged_user() if os.geteuid() == 0 else None
    cluster, password, port = data.resolve() / "postgres", secrets.token_hex(8), free_port()
    _initialize(initdb, cluster, password, user)
    options = [word for setting in SETTINGS for word in ("-c", setting)]
    address = ("-h", "127.0.0.1", "-p", str(port), "-k", str(cluster))
    argv = _as_user(user, str(postgres), "-D", str(cluster), *address, *options)

    async def ready() -> bool:
        if not await is_answering("127.0.0.1", port, SSL_REQUEST, b""):
            return False
        state = (cluster / "postmaster.pid").read_text(encoding="ascii").rstrip()
        return not state.endswith("starting")

    url = f"postgres://postgres:{password}@127.0.0.1:{port}/postgres"
    return LocalServer("postgres", argv, url, ready)


def _initialize(initdb: Path, cluster: Path, password: str, user: str | None) -> None:
    cluster.mkdir(mode=0o700, exist_ok=True)
    password_file = cluster.with_name("postgres.password")
    password_file.touch(mode=0o600)
    password_file.write_text(password, encoding="ascii")
    if user:
        shutil.chown(cluster, user)
        shutil.chown(password_file, user)
    secret = ("--auth=scram-sha-256", f"--pwfile={password_file}", "-U", "postgres")
    options = ("--encoding=UTF8", "--locale=C", "--no-sync")
    done = subprocess.run(
        die_with_parent(_as_user(user, str(initdb), "-D", str(cluster), *secret, *options)),
        process_group=0,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    password_file.unlink()
    if done.returncode:
        raise Misconfigured(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")


def _as_user(user: str | None, *argv: str) -> tuple[str, ...]:
    return argv if user is None else (sys.executable, "-I", "-S", "-c", _AS_USER, user, *argv)


def unprivileged_user() -> str:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise Misconfigured("PostgreSQL refuses to run as root; create a user named postgres")
