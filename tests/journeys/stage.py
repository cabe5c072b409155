"""Redis and workers as real processes, and the notes that their tasks leave in a file."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tandem_shared.dev.servers import die_with_parent, redis_server
from tests.conftest import eventually, started
from tests.journeys.tasks import crash_tasks
from tests.worker.workers import Client

ROOT = Path(__file__).parent.parent.parent
LEASE_SECONDS = 1.0
RETRY = {"max_attempts": 20, "base": 0.01, "jitter": False}


class WorkerStage:
    """The processes of a test; all end with `close`.

    `scene` is the payload of its tasks: the file for their notes, and the file that lets them end.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = redis_server(directory)
        self.scene = {"notes": str(directory / "notes"), "go": str(directory / "go")}
        self.workers: list[subprocess.Popen[bytes]] = []
        self._stack = ExitStack()

    async def start_redis(self) -> subprocess.Popen[bytes]:
        """Start Redis with the data that it had; it is ready when this returns."""
        process = self._stack.enter_context(started(self.server))
        await eventually(self.server.ready)
        return process

    def worker(
        self, *, module: str = "tandem_worker", arguments: tuple[str, ...] = (), **settings: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker, `python -m <module>`."""
        return self._stack.enter_context(self._worker([module, *arguments], settings))

    @contextmanager
    def _worker(
        self, command: list[str], settings: dict[str, str]
    ) -> Iterator[subprocess.Popen[bytes]]:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")},
            "TANDEM_REDIS_URL": self.server.url,
            "TANDEM_DATABASE_URL": f"sqlite://{self.directory}/tandem.db",
            "TANDEM_STORE_URL": f"file://{self.directory}/store",
            "TANDEM_TASKS": crash_tasks.__name__,
            "TANDEM_LEASE": f"{LEASE_SECONDS}s",
            **{f"TANDEM_{name.upper()}": value for name, value in settings.items()},
        }
        with (self.directory / f"worker-{len(self.workers)}.log").open("wb") as log:
            process = subprocess.Popen(
                die_with_parent([sys.executable, "-m", *command]),
                env=environment,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        self.workers.append(process)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """What a worker has logged."""
        return (self.directory / f"worker-{self.workers.index(process)}.log").read_text()

    def go(self) -> None:
        """Let waiting tasks end."""
        Path(self.scene["go"]).touch()

    def notes(self, word: str) -> list[tuple[int, int]]:
        """(number, process id) of each note with this word; the number is mostly the attempt."""
        return [(number, pid) for noted, number, pid in self.all_notes() if noted == word]

    def all_notes(self) -> list[tuple[str, int, int]]:
        """(word, number, process id) of all notes, in order."""
        path = Path(self.scene["notes"])
        lines = path.read_text().splitlines() if path.exists() else []
        return [(word, int(number), int(pid)) for word, number, pid in map(str.split, lines)]

    def pids(self, word: str) -> set[int]:
        """The processes that left notes with this word."""
        return {pid for _, pid in self.notes(word)}

    def close(self) -> None:
        self._stack.close()


async def until_registered(client: Client, count: int) -> None:
    """Wait until so many workers have registered."""

    async def is_complete() -> bool:
        return len(await client.queue.workers()) == count

    await eventually(is_complete, 30)


async def exit_code(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process, once it has ended."""
    await eventually(lambda: process.poll() is not None, 30)
    return process.returncode
