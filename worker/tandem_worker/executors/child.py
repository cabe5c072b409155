"""A child of the process pool: `python -m tandem_worker.executors.child` with three arguments.

They are the worker's pid, and the level (of lines for the job's stream) and format of the log. The
frames are described in processes.py. It runs one job after the other on its main thread, while a
second thread reads. What the task's code writes to file descriptor 1 goes to stderr. SIGINT and
SIGTERM do not end it: when they go to the whole process group, the worker may still want the
running job's result. The child ends at the worker's request, or when the worker has ended.
"""

import asyncio
import ctypes
import faulthandler
import importlib
import os
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import msgspec

from tandem_shared.logs import LogFormat, configure_logging
from tandem_worker.executors.processes import LENGTHS, RemoteError, frame
from tandem_worker.jobs.channel import Report
from tandem_worker.jobs.logs import Level, add_attempt, job_logging
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.jobs.watched import watched_output
from tandem_worker.task import Task, call, find_task

_PR_SET_PDEATHSIG = 1


class Pipe:
    """Both pipes to the worker, and the `Channel` of the running job; `serve` runs in a thread."""

    def __init__(self, read: BinaryIO, write: BinaryIO) -> None:
        self._read = read
        self._write = write
        self._writing = threading.Lock()
        self._calling = threading.Lock()
        self._frames: SimpleQueue[tuple[dict[str, Any], bytes]] = SimpleQueue()
        self._over = False
        self.running = False

    def next(self) -> tuple[dict[str, Any], bytes]:
        """Wait for the next frame from the worker."""
        return self._frames.get()

    def write(self, header: dict[str, Any], body: bytes = b"") -> None:
        data = frame(header, body)
        with self._writing:
            self._write.write(data)
            self._write.flush()

    def send(self, report: Report, body: bytes) -> None:
        self._check()
        self.write({"report": report}, body)

    def call(self, operation: str, argument: Any, body: bytes = b"") -> Any:
        self._check()
        with self._calling:
            self.write({"call": [operation, argument]}, body)
            header, data = self._frames.get()
        if "raise" in header:
            raise msgspec.convert(header["raise"], RemoteError).to_exception()
        return data if header["answer"] is None else header["answer"]

    def is_over(self) -> bool:
        return self._over

    def _check(self) -> None:
        if self._over:
            raise asyncio.CancelledError("the job is over")

    def interrupt(self, *_: Any) -> None:
        """Handle SIGTERM on the main thread: raise in the job's code if the job is cancelled."""
        if self._over and self.running:
            raise asyncio.CancelledError("the job is over")

    def serve(self) -> None:
        """Read frames until the worker has ended, which ends this process, whatever runs in it."""
        while True:
            try:
                header, body = self._receive()
            except (OSError, EOFError):
                os._exit(0)
            if "cancel" in header:
                self._over = True
                if not self.running:
                    os._exit(0)
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self._frames.put((header, body))

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        head, body = LENGTHS.unpack(self._exactly(LENGTHS.size))
        return msgspec.json.decode(self._exactly(head)), self._exactly(body)

    def _exactly(self, size: int) -> bytes:
        data = self._read.read(size)
        if len(data) < size:
            raise EOFError
        return data


def main() -> None:
    """Run jobs until the worker has ended."""
    faulthandler.enable()
    _die_with(int(sys.argv[1]))
    pipe = Pipe(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, pipe.interrupt)
    threading.Thread(target=pipe.serve, daemon=True).start()
    hello, _ = pipe.next()
    # Import what the worker can import.
    sys.path[:] = hello["hello"]["path"]
    pipe.write({"ready": os.getpid()})
    configure_logging(msgspec.convert(sys.argv[3], LogFormat), "worker", add_attempt)
    with job_logging(msgspec.convert(sys.argv[2], Level)), watched_output():
        while True:
            header, payload = pipe.next()
            _run(pipe, header["start"], payload)


def _run(pipe: Pipe, start: dict[str, Any], payload: bytes) -> None:
    pipe.write({"begun": None})
    pipe.running = True
    try:
        task = _find(start["module"], start["task"])
        value = task.signature.payload.validate_json(payload)
        body = task.encode(call(task, SyncJob(channel=pipe, **start["job"]), value))
    except BaseException as error:  # noqa: BLE001 - also SystemExit: it fails the job, and the process runs the next one
        pipe.running = False
        if not pipe.is_over():
            pipe.write({"failed": RemoteError.from_exception(error)})
    else:
        pipe.running = False
        pipe.write({"result": None}, body)
    if pipe.is_over():
        os._exit(0)


def _find(module: str, name: str) -> Task:
    for task in map(find_task, vars(importlib.import_module(module)).values()):
        if task is not None and task.name == name:
            return task
    raise LookupError(f"module {module} has no task {name!r} at its top level")


def _die_with(worker: int) -> None:
    """Have the kernel kill this process with the worker, even if code blocks the interpreter."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != worker:
            os._exit(0)


if __name__ == "__main__":
    main()
