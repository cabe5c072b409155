"""The sockets that the API listens on."""

import resource
import socket
from collections.abc import Sequence

from tandem_shared.errors import Misconfigured

BACKLOG = 2048  # connections that wait to be accepted
PEER_TIMEOUT_MS = 90_000  # for a peer to acknowledge bytes, or to open its window
MAX_OPEN_FILES = 1 << 16  # of a process, where the system allows so many


def allow_connections() -> None:
    """Raises the limit of open files: each stream reader needs one, and 1024 are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address of `host`; port 0 takes a free one. Raises Misconfigured."""
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((info[0], info[4]) for info in found):
            listener = socket.socket(family)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted connections inherit these. Without them, the connection of a peer that has
            # vanished or never reads would stay open forever.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TIMEOUT_MS)
            if family == socket.AF_INET6 and len(found) > 1:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = sockets[0].getsockname()[1] if port == 0 and len(sockets) > 1 else port
            listener.bind((address[0], taken, *address[2:]))
            listener.listen(BACKLOG)
    except OSError as error:
        for listener in sockets:
            listener.close()
        reason = error.strerror or str(error)
        raise Misconfigured(
            f"TANDEM_HOST, TANDEM_PORT: cannot listen on {host} port {port}: {reason}"
        ) from None
    return sockets


def url_of(sockets: Sequence[socket.socket], host: str) -> str:
    """The URL of the API, with the port that it listens on."""
    port = sockets[0].getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
