"""The Lua scripts: assembled from lua/ and lua/lib/, then called by their SHA-1.

lua/<name>.lua is one command, run by `Scripts.run(name, *args)`. lua/lib/ holds what several
commands share; PARTS lists the parts of each command in the order in which they are joined:

    (head)        generated here: states, transitions and limits as Python has them, and CLOCK()
    lib/when_full one write that Redis accepts while its memory is full, so that later ones pass
    lib/record    clock and stamps, reading a record, changing its state, where it waits, `commit`
    lib/limits    concurrency and rate limits of tasks
    lib/locks     who holds a lock, and who waits for it
    lib/leave     the exits: out of `running`, or from a waiting place to a final state
    lib/leases    when leases end, also after Redis was away or its clock has jumped
    lib/due       what is due: ended leases, due jobs, expiries, gates of limits, pauses
    lib/publish   what is published of tasks, as live workers bring it
    lib/enter     the entry of new jobs
    lib/start     the entry to `running`, and what keeps a job from it
    lib/resume    attempts that Redis has forgotten
    <name>.lua    the command: reads its arguments from ARGV[4] on, returns the reply

KEYS[1] is the shard's prefix; ARGV[1..3] are lease, retention and cancel grace in ms. A script that
changes states ends with `commit()`, which writes the events, counts and bells that it gathered. The
parts are inlined into one chunk, so all their names are locals that later parts may use.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import Any

from redis import exceptions
from redis.asyncio import Redis

from tandem_shared.errors import Unavailable
from tandem_shared.faults import reason_of
from tandem_shared.jobs.record import MAX_SHOWN_ATTEMPTS, RECORD_FORMAT
from tandem_shared.jobs.states import FINAL, OPEN, TRANSITIONS

MAX_CALL_JOBS = 500
MAX_CALL_BYTES = 1 << 20  # about: a single larger job still passes
ENTRY_BYTES = 64  # what an entry of a stream counts as besides its body

# Commands that start without `when_full` need memory: Redis refuses them while it is full.
_LEAVE = ("when_full", "record", "limits", "locks", "leave")
_LEASES = (*_LEAVE, "leases")
_DUE = (*_LEASES, "due")
PARTS = {
    "submit": ("record", "enter"),
    "claim": (*_DUE, "start"),
    "beat": (*_LEASES, "start", "resume"),
    "finish": _LEAVE,
    "finish_again": (*_LEAVE, "start", "resume"),
    "report": ("record",),
    "archive": ("when_full", "record"),
    "step": ("record",),
    "steps": ("record",),
    "lock": _LEASES,
    "unlock": ("when_full", "record", "locks"),
    "pause": _DUE,
    "cancel": _LEAVE,
    "forget": ("when_full", "record"),
    "tick": (*_DUE, "publish"),
    "register": ("when_full", "record", "limits", "publish"),
    "serving": ("record", "limits", "publish"),
    "retire": ("when_full", "record"),
    "adopt": ("record", "enter"),
    "join": ("when_full", "record"),
    "ledger_values": ("record",),
    "read_fields": (),
    "recent_jobs": (),
    "oldest_due": (),
    "acknowledge": ("when_full", "record"),
    "doctor": _DUE,
    "census": ("when_full", "record", "limits"),
}

CLOCK = "redis.call('TIME')"  # Lua; tests that turn the clock pass another expression

Arg = str | bytes | int | float


@cache
def source(name: str, clock: str = CLOCK) -> str:
    """The complete text of a command."""
    transitions = (f"{state} = {_set(after)}" for state, after in TRANSITIONS.items())
    open_states = ", ".join(f"'{state}'" for state in OPEN)
    head = (
        f"local TRANSITIONS = {{{', '.join(transitions)}}}",
        f"local FINAL, OPEN = {_set(FINAL)}, {{{open_states}}}",
        f"local RECORD_FORMAT, MAX_SHOWN_ATTEMPTS = {RECORD_FORMAT}, {MAX_SHOWN_ATTEMPTS}",
        f"local ENTRY_BYTES = {ENTRY_BYTES}",
        f"local function CLOCK() return {clock} end",
    )
    lua = files(__package__) / "lua"
    paths = (*(f"lib/{part}.lua" for part in PARTS[name]), f"{name}.lua")
    return "\n".join((*head, *(lua.joinpath(path).read_text() for path in paths)))


def _set(words: Iterable[str]) -> str:
    return f"{{{', '.join(f'{word} = true' for word in sorted(words))}}}"


@cache
def sha1_of(text: str) -> str:
    """What EVALSHA calls a script by."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def head_of(prefix: str, durations: tuple[float, float, float]) -> tuple[Arg, ...]:
    """The first arguments of every script; the seconds are lease, retention and cancel grace."""
    return (1, prefix, *(int(seconds * 1000) for seconds in durations))


