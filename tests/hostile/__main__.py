"""Attacks an API with hostile connections: `python -m tests.hostile URL [connections] [seconds]`.

Look at `/livez` and at the process's memory from elsewhere meanwhile: this process is busy.
"""

import asyncio
import itertools
import sys

from tandem_api.server.sockets import allow_connections
from tests.hostile.clients import KINDS, attack, file_to_download, unread_download


async def main(url: str, connections: int = 1000, seconds: int = 30) -> None:
    """Attacks for `seconds`, with the same number of connections of each kind."""
    kinds = [*KINDS.values(), unread_download(await file_to_download(url))]
    clients = [
        asyncio.create_task(attack(url, kind))
        for kind in itertools.islice(itertools.cycle(kinds), connections)
    ]
    await asyncio.wait(clients, timeout=seconds)
    for one in clients:
        one.cancel()


if __name__ == "__main__":
    allow_connections()
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
