"""`tandem dev`: everything on this machine, each part a process of its own, started by its ordinary command line.

Redis and a MongoDB-wire server, unless settings name others, an API and workers, SQLite and a local
file store. All data lies in one directory, which only one `tandem dev` uses at a time. Then the
demo, see `demo.py`.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import sysconfig
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tandem_shared.dev import demo
from tandem_shared.dev.servers import Server, free_port, mongo_server, redis_server
from tandem_shared.dev.supervisor import Child, CrashLoop, Output, Program, write_stdout
from tandem_shared.errors import Misconfigured
from tandem_shared.settings import (
    LOOPBACK_NETWORKS,
    Settings,
    load_settings,
    mask_url,
    require_keys,
)

TUTORIAL = "wordcount"
DRAIN = 5.0  # seconds at most, after Ctrl-C
MARGIN = 2.0  # seconds a child has beyond that to close what it has open
SAME_SIGNAL = 1.0  # seconds within which a second signal is the first one's echo
ONCE_LIMIT = 120.0  # seconds until everything is ready, when nobody watches


@dataclass(frozen=True, slots=True)
class DevOptions:
    """The command line; `None` leaves it to the environment."""

    host: str | None = None
    port: int | None = None
    data_dir: str = ".tandem"
    workers: int = 1
    demo: bool = True
    once: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be started, in this order: servers, the API, workers."""

    data: Path
    settings: Settings
    servers: tuple[Server, ...]
    env: dict[str, str]  # of every child
    host: str
    port: int
    url: str  # of the API, as this machine reaches it
    tutorial: bool
    demo_connection: str
    notes: tuple[str, ...]  # what the user should know of it


def run(options: DevOptions) -> int:
    """Serve until told to end; the exit code. Raises Misconfigured."""
    settings = load_settings(
        **{k: v for k, v in (("host", options.host), ("port", options.port)) if v is not None}
    )
    require_keys(settings)
    data = Path(options.data_dir).absolute()
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"--data-dir: {data}: {error.strerror}") from None
    with _locked(data):
        return asyncio.run(_serve(options, plan(options, settings, data)))


def plan(options: DevOptions, settings: Settings, data: Path) -> Plan:
    """Decide what to start: what the environment sets is used as it stands. Raises Misconfigured."""
    env, notes = dict(os.environ), [f"data in {data}"]
    servers = _place(settings, data, env, notes)
    if "http_allow" in settings.model_fields_set:
        notes.append(
            f"TANDEM_HTTP_ALLOW holds: besides the public internet, {_listed(settings.http_allow)}"
        )
    else:
        env["TANDEM_HTTP_ALLOW"] = ",".join(LOOPBACK_NETWORKS)
        notes.append(
            f"TANDEM_HTTP_ALLOW is not set: tasks may also reach this machine ({_listed(LOOPBACK_NETWORKS)})"
        )
    env["TANDEM_DRAIN"] = f"{min(settings.drain, DRAIN):g}"
    if "linger" not in settings.model_fields_set:
        env["TANDEM_LINGER"] = "0"  # there is no other replica for whom to leave the requests
    env["PYTHONUNBUFFERED"] = "1"
    connection = "tandem_demo" if "demo" in settings.sql else "demo"
    if options.demo:
        env[f"TANDEM_SQL__{connection.upper()}"] = f"sqlite://{data / demo.TABLE_FILE}"
    examples = Path(__file__).parents[3] / "docs" / "examples"
    if tutorial := (examples / f"{TUTORIAL}.py").exists():
        env["PYTHONPATH"] = os.pathsep.join(
            filter(None, (os.environ.get("PYTHONPATH"), str(examples)))
        )
        env["TANDEM_TASKS"] = ",".join(dict.fromkeys((*settings.tasks, TUTORIAL)))
    host, port = settings.host, _checked_port(settings)
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    url = f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"
    return Plan(
        data, settings, tuple(servers), env, host, port, url, tutorial, connection, tuple(notes)
    )