class Scripts:
    """The scripts of one shard, over a client that the caller owns.

    `durations` are lease, retention and cancel grace in seconds.
    """

    def __init__(
        self, redis: "Redis", prefix: str, durations: tuple[float, float, float], *, clock: str
    ) -> None:
        self._redis, self._clock = redis, clock
        self._head = head_of(prefix, durations)

    async def run(self, name: str, *args: Arg) -> Any:
        """The script's reply. Raises Unavailable if Redis does not answer; repeating is safe."""
        text = source(name, self._clock)
        with translate_errors():
            try:
                return await execute(self._redis, "EVALSHA", sha1_of(text), *self._head, *args)
            except exceptions.NoScriptError:  # Redis restarted; EVAL makes it remember the script
                return await execute(self._redis, "EVAL", text, *self._head, *args)


def flatten(rows: Iterable[Iterable[Arg]]) -> Iterable[Arg]:
    """The values of all rows in one line, as a script takes them."""
    return chain.from_iterable(rows)


def execute(redis: Any, *command: Arg) -> Any:
    """The reply to a command, from an asyncio client its awaitable; redis-py leaves it untyped."""
    return redis.execute_command(*command)


# Codes of a Redis that is up but cannot serve now, and what they mean. redis-py has classes for
# some, and takes their codes away.
_NOT_NOW = {
    "READONLY": "it is a replica, or was just replaced",
    "LOADING": "it is loading its data",
    "NOPERM": "its user lacks a permission, see docs/deploying.md",
    "NOAUTH": "TANDEM_REDIS_URL needs another user or password",
    "WRONGPASS": "TANDEM_REDIS_URL needs another user or password",
    "MOVED": "another node of its cluster has the queue, which only redis+cluster:// follows",
    "ASK": "its cluster is moving the queue to another node",
    "TRYAGAIN": "its cluster is moving the queue to another node",
    "CLUSTERDOWN": "its cluster lacks nodes",
    "MASTERDOWN": "it is a replica without its master",
    "NOREPLICAS": "it has fewer replicas than min-replicas-to-write",
    "MISCONF": "it cannot write its data to disk",
    "BUSY": "a script blocks it",
}
_CODES: dict[type[Exception], str] = {
    exceptions.ReadOnlyError: "READONLY",
    exceptions.BusyLoadingError: "LOADING",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.AuthenticationError: "NOAUTH",
    exceptions.AuthenticationWrongNumberOfArgsError: "NOAUTH",
}
# What Redis says instead inside a script; before Redis 7, codes stand amid the text there.
_IN_SCRIPTS = {"ACL failure": "NOPERM", "non local key": "MOVED"}


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raises Unavailable, in words without addresses and passwords, where Redis cannot serve now.

    Any other error of Redis is a bug in Tandem and passes through.
    """
    try:
        yield
    except (exceptions.RedisError, OSError, TimeoutError) as error:
        text = str(error)
        if (code := _code(error)) is not None:
            raise Unavailable(f"Redis cannot serve now ({code}): {_NOT_NOW[code]}") from error
        if isinstance(error, OSError | TimeoutError | _FAULTS):
            raise Unavailable(f"Redis does not answer ({reason_of(error)})") from error
        if isinstance(error, exceptions.OutOfMemoryError) or "OOM " in text:
            raise Unavailable("Redis has no memory left") from error
        if text.startswith("BACKLOG "):  # from submit.lua
            raise Unavailable(text.partition(" ")[2]) from error
        raise


_FAULTS = exceptions.ConnectionError | exceptions.TimeoutError


def _code(error: BaseException) -> str | None:
    """The code of a Redis that answers, but cannot serve."""
    text, cause = str(error), error.__cause__
    if isinstance(error, exceptions.ConnectionError) and isinstance(cause, exceptions.RedisError):
        error = cause  # redis-py wraps what a new connection was answered
    known = next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
    if known is not None or not isinstance(error, exceptions.ResponseError):
        return known
    said = (code for words, code in _IN_SCRIPTS.items() if words in text)
    return next(said, None) or next(
        (code for code in _NOT_NOW if re.search(rf"(?<![A-Z]){code} ", text)), None
    )
