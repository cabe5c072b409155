"""Child processes for tasks with `cpu=True`: a bounded number, started when needed, safe to kill.

Worker and child talk over the child's stdin and stdout in frames (no pickle): the lengths of a JSON
header and of a binary body (4 bytes each, big-endian), then both. A header has one key:

    to the child    {"hello": {"path"}}  {"start": {"module", "task", "job"}} + payload
                    {"answer": …} + bytes  {"raise": RemoteError}  {"cancel": null}
    to the worker   {"ready": pid}  {"begun": null}  {"report": "progress"|"output"|"log"} + JSON
                    {"call": [operation, argument]} + bytes  {"result": null} + JSON
                    {"failed": RemoteError}

The pipe is the flow control: while the worker's buffer is full it does not read, and the child
waits.
"""

import asyncio
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from pydantic_core import to_jsonable_python

from tandem_shared.logs import LogFormat
from tandem_worker.encoding import encode
from tandem_worker.errors import Permanent, TaskError
from tandem_worker.executors.portal import Portal, deliver
from tandem_worker.failures import to_fault
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.logs import Level
from tandem_worker.task import Task

LENGTHS = struct.Struct(">II")
START_SECONDS = 60.0  # for a child to be ready
KILL_SECONDS = 1.0  # for a child's `finally` blocks, before it is killed
BUFFER_BYTES = 256 << 10  # of the pipe from a child


class RemoteError(msgspec.Struct, frozen=True, kw_only=True):
    """An exception on its way over the pipe."""

    type: str
    message: str
    retryable: bool = True
    after: float | None = None
    trace: str = ""

    @classmethod
    def from_exception(cls, error: BaseException) -> "RemoteError":
        trace = "".join(traceback.format_exception(error))
        if isinstance(error, TaskError):
            return cls(
                type=error.type,
                message=error.message,
                retryable=error.retryable,
                after=error.after,
                trace=trace,
            )
        fault = to_fault(error)
        return cls(type=fault.type, message=str(error), retryable=fault.retryable, trace=trace)

    def to_exception(self) -> TaskError:
        """A TaskError of that type and message; its note has the traceback for the worker's log."""
        if self.retryable:
            error = TaskError(self.type, self.message, retryable=True, after=self.after)
        else:
            error = Permanent(self.type, self.message)
        if self.trace:
            error.add_note(f"in a child process:\n{self.trace}")
        return error


def frame(header: dict[str, Any], body: bytes = b"") -> bytes:
    """One frame as it is written to the pipe; its header may contain pydantic models."""
    head = msgspec.json.encode(header, enc_hook=to_jsonable_python)
    return b"".join((LENGTHS.pack(len(head), len(body)), head, body))


class EndedIdle(Exception):
    """A child that had served before ended without having begun this job."""


