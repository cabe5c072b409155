"""The heartbeat: a thread with its own connection, so a blocked event loop keeps its leases."""

import threading
import time
from collections.abc import Callable, Sequence, Sized
from typing import Any

from redis.exceptions import NoScriptError, RedisError

from tandem_shared.queue.lookup import blocking_client
from tandem_shared.queue.messages import Finish, Held, finish_args, parse_beat
from tandem_shared.queue.scripts import (
    MAX_CALL_JOBS,
    Arg,
    execute,
    flatten,
    head_of,
    sha1_of,
    source,
)

CONNECT_TIMEOUT_SECONDS = 2


class Heartbeat(threading.Thread):
    """Renews the leases of the jobs in `held` every third of a lease, until `stop`.

    `held` maps a job's id to its token and the monotonic time at which renewing stops (its timeout
    plus the cancel grace): code that ignores cancellation must not hold its job forever.
    `started()` is the stamp up to which attempts have started. `on_beat(lost, cancelled)` is called
    in this thread with attempts, `on_unknown()` if Redis does not know the worker.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        held: dict[str, tuple[str, float]],
        *,
        worker: str,
        catalogue: str,
        lease: float,
        keep: float,
        grace: float,
        started: Callable[[], int],
        zombies: Sized = (),
        on_beat: Callable[[list[Held], list[Held]], None],
        on_unknown: Callable[[], None],
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.held = held
        self.draining = False
        self._redis = blocking_client(
            url,
            socket_timeout=max(1.0, lease / 3),
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        )
        self._head = head_of(prefix, (lease, keep, grace))
        self._calling = threading.Lock()
        self._worker, self._catalogue, self._lease = worker, catalogue, lease
        self._zombies = zombies
        self._has_started, self._on_beat, self._on_unknown = started, on_beat, on_unknown
        self._stopped = threading.Event()

    def run(self) -> None:
        """Beats until stopped. A failed beat is repeated soon; the lease leaves time for two."""
        pause = self._lease / 3
        while not self._stopped.wait(pause):
            pause = self._lease / 3
            try:
                self.beat()
            except (RedisError, OSError):
                pause = min(0.25, self._lease / 12)
        self._redis.close()

    def beat(self) -> None:
        """Renews the leases of all jobs held, once."""
        now = time.monotonic()
        held = [(id, token) for id, (token, until) in list(self.held.items()) if until > now]
        for start in range(0, max(1, len(held)), MAX_CALL_JOBS):
            some = held[start : start + MAX_CALL_JOBS]
            known, lost, cancelled = parse_beat(self._call(*flatten(some)), some)
            if lost or cancelled:
                self._on_beat(lost, cancelled)
            if not known:
                self._on_unknown()

    def finish(self, outcomes: Sequence[Finish]) -> None:
        """Ends attempts as `Queue.finish` does, from any thread, without the event loop."""
        for start in range(0, len(outcomes), MAX_CALL_JOBS):
            self._script("finish", *finish_args(outcomes[start : start + MAX_CALL_JOBS]))

    def _call(self, *pairs: Arg) -> list[Any]:
        draining, started = int(self.draining), self._has_started()
        facts = draining, started, len(self._zombies)
        return self._script("beat", self._worker, self._catalogue, *facts, *pairs)

    def _script(self, name: str, *args: Arg) -> list[Any]:
        text = source(name)
        with self._calling:
            try:
                reply: list[Any] = execute(
                    self._redis, "EVALSHA", sha1_of(text), *self._head, *args
                )
            except NoScriptError:  # Redis restarted; EVAL makes it remember the script
                reply = execute(self._redis, "EVAL", text, *self._head, *args)
        return reply

    def stop(self) -> None:
        """Ends the thread after its current beat."""
        self._stopped.set()
