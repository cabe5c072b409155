"""One process that serves: uvicorn, with sockets of our own and an end that nobody holds up."""

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence

import structlog
import uvicorn
from fastapi import FastAPI

from tandem_api.app import create_app
from tandem_api.drain import Drain
from tandem_api.server.http import Protocol
from tandem_api.server.websocket import LONGEST_MESSAGE, PING, PONG, SocketProtocol
from tandem_shared.errors import Misconfigured
from tandem_shared.settings import Settings

BACKLOG = 2048
KEEP_ALIVE = 65  # seconds, longer than load balancers keep an idle connection
STALLED = 90_000  # ms that sent bytes may stay unacknowledged, or a reader's window shut
MOST_FILES = 1 << 16  # open ones of a process, where the system allows so many
YOUNG = 10_000  # objects more than were freed, after which the collector looks at the new ones
# seconds before uvicorn gives requests up, in words of its own: by then ours have been answered
BEFORE = 0.5
LONGEST_END = 10.0  # seconds for what is being answered, after the time in which more is accepted

log = structlog.get_logger()


class Server(uvicorn.Server):
    """uvicorn's, which says that it ends before it does: first to who probes it, then to who waits for news."""

    def __init__(self, config: uvicorn.Config, drain: Drain, linger: float) -> None:
        super().__init__(config)
        self._drain, self._linger = drain, linger

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Unready for `linger` seconds, in which it still serves; then ends streams, answers what is left, closes."""
        self._drain.announce()
        await asyncio.sleep(self._linger)
        self._drain.begin()
        patience = (self.config.timeout_graceful_shutdown or 0) - BEFORE
        giving_up = asyncio.get_running_loop().call_later(patience, self._give_up)
        try:
            await super().shutdown(sockets)
        finally:
            giving_up.cancel()

    def _give_up(self) -> None:
        """Cancels what waits still, most likely for a Redis that hangs; `Edge` tells its client to ask again."""
        if waiting := list(self.server_state.tasks):
            log.warning("requests are given up", waiting=len(waiting))
        for task in waiting:
            task.cancel()


def make_server(app: FastAPI, settings: Settings) -> Server:
    """A server for `server.serve(sockets)`."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        ws=SocketProtocol,
        ws_max_size=LONGEST_MESSAGE,
        ws_ping_interval=PING,
        ws_ping_timeout=PONG,
        # it would keep what is small and live waiting for what makes it smaller
        ws_per_message_deflate=False,
        http=Protocol,
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, int(min(settings.drain, LONGEST_END)) - 1),
    )
    return Server(config, app.state.drain, settings.linger)


def allow_connections() -> None:
    """Lets this process have as many open files as it may: each reader of a stream is one, and 1024 are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def ease_collector() -> None:
    """Has the garbage collector pass over what was imported, and look less often for what no request leaves behind."""
    gc.freeze()
    gc.set_threshold(YOUNG, 20)


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address of `host`; port 0 takes a free one. Raises Misconfigured."""
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((one[0], one[4]) for one in found):
            made = socket.socket(family)
            sockets.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted connections inherit these: a peer that vanished, or never reads, does not
            # stay for ever.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED)
            if family == socket.AF_INET6 and len(found) > 1:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = sockets[0].getsockname()[1] if port == 0 and len(sockets) > 1 else port
            made.bind((address[0], taken, *address[2:]))
            made.listen(BACKLOG)
    except OSError as error:
        for one in sockets:
            one.close()
        reason = error.strerror or str(error)
        raise Misconfigured(
            f"TANDEM_HOST, TANDEM_PORT: cannot listen on {host} port {port}: {reason}"
        ) from None
    return sockets


def url_of(sockets: Sequence[socket.socket], host: str) -> str:
    """Where the API is, with the port that was taken."""
    port = sockets[0].getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(settings: Settings, sockets: list[socket.socket], *, tied: bool = False) -> int:
    """Serves until SIGTERM or SIGINT; `tied`: also until stdin ends, which is when the parent does. The exit code."""
    allow_connections()
    ease_collector()
    server = make_server(create_app(settings), settings)

    def told(_signal: int, _frame: object) -> None:
        server.should_exit = True

    # uvicorn ends by raising the signal that it caught once more: then it finds these, and the
    # process ends with 0.
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, told)
    if tied:
        threading.Thread(target=_end_with_parent, args=(server,), name="tie", daemon=True).start()
    try:
        server.run(sockets)
    except SystemExit as error:  # the lifespan could not start, and has said why
        return error.code if isinstance(error.code, int) else 1
    return 0


def _end_with_parent(server: Server) -> None:
    try:
        while os.read(sys.stdin.fileno(), 1024):
            pass
    except OSError:
        pass
    server.should_exit = True
