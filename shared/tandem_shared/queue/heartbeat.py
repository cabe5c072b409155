"""The heartbeat: a thread with a connection of its own, so that a blocked event loop keeps its leases."""

import threading
import time
from collections.abc import Callable

from redis.exceptions import NoScriptError, RedisError

from tandem_shared.queue.scripts import CLOCK, Arg, send, sha1_of, source
from tandem_shared.queue.sentinel import blocking_client

# At most this many jobs a call, as with every script.
PORTION = 500


class Heart(threading.Thread):
    """Beats every third of the lease for the jobs in `held`, until `stop`.

    `held` maps a job's id to its token and the monotonic time at which it is no longer beaten for
    (its timeout and the grace of a cancel): code that cannot be stopped must not keep its job for
    ever. `on_beat(lost, cancelled)` is called in this thread with ids; `on_unknown()` when Redis
    does not know the worker.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        worker: str,
        catalogue: str,
        lease: float,
        on_beat: Callable[[list[str], list[str]], None],
        on_unknown: Callable[[], None],
    ) -> None:
        super().__init__(name="heart", daemon=True)
        self.held: dict[str, tuple[str, float]] = {}
        self.draining = False
        self._redis = blocking_client(
            url, socket_timeout=max(1.0, lease / 3), socket_connect_timeout=2
        )
        self._head = (1, prefix, int(lease * 1000), 0, 0)
        self._worker, self._catalogue, self._lease = worker, catalogue, lease
        self._on_beat, self._on_unknown = on_beat, on_unknown
        self._stopped = threading.Event()

    def run(self) -> None:
        """Beats until stopped. A beat that fails is repeated soon: the lease leaves room for two."""
        pause = self._lease / 3
        while not self._stopped.wait(pause):
            try:
                self.beat()
                pause = self._lease / 3
            except (RedisError, OSError):
                pause = min(0.25, self._lease / 12)
        self._redis.close()

    def beat(self) -> None:
        """One beat for all jobs held."""
        now = time.monotonic()
        held = [(id, token) for id, (token, until) in list(self.held.items()) if until > now]
        text = source("beat", CLOCK)
        for start in range(0, max(1, len(held)), PORTION):
            pairs = [part for pair in held[start : start + PORTION] for part in pair]
            args: tuple[Arg, ...] = (
                *self._head,
                self._worker,
                self._catalogue,
                int(self.draining),
                *pairs,
            )
            try:
                answer = send(self._redis, "EVALSHA", sha1_of(text), *args)
            except NoScriptError:
                answer = send(self._redis, "EVAL", text, *args)
            words = [word.decode() for word in answer[1:]]
            lost = [id for word, id in zip(words[::2], words[1::2], strict=True) if word == "lost"]
            cancelled = [
                id for word, id in zip(words[::2], words[1::2], strict=True) if word == "cancel"
            ]
            if lost or cancelled:
                self._on_beat(lost, cancelled)
            if not answer[0]:
                self._on_unknown()

    def stop(self) -> None:
        """Ends the thread at its next turn."""
        self._stopped.set()
