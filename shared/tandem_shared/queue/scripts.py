"""The Lua scripts: one file a transition, put together from the files they share, sent by their SHA1.

The legal transitions come from `tandem_shared.jobs.states.NEXT`; each text starts with that table,
so Lua and Python cannot differ.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from redis import exceptions
from redis.asyncio import Redis

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.record import FORMAT
from tandem_shared.jobs.states import FINAL, NEXT

ENTRY = 64  # bytes that an entry of a stream counts as, besides its body

# What each script is made of, in order; its own file comes last. Without `spare` it is refused
# while Redis is full.
PARTS = {
    "submit": ("record", "enter"),
    "claim": ("spare", "record", "limits", "locks", "leave", "upkeep", "admit"),
    "beat": ("spare", "record", "limits", "locks", "leave", "upkeep"),
    "finish": ("spare", "record", "limits", "locks", "leave"),
    "report": ("record",),
    "archive": ("spare", "record"),
    "step": ("record",),
    "steps": ("record",),
    "lock": ("spare", "record", "limits", "locks", "leave", "upkeep"),
    "unlock": ("spare", "record", "locks"),
    "pause": ("spare", "record", "limits", "locks", "leave", "upkeep"),
    "cancel": ("spare", "record", "limits", "locks", "leave"),
    "forget": ("spare", "record"),
    "tick": ("spare", "record", "limits", "locks", "leave", "upkeep"),
    "register": ("spare", "record", "limits"),
    "retire": ("spare", "record"),
    "adopt": ("record", "enter"),
    "join": ("spare", "record"),
    "facts": ("record",),
    "look": (),
    "projected": ("spare", "record"),
    "doctor": ("spare", "record", "limits", "locks", "leave", "upkeep"),
    "census": ("spare", "record", "limits"),
}

# Where the scripts take the time from. Only a test that turns the clock names another.
CLOCK = "redis.call('TIME')"

Arg = str | bytes | int | float


def _table() -> str:
    rows = (
        f"{state} = {{{', '.join(f'{to} = true' for to in sorted(NEXT[state]))}}}" for state in NEXT
    )
    return f"local NEXT = {{{', '.join(rows)}}}"


@cache
def source(name: str, clock: str = CLOCK) -> str:
    """The whole text of a script."""
    finals = ", ".join(f"{state} = true" for state in sorted(FINAL))
    head = (
        _table(),
        f"local FINAL = {{{finals}}}",
        f"local FORMAT = {FORMAT}",
        f"local ENTRY = {ENTRY}",
        f"local function CLOCK() return {clock} end",
    )
    lua = files(__package__) / "lua"
    parts = (lua.joinpath("lib", f"{part}.lua").read_text() for part in PARTS[name])
    return "\n".join((*head, *parts, lua.joinpath(f"{name}.lua").read_text()))


def sha1(text: str) -> str:
    """What EVALSHA calls a script by."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Scripts:
    """The scripts of one shard, over a connection pool that somebody else owns."""

    def __init__(
        self,
        redis: "Redis",
        prefix: str,
        *,
        lease: float,
        keep: float,
        grace: float,
        clock: str = CLOCK,
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._head = (1, prefix, int(lease * 1000), int(keep * 1000), int(grace * 1000))

    async def run(self, name: str, args: Sequence[Arg]) -> Any:
        """The script's reply. Raises Unavailable when Redis does not give one in time; a repeat is safe."""
        text = source(name, self._clock)

        async def call() -> Any:
            try:
                return await send(self._redis, "EVALSHA", sha1_of(text), *self._head, *args)
            except exceptions.NoScriptError:  # Redis was restarted: EVAL runs it and keeps it
                return await send(self._redis, "EVAL", text, *self._head, *args)

        return await reach(call)


sha1_of = cache(sha1)


def send(redis: Any, *command: Arg) -> Any:
    """The reply to a command, or an awaitable of it from an asyncio client; redis-py leaves the method untyped."""
    return redis.execute_command(*command)


async def reach(call: Callable[[], Any]) -> Any:
    """The reply of Redis, or Unavailable in words that hold no address and no password."""
    try:
        return await call()
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError, TimeoutError) as error:
        raise Unavailable(f"Redis does not answer ({type(error).__name__})") from error
    except exceptions.RedisError as error:
        # BUSY, LOADING, READONLY, OOM, MISCONF: Redis is there and cannot serve now. Anything else
        # is a bug of ours.
        word = str(error).partition(" ")[0]
        if isinstance(error, exceptions.OutOfMemoryError) or "OOM " in str(error):
            raise Unavailable("Redis has no memory left") from error
        if word == "BACKLOG":  # our own, see submit.lua
            raise Unavailable(str(error).partition(" ")[2]) from error
        if word in (
            "BUSY",
            "LOADING",
            "READONLY",
            "MISCONF",
            "MASTERDOWN",
            "NOREPLICAS",
            "TRYAGAIN",
        ) or any(f"{word} " in str(error) for word in ("MISCONF", "READONLY", "NOREPLICAS")):
            raise Unavailable(f"Redis cannot serve now ({word})") from error
        raise
