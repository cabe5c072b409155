"""`tandem doctor`: checks the invariants of a running system, and fixes what it can.

Everything is read in batches, and whatever looks broken is checked again half a lease later, since
jobs in motion are briefly inconsistent.
"""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from tandem_shared.doctor.files import FilesCheck
from tandem_shared.doctor.findings import Finding
from tandem_shared.doctor.ledger import LedgerCheck
from tandem_shared.doctor.queue import QueueCheck
from tandem_shared.doctor.setup import SetupCheck
from tandem_shared.errors import Unavailable
from tandem_shared.files.store import open_store
from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.queue.connections import connect
from tandem_shared.queue.integrity import Integrity
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import Settings
from tandem_shared.setup.checks import SetupChecks


class Check(Protocol):
    """The checks of one store; both methods raise Unavailable."""

    async def find(self) -> list[Any]:
        """What seems broken; some of it may only have been in motion."""

    async def recheck(self, suspects: list[Any], *, fix: bool = False) -> list[Finding]:
        """The suspects that are still broken, fixed if possible and asked for."""


@dataclass
class Diagnosis:
    """What was found; `unchecked` has a line for each store that could not be checked."""

    jobs: int = 0
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """2 if a check could not run, 1 with findings, else 0."""
        return 2 if self.unchecked else 1 if self.findings else 0

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Note instead of raising that a store is unavailable."""
        try:
            yield
        except Unavailable as error:
            self.unchecked.append(f"{name}: {error}")

    def json(self) -> str:
        """The diagnosis for machines."""
        answer = {
            "healthy": not self.exit_code,
            "jobs": self.jobs,
            "findings": [finding.view() for finding in self.findings],
            "unchecked": self.unchecked,
        }
        return msgspec.json.encode(answer).decode()

    def text(self, *, fix: bool) -> str:
        """The diagnosis for people; `fix` is whether fixes were asked for."""
        lines = [finding.text(fix=fix) for finding in self.findings]
        lines += [f"could not be checked: {line}" for line in self.unchecked]
        verdict = "nothing else found" if self.unchecked else "nothing found"
        if self.findings:
            fixed = sum(finding.fixed for finding in self.findings)
            rest = f", {fixed} fixed" if fix else "; --fix fixes what can be fixed"
            verdict = f"{len(self.findings)} found{rest}"
        return "\n".join((*lines, f"{self.jobs} jobs checked: {verdict}."))


def queue_checks(integrity: Integrity) -> dict[str, Check]:
    """The checks of Redis alone."""
    return {"the queue": QueueCheck(integrity)}


async def examine(checks: Mapping[str, Check], *, pause: float, fix: bool = False) -> Diagnosis:
    """Run the checks, named as users see them, with `pause` seconds before the recheck."""
    diagnosis = Diagnosis()
    suspects: dict[str, list[Any]] = {}
    for name, check in checks.items():
        with diagnosis.noting(name):
            suspects[name] = await check.find()
    if any(suspects.values()):
        await asyncio.sleep(pause)
    for name, found in suspects.items():
        if found:
            with diagnosis.noting(name):
                diagnosis.findings += await checks[name].recheck(found, fix=fix)
    return diagnosis


async def _examine(settings: Settings, *, fix: bool, files: bool) -> Diagnosis:
    async with AsyncExitStack() as stack:
        redis = connect(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        queue = Queue(redis, lease=settings.lease, keep=settings.keep)
        stack.push_async_callback(queue.close)
        ledger = LedgerCheck(await stack.enter_async_context(open_ledger(settings)), queue)
        checks = queue_checks(queue.integrity) | {"the ledger": ledger}
        store = await stack.enter_async_context(open_store(settings.store_url))
        checks["the setup"] = SetupCheck(SetupChecks(settings, redis, queue, store, None))
        if files:
            checks["the file store"] = FilesCheck(store, queue, ledger)
        diagnosis = await examine(checks, pause=settings.lease / 2, fix=fix)
        diagnosis.jobs = queue.integrity.checked_jobs
        return diagnosis


def run(settings: Settings, *, fix: bool, json: bool, files: bool) -> int:
    """Examine the system of these settings, print the diagnosis and return the exit code.

    Raises Misconfigured.
    """
    diagnosis = asyncio.run(_examine(settings, fix=fix, files=files))
    text = diagnosis.json() if json else diagnosis.text(fix=fix)
    # Names that clients chose may not be valid Unicode.
    sys.stdout.buffer.write(text.encode(errors="replace") + b"\n")
    return diagnosis.exit_code