class ProcessPool:
    """At most `limit` child processes, by default one per core, which are reused.

    Tasks beyond the limit wait. A child that dies, or whose job was
    cancelled, is replaced. Children end when the worker ends, whatever ends it.
    """

    def __init__(
        self, limit: int | None = None, *, log: Level = "info", format: LogFormat = "console"
    ) -> None:
        self._logging = log, format
        self._slots = asyncio.Semaphore(limit or os.cpu_count() or 1)
        self._idle: list[PoolProcess] = []
        self._children: set[PoolProcess] = set()
        self._ending: set[asyncio.Task[None]] = set()

    async def run(
        self, task: Task, job: Job, payload: Any, begun: Callable[[], None] = lambda: None
    ) -> msgspec.Raw:
        """Run the task in a child; return the JSON of its result. `payload` is from `Task.decode`.

        `begun` is called when the job has a process. Raises TaskError: what the code raised
        (`exception:<Class>` for other exceptions), or `process_died`. When cancelled, it raises
        CancelledError once the child has ended, KILL_SECONDS later at most.
        """
        if task.module == "__main__":
            raise TypeError(
                f"{task.name} has cpu=True and is defined in the script itself; move it to a module"
            )
        body = bytes(payload) if isinstance(payload, msgspec.Raw) else encode(payload)

        def start() -> bytes:
            begun()  # before the facts are read: the deadline may be another one now
            facts = {"module": task.module, "task": task.name, "job": job.facts()}
            return frame({"start": facts}, body)

        while True:
            await self._slots.acquire()
            child: PoolProcess | None = None
            try:
                child = self._pop_idle() or await self._start_child()
                return await child.run(job, start)
            except EndedIdle:
                continue  # it died before it got the job: take another one
            finally:
                if child is None:
                    self._slots.release()
                elif child.alive() and not child.busy:
                    self._idle.append(child)
                    self._slots.release()
                else:
                    await self._replace(child)

    def _pop_idle(self) -> "PoolProcess | None":
        while self._idle:
            child = self._idle.pop()
            if child.alive():
                return child
            self._children.discard(child)
        return None

    async def _start_child(self) -> "PoolProcess":
        child = await PoolProcess.start(*self._logging)
        self._children.add(child)
        return child

    async def _replace(self, child: "PoolProcess") -> None:
        async def end() -> None:
            try:
                await child.end()
            finally:
                self._children.discard(child)
                self._slots.release()

        ending = asyncio.create_task(end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        # Wait without awaiting the task: a second cancellation must end the wait, not the ending.
        await asyncio.wait({ending})

    async def close(self) -> None:
        """End all children; one with a running job is killed."""
        idle, self._idle = self._idle, []
        for child in self._children.difference(idle):
            child.kill()
        await asyncio.gather(*(child.end() for child in idle), *self._ending)
        self._children.difference_update(idle)


class PoolProcess:
    """One child process, seen from the worker. It runs one job at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        if process.stdin is None or process.stdout is None:
            raise ValueError("a child needs pipes for stdin and stdout")
        self._in, self._out = process.stdin, process.stdout
        self._served = False
        self.busy = False  # with a job whose end it has not reported

    @classmethod
    async def start(cls, log: Level = "info", format: LogFormat = "console") -> "PoolProcess":
        module, worker = "tandem_worker.executors.child", str(os.getpid())
        command = (sys.executable, "-m", module, worker, log, format)
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, limit=BUFFER_BYTES
            )
        )

    def alive(self) -> bool:
        return self._process.returncode is None and not self._out.at_eof()

    async def run(self, job: Job, start: Callable[[], bytes]) -> msgspec.Raw:
        """Send the frame from `start`, and serve the job that it starts.

        Raises EndedIdle, TaskError.
        """
        self.busy = True
        portal = Portal(job)
        try:
            await self._begin(start)
            while True:
                (kind, value), body = await self._receive()
                match kind:
                    case "report":
                        await deliver(job.sink, value, body)
                    case "call":
                        await self._answer(portal, value[0], value[1], body)
                    case "failed":
                        self.busy = False
                        raise msgspec.convert(value, RemoteError).to_exception()
                    case _:
                        self.busy = False
                        return msgspec.Raw(body)
        finally:
            await portal.close()

    async def _begin(self, start: Callable[[], bytes]) -> None:
        if not self._served:
            await self._hello()
        try:
            await self._send(start())
            await self._receive()
        except TaskError:
            if self._served:
                raise EndedIdle from None
            raise
        self._served = True

    async def _hello(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._send(frame({"hello": {"path": sys.path}}))
                await self._receive()
        except TimeoutError:
            raise _died(f"was not ready within {START_SECONDS:g} s") from None

    async def _answer(self, portal: Portal, operation: str, argument: Any, body: bytes) -> None:
        try:
            result = await portal.answer(operation, argument, body)
        except Exception as error:  # noqa: BLE001 - raised in the child, where the code called
            await self._send(frame({"raise": RemoteError.from_exception(error)}))
        else:
            value, data = (None, result) if isinstance(result, bytes) else (result, b"")
            await self._send(frame({"answer": value}, data))

    async def _send(self, data: bytes) -> None:
        try:
            self._in.write(data)
            await self._in.drain()
        except (ConnectionError, RuntimeError):
            raise await self._death() from None

    async def _receive(self) -> tuple[tuple[str, Any], bytes]:
        try:
            head, body = LENGTHS.unpack(await self._out.readexactly(LENGTHS.size))
            header: dict[str, Any] = msgspec.json.decode(await self._out.readexactly(head))
            data = await self._out.readexactly(body) if body else b""
        except (asyncio.IncompleteReadError, ConnectionError):
            raise await self._death() from None
        return next(iter(header.items())), data

    async def _death(self) -> TaskError:
        """How the child ended, after it closed the pipe."""
        try:
            async with asyncio.timeout(KILL_SECONDS):
                code = await self._process.wait()
        except TimeoutError:
            return _died("closed its pipe")
        if code == -signal.SIGKILL:
            return _died("was killed by SIGKILL, perhaps because memory ran out")
        if code < 0:
            with suppress(ValueError):
                return _died(f"was killed by {signal.Signals(-code).name}")
        return _died(f"exited with status {code}")

    async def end(self) -> None:
        """End the process: its code gets a CancelledError, and is killed KILL_SECONDS later."""
        if self._process.returncode is None:
            with suppress(ConnectionError, RuntimeError):
                self._in.write(frame({"cancel": None}))
            try:
                async with asyncio.timeout(KILL_SECONDS):
                    await self._drained()
            except TimeoutError:
                self.kill()
                await self._process.wait()
        self._in.close()

    def kill(self) -> None:
        """Kill the process."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _drained(self) -> None:
        # A child that writes to a full pipe cannot end until it is read.
        while await self._out.read(1 << 16):
            pass
        await self._process.wait()


def _died(how: str) -> TaskError:
    return TaskError("process_died", f"the process that ran the task {how}", retryable=True)
