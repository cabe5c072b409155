"""`tandem dev`: Redis, a MongoDB-wire server, the API and workers as processes of this machine.

Servers that settings name are used instead. All data lies in one directory, which only one
`tandem dev` uses at a time. `shared/tandem_shared/dev/demo.py` has the demo that follows.
"""

import asyncio
import fcntl
import os
import signal
import sys
import sysconfig
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from tandem_jobs.client.client import AsyncClient
from tandem_shared.dev import demo
from tandem_shared.dev.plan import MAX_DRAIN_SECONDS, DevOptions, Plan, make_plan
from tandem_shared.dev.servers import LocalServer
from tandem_shared.dev.supervisor import CrashLoop, DevProcess, Output, Program, write_stdout
from tandem_shared.errors import Misconfigured, TandemError
from tandem_shared.settings import Settings, require_keys

PROBE_SECONDS = 3.0  # for an answer of the API
CLOSE_SECONDS = 2.0  # after its drain a child gets these to close what it has open
REPEAT_SECONDS = 1.0  # a second signal within this time is an echo of the first
ONCE_SECONDS = 120.0  # limit of --once


def run(settings: Settings, **given: Any) -> int:
    """Serve until a signal; the exit code. `given` are DevOptions. Raises Misconfigured."""
    options = DevOptions(**given)
    require_keys(settings)
    data = Path(options.data_dir).absolute()
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"--data-dir: {data}: {error.strerror}") from None
    with _locked(data):
        return asyncio.run(_serve(options, make_plan(options, settings, data)))


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Hold the data directory; the kernel releases it when this process ends."""
    with (data / "dev.pid").open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Misconfigured(
                f"--data-dir: another tandem dev (pid {file.read().strip() or 'unknown'})"
                f" uses {data}"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)


async def _serve(options: DevOptions, plan: Plan) -> int:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def stop_soon() -> None:
        loop.call_soon_threadsafe(stop.set)

    output = Output(write_stdout, stop_soon)
    try:
        for note in plan.notes:
            output.print("tandem", note)
        async with AsyncClient(plan.url, plan.key, patience=0) as client:
            children = _children(options.workers, plan, output, client)
            session = Session(options, plan, children, output, stop)
            with session.signals():
                return await session.run()
    finally:
        await asyncio.to_thread(output.close)


class Session:
    """One run, from the start of the first child to the end of the last."""

    def __init__(
        self,
        options: DevOptions,
        plan: Plan,
        children: Sequence[list[DevProcess]],
        output: Output,
        stop: asyncio.Event,
    ) -> None:
        self._options = options
        self._plan = plan
        self._children = children  # servers, API, workers
        self._output = output
        self._stop = stop
        self._crash: CrashLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._started = time.monotonic()
        self._signalled: float | None = None

    async def run(self) -> int:
        """Start everything, run the demo, serve until the end; the exit code."""
        once = self._options.once
        working = asyncio.create_task(self._work())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait(
                (working, stopping),
                timeout=ONCE_SECONDS if once else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            succeeded = working.done() and working.result()
            if not once and not self._stop.is_set():
                url = self._plan.url
                self._print(f"serving at {url} (documentation: {url}/docs); Ctrl-C ends it")
                await self._stop.wait()
            elif not working.done() and not self._stop.is_set():
                self._print(f"not done within {ONCE_SECONDS:g} s")
            if self._crash:
                self._print(str(self._crash))
                return self._crash.code
            return 1 if once and not succeeded else 0
        finally:
            working.cancel()
            stopping.cancel()
            await self._shut_down()
            await asyncio.gather(working, stopping, *self._tasks, return_exceptions=True)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """End on SIGINT, SIGTERM and SIGHUP; a second one kills what still runs."""
        loop = asyncio.get_running_loop()
        caught = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
            caught.append(signal.SIGHUP)
        for number in caught:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
        # One Ctrl-C may arrive twice: from the terminal, and passed on by make.
        if now - self._signalled > REPEAT_SECONDS:
            self._print("second signal: killing everything")
            for child in chain(*self._children):
                child.kill()
        self._stop.set()

    async def _work(self) -> bool:
        """Start everything, then the demo; whether its jobs succeeded."""
        plan = self._plan
        servers, *services = self._children
        await self._start(servers)  # the services would crash without Redis
        await self._start([*chain(*services)])
        self._print(f"ready after {time.monotonic() - self._started:.1f} s: {plan.url}")
        if not self._options.demo:
            return True
        return await demo.run(plan, self._started, lambda text: self._output.print("demo", text))

    async def _start(self, children: list[DevProcess]) -> None:
        """Returns when all are ready; the demo does not need MongoDB."""
        self._tasks.extend(asyncio.create_task(self._supervise(child)) for child in children)
        needed = [child for child in children if child.program.name != "mongo"]
        await asyncio.gather(*(child.ready.wait() for child in needed))

    async def _supervise(self, child: DevProcess) -> None:
        try:
            await child.supervise()
        except CrashLoop as error:
            self._crash = self._crash or error
            self._stop.set()

    async def _shut_down(self) -> None:
        # Workers first: while Redis still runs they hand their jobs back, and the API answers.
        self._print("shutting down")
        grace = MAX_DRAIN_SECONDS + CLOSE_SECONDS
        for stage in reversed(self._children):
            await asyncio.gather(*(child.stop(grace) for child in stage))
        for task in self._tasks:
            task.cancel()
        self._print("stopped")

    def _print(self, text: str) -> None:
        self._output.print("tandem", text)


def _children(
    workers: int, plan: Plan, output: Output, client: AsyncClient
) -> tuple[list[DevProcess], ...]:
    """The servers, the API and the workers."""
    script = Path(sysconfig.get_path("scripts")) / "tandem"
    tandem = [str(script)] if script.exists() else [sys.executable, "-m", "tandem_jobs.cli"]

    async def is_api_ready(_pid: int) -> bool:
        return await _get(client, "/readyz") is not None

    async def is_worker_ready(pid: int) -> bool:
        listed = await _get(client, "/v1/workers")
        return listed is not None and any(worker["pid"] == pid for worker in listed["items"])

    def child(name: str, ready: Callable[[int], Awaitable[bool]], *arguments: str) -> DevProcess:
        return DevProcess(Program(name, [*tandem, *arguments], plan.env, ready), output)

    address = ("--host", plan.host, "--port", str(plan.port))
    names = ["worker"] if workers == 1 else [f"worker-{n}" for n in range(1, workers + 1)]
    return (
        [DevProcess(_program(server, plan.env), output) for server in plan.servers],
        [child("api", is_api_ready, "api", *address)],
        [child(name, is_worker_ready, "worker") for name in names],
    )


def _program(server: LocalServer, env: dict[str, str]) -> Program:
    return Program(
        server.name,
        server.argv,
        env,
        lambda _pid: server.ready(),
        server.log,
        server.pid_file,
        quiet=True,
    )


async def _get(client: AsyncClient, path: str) -> Any:
    """The JSON at a path of the API; None without a successful answer."""
    with suppress(TandemError, TimeoutError, msgspec.MsgspecError):
        async with asyncio.timeout(PROBE_SECONDS):
            return msgspec.json.decode(await client.read(path))
    return None