def _place(settings: Settings, data: Path, env: dict[str, str], notes: list[str]) -> list[Server]:
    """The servers to start; where they and the files are is added to `env`, what is used instead to `notes`."""
    servers = []
    given = settings.model_fields_set
    if "redis_url" in given:
        notes.append(f"redis: {mask_url(settings.redis_url)} (TANDEM_REDIS_URL)")
    else:
        servers.append(redis := redis_server(data))
        env["TANDEM_REDIS_URL"] = redis.url
    if settings.mongo:
        notes.extend(
            f"mongo: {mask_url(url)} (TANDEM_MONGO__{name.upper()})"
            for name, url in settings.mongo.items()
        )
    else:
        try:
            servers.append(mongo := mongo_server(data))
            env["TANDEM_MONGO__DEMO"] = mongo.url
        except Misconfigured as error:  # no task of the demo needs it
            notes.append(f"mongo: {error}")
    if "database_url" in given:
        notes.append(f"database: {mask_url(settings.database_url)} (TANDEM_DATABASE_URL)")
    else:
        env["TANDEM_DATABASE_URL"] = f"sqlite://{data / 'tandem.db'}"
    if "store_url" in given:
        notes.append(f"files: {mask_url(settings.store_url)} (TANDEM_STORE_URL)")
    else:
        env["TANDEM_STORE_URL"] = (data / "files").as_uri()
    return servers


