"""`python -m tandem_api`, or `tandem api`: the HTTP API, in one process or several."""

import argparse
import asyncio
import faulthandler
import socket
import sys
from collections.abc import Sequence

import structlog

from tandem_api.server.process import serve
from tandem_api.server.sockets import listen, url_of
from tandem_api.server.supervisor import serve_many
from tandem_shared import logs
from tandem_shared.errors import Misconfigured
from tandem_shared.files.store import open_store
from tandem_shared.settings import Settings, ignored_variables, load_settings, require_keys

MAX_PROCESSES = 256


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; those that are left out are settings."""
    parser = argparse.ArgumentParser(
        prog="tandem api", description="Serve the HTTP API until SIGTERM."
    )
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on (TANDEM_HOST)")
    parser.add_argument(
        "--port", metavar="PORT", help="port to listen on, 0 for a free one (TANDEM_PORT)"
    )
    parser.add_argument(
        "--processes", type=_count, default=1, metavar="N", help="processes that share the port (1)"
    )
    # For the children of `--processes`: the sockets that they inherit.
    parser.add_argument("--fd", type=int, action="append", default=[], help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= MAX_PROCESSES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_PROCESSES}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Serves; returns 0 after a clean end, 2 for an invalid setting."""
    options = parse(argv)
    try:
        settings = load_settings(host=options.host, port=options.port)
        require_keys(settings)
        faulthandler.enable()
        logs.configure_logging(settings.log, "api")
        log = structlog.get_logger()
        if options.fd:
            inherited = [socket.socket(fileno=fd) for fd in options.fd]
            return serve(settings, inherited, until_stdin_closes=True)
        for sentence in ignored_variables():
            log.warning(sentence)
        asyncio.run(_check_store(settings))
        sockets = listen(settings.host, settings.port)
    except Misconfigured as error:
        logs.print_fatal(str(error), "api")
        return 2
    if not settings.keys:
        log.warning("TANDEM_KEYS is not set: the API is open to everybody on this machine")
    address = f"serving at {url_of(sockets, settings.host)}"
    if settings.log == "json":
        log.info(address)
    else:
        print(address, flush=True)
    if options.processes > 1:
        arguments = [f"--host={settings.host}", f"--port={settings.port}"]
        return serve_many(options.processes, sockets, arguments, linger=settings.linger)
    return serve(settings, sockets)


async def _check_store(settings: Settings) -> None:
    """Raises Misconfigured for an invalid file store, where uvicorn would print a traceback."""
    async with open_store(settings.store_url):
        pass


if __name__ == "__main__":
    sys.exit(main())
