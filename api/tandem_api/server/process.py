"""One server process: uvicorn with our protocols, and a shutdown that no client can delay."""

import asyncio
import functools
import gc
import os
import signal
import socket
import sys
import threading
from contextlib import suppress

import structlog
import uvicorn

from tandem_api.app import create_app
from tandem_api.drain import Drain
from tandem_api.edge import Edge
from tandem_api.http.memory import MemoryBudget
from tandem_api.server.http import PIPELINED_BYTES, HttpProtocol
from tandem_api.server.sockets import BACKLOG, allow_connections
from tandem_api.server.websocket import (
    MAX_MESSAGE_BYTES,
    PING_SECONDS,
    PONG_SECONDS,
    WebSocketProtocol,
)
from tandem_shared.settings import Settings

KEEP_ALIVE_SECONDS = 65  # more than load balancers keep an idle connection
# New objects, minus freed ones, between two garbage collections. Requests leave hardly any cycles.
YOUNG_OBJECTS = 10_000
CANCEL_MARGIN_SECONDS = 0.5  # our cancellation comes first: Edge answers it, uvicorn would not
MAX_SHUTDOWN_SECONDS = 10.0  # for requests under way, once no more are accepted

log = structlog.get_logger()


class ApiServer(uvicorn.Server):
    """uvicorn's, with a shutdown that is announced to probes, then to streams and long-polls."""

    def __init__(self, config: uvicorn.Config, drain: Drain, linger: float) -> None:
        super().__init__(config)
        self._drain, self._linger = drain, linger

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves as unready for `linger` more seconds, then ends streams and finishes requests."""
        self._drain.announce()
        await asyncio.sleep(self._linger)
        self._drain.begin()
        seconds = (self.config.timeout_graceful_shutdown or 0) - CANCEL_MARGIN_SECONDS
        timer = asyncio.get_running_loop().call_later(seconds, self._cancel_requests)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def _cancel_requests(self) -> None:
        """Cancels requests that are still waiting, mostly for Redis; Edge answers them with 503."""
        if waiting := list(self.server_state.tasks):
            log.warning("cancelling unfinished requests", waiting=len(waiting))
        for task in waiting:
            task.cancel()


def make_server(edge: Edge, settings: Settings) -> ApiServer:
    """A server for `server.serve(sockets)`."""
    config = uvicorn.Config(
        edge,
        loop="uvloop",
        ws=WebSocketProtocol,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PONG_SECONDS,
        ws_per_message_deflate=False,  # live entries are small, and would wait for the compressor
        http=functools.partial(HttpProtocol, pipelined=MemoryBudget(PIPELINED_BYTES)),  # type: ignore[arg-type] # uvicorn only calls it
        # No browser guesses another type than the one that a response has.
        headers=[("x-content-type-options", "nosniff")],
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, int(min(settings.drain, MAX_SHUTDOWN_SECONDS)) - 1),
    )
    return ApiServer(config, edge.drain, settings.linger)


def tune_garbage_collector() -> None:
    """Exempts imported modules from garbage collection, and collects the rest less often."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20)


def serve(
    settings: Settings, sockets: list[socket.socket], *, until_stdin_closes: bool = False
) -> int:
    """Serves until SIGTERM or SIGINT or, if asked to, until stdin closes; the exit code."""
    allow_connections()
    tune_garbage_collector()
    server = make_server(create_app(settings), settings)

    def stop(_signal: int, _frame: object) -> None:
        server.should_exit = True

    # After its shutdown uvicorn raises the signal again. These handlers ignore it, so that the exit
    # code is 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if until_stdin_closes:
        threading.Thread(target=_watch_stdin, args=(server,), name="stdin", daemon=True).start()
    try:
        server.run(sockets)
    except SystemExit as error:  # the lifespan could not start, and has logged why
        return error.code if isinstance(error.code, int) else 1
    return 0


def _watch_stdin(server: ApiServer) -> None:
    with suppress(OSError):
        while os.read(sys.stdin.fileno(), 1024):
            pass
    server.should_exit = True