async def _serve(options: DevOptions, plan: Plan) -> int:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_closed() -> None:
        loop.call_soon_threadsafe(stop.set)

    output = Output(write_stdout, on_closed)
    try:
        for note in plan.notes:
            output.say("tandem", note)
        headers = {"Authorization": f"Bearer {plan.settings.keys[0]}"} if plan.settings.keys else {}
        timeout = aiohttp.ClientTimeout(total=3)
        async with aiohttp.ClientSession(plan.url, headers=headers, timeout=timeout) as client:
            session = Session(options, plan, _children(options, plan, output, client), output, stop)
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
        children: Sequence[Child],
        output: Output,
        stop: asyncio.Event,
    ) -> None:
        self._options = options
        self._plan = plan
        self._children = children
        self._output = output
        self._stop = stop  # set: end everything
        self._crashed: CrashLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._begun = time.monotonic()
        self._told_at = 0.0  # 0: not yet

    async def run(self) -> int:
        """Start, run the demo, serve until told to end, end; the exit code."""
        working, stopping = (
            asyncio.create_task(self._work()),
            asyncio.create_task(self._stop.wait()),
        )
        try:
            limit = ONCE_LIMIT if self._options.once else None
            await asyncio.wait(
                (working, stopping), timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
            succeeded = working.result() if working.done() else False
            if not self._options.once and not self._stop.is_set():
                self._say(
                    f"serving at {self._plan.url} (its pages: {self._plan.url}/docs); Ctrl-C ends it"
                )
                await self._stop.wait()
            elif not working.done() and not self._stop.is_set():
                self._say(f"not done within {ONCE_LIMIT:g} s")
            if self._crashed:
                self._say(f"{self._crashed}\ntandem dev ends")
                return 1
            return 0 if succeeded or not self._options.once else 1
        finally:
            working.cancel()
            stopping.cancel()
            await self._end()
            await asyncio.gather(working, stopping, *self._tasks, return_exceptions=True)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Ends on SIGINT, SIGTERM and SIGHUP; a second one kills what still runs."""
        loop = asyncio.get_running_loop()
        caught = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            caught.append(signal.SIGHUP)
        for one in caught:
            loop.add_signal_handler(one, self._told)
        try:
            yield
        finally:
            for one in caught:
                loop.remove_signal_handler(one)

    async def _work(self) -> bool:
        """Start everything, then the demo; whether its jobs succeeded."""
        # The API and the workers would only die and come again until Redis is there.
        servers = len(self._plan.servers)
        for stage in (self._children[:servers], self._children[servers:]):
            self._tasks.extend(asyncio.create_task(self._supervise(child)) for child in stage)
            await asyncio.gather(
                *(child.ready.wait() for child in stage if child.program.name != "mongo")
            )
        self._say(f"ready after {time.monotonic() - self._begun:.1f} s: {self._plan.url}")
        if not self._options.demo:
            return True
        plan = self._plan
        key = plan.settings.keys[0] if plan.settings.keys else None
        setting = demo.Setting(
            plan.url, key, plan.data, plan.demo_connection, plan.tutorial, self._begun
        )
        return await demo.run(setting, lambda text: self._output.say("demo", text))

    async def _supervise(self, child: Child) -> None:
        try:
            await child.supervise()
        except CrashLoop as error:
            self._crashed = error
            self._stop.set()

    async def _end(self) -> None:
        # Workers hand back what they cannot finish, and clients get their last answers, while Redis
        # still runs.
        self._say("ending")
        workers = [child for child in self._children if child.program.name.startswith("worker")]
        api = [child for child in self._children if child.program.name == "api"]
        servers = [child for child in self._children if child not in workers and child not in api]
        for stage, grace in ((workers, DRAIN + MARGIN), (api, DRAIN), (servers, DRAIN)):
            await asyncio.gather(*(child.stop(grace) for child in stage))
        for task in self._tasks:
            task.cancel()
        self._say("ended")

    def _told(self) -> None:
        now = time.monotonic()
        self._told_at = self._told_at or now
        # One Ctrl-C may arrive twice: from the terminal, and passed on by make.
        if now - self._told_at > SAME_SIGNAL:
            self._say("told again: killing all")
            for child in self._children:
                child.kill()
        self._stop.set()

    def _say(self, text: str) -> None:
        self._output.say("tandem", text)


def _children(
    options: DevOptions, plan: Plan, output: Output, client: aiohttp.ClientSession
) -> list[Child]:
    script = Path(sysconfig.get_path("scripts")) / "tandem"
    tandem = [str(script)] if script.exists() else [sys.executable, "-m", "tandem_jobs.cli"]

    async def api_ready(_pid: int) -> bool:
        return await _asked(client, "/readyz") is not None

    async def worker_ready(pid: int) -> bool:
        answer = await _asked(client, "/v1/workers")
        return isinstance(answer, dict) and any(worker["pid"] == pid for worker in answer["items"])

    programs = [
        Program(
            server.name, server.argv, plan.env, _probe(server), server.log, server.pid, quiet=True
        )
        for server in plan.servers
    ]
    api = [*tandem, "api", "--host", plan.host, "--port", str(plan.port)]
    programs.append(Program("api", api, plan.env, api_ready))
    for number in range(1, options.workers + 1):
        name = "worker" if options.workers == 1 else f"worker-{number}"
        programs.append(Program(name, [*tandem, "worker"], plan.env, worker_ready))
    return [Child(program, output) for program in programs]


def _probe(server: Server) -> Callable[[int], Awaitable[bool]]:
    return lambda _pid: server.ready()


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    """The data directory for us alone; the kernel lets it go when we end, however that happens."""
    with (data / "dev.pid").open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Misconfigured(
                f"--data-dir: another tandem dev (pid {file.read().strip() or 'unknown'}) uses {data}"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)


def _checked_port(settings: Settings) -> int:
    if not settings.port:
        return free_port()
    # An API that finds its port taken would die five times, and another program there might answer
    # for it.
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise Misconfigured(
                f"TANDEM_HOST, TANDEM_PORT: cannot listen on {settings.host} port {settings.port}: {error.strerror}"
                " (--port 0 takes a free one)"
            ) from None
    return settings.port


async def _asked(client: aiohttp.ClientSession, path: str) -> object:
    # None: no answer, or none that is good.
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
        async with client.get(path) as response:
            if response.ok:
                body: object = await response.json()
                return body
    return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"
