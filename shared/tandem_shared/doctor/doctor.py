"""`tandem doctor`: looks whether what must hold does hold in a live system, and mends what does not.

Everything is read in portions, and whatever looks broken is looked at twice, half a lease apart: a
system that moves is never as a whole as it was a moment before. Redis is judged and mended by
scripts (shared/tandem_shared/queue/integrity.py), the ledger and the file store through their own
modules.
"""

import asyncio
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tandem_shared.doctor.files import FilesCheck
from tandem_shared.doctor.findings import Finding
from tandem_shared.doctor.ledger import LedgerCheck
from tandem_shared.errors import Unavailable
from tandem_shared.files.store import open_store
from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.queue.connections import connect
from tandem_shared.queue.integrity import CountMismatch, Integrity, Violation
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import Settings

MAX_FIX_ROUNDS = 1000  # portions in which many jobs are mended
# Mended in portions, and mended once somebody else has read of it.
_PORTIONS, _TOLD = frozenset({"limit-gone"}), frozenset({"final-stays"})


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """The command line."""

    fix: bool = False
    json: bool = False
    files: bool = True


@dataclass
class Diagnosis:
    """All that was found; `unchecked` says what could not be looked at, and why."""

    jobs: int = 0
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def code(self) -> int:
        """The exit code."""
        return 2 if self.unchecked else 1 if self.findings else 0


class Doctor:
    """One examination; `pause` seconds lie between its two looks."""

    def __init__(
        self, queue: Queue, *, ledger: LedgerCheck | None, store: FilesCheck | None, pause: float
    ) -> None:
        self._integrity: Integrity = queue.integrity
        self._ledger, self._store, self._pause = ledger, store, pause

    async def examine(self, *, fix: bool = False) -> Diagnosis:
        """Looks at everything, and mends what it finds if asked to. Raises Unavailable without Redis."""
        found = Diagnosis()
        faults = await self._integrity.check_all()
        census = await self._integrity.check_counts()
        found.jobs = self._integrity.checked_jobs
        rows = await _try(found, "the ledger", self._ledger.look) if self._ledger else []
        files = await _try(found, "the file store", self._store.look) if self._store else []
        if faults or census or rows or files:
            await asyncio.sleep(self._pause)
        if faults:
            found.findings += await self._redis(faults, fix=fix)
        if census:
            found.findings += await self._counts(census, fix=fix)
        ledger, store = self._ledger, self._store
        if rows and ledger:
            found.findings += await _try(found, "the ledger", lambda: ledger.again(rows, mend=fix))
        if files and store:
            found.findings += await _try(
                found, "the file store", lambda: store.again(files, mend=fix)
            )
        return found

    async def _redis(self, faults: list[Violation], *, fix: bool) -> list[Finding]:
        still = await self._integrity.recheck(faults, fix=fix)
        left = still
        for _ in range(MAX_FIX_ROUNDS if fix else 0):
            left = await self._integrity.recheck(left)
            if not (more := [one for one in left if one.word in _PORTIONS]):
                break
            await self._integrity.recheck(more, fix=True)
        ill = {(one.word, one.subject) for one in left if one.word not in _TOLD}
        return [
            Finding(
                one.word, one.subject, one.seen, mended=fix and (one.word, one.subject) not in ill
            )
            for one in dict.fromkeys(still)
        ]

    async def _counts(self, census: list[CountMismatch], *, fix: bool) -> list[Finding]:
        before = {(one.name, one.counted - one.kept) for one in census}
        still = [
            one
            for one in await self._integrity.check_counts()
            if (one.name, one.counted - one.kept) in before
        ]
        left = set[str]()
        if fix and still:
            await self._integrity.check_counts(still)
            left = {one.name for one in await self._integrity.check_counts()}
        return [
            Finding(
                "counts-differ",
                one.name,
                f"kept {one.kept}, counted {one.counted}",
                fix and one.name not in left,
            )
            for one in still
        ]


async def _try(found: Diagnosis, what: str, look: Callable[[], Any]) -> Any:
    try:
        return await look()
    except Unavailable as error:
        found.unchecked.append(f"{what}: {error}")
        return []


def run(options: DoctorOptions, settings: Settings) -> int:
    """Examine the system of the settings and print what was found; the exit code. Raises Misconfigured."""
    try:
        found = asyncio.run(_examine(options, settings))
    except Unavailable as error:
        found = Diagnosis(unchecked=[f"the queue: {error}"])
    if options.json:
        findings = [
            {"finding": one.word, "subject": one.subject, "seen": one.seen, "says": one.says, "fix": one.fix,
             "mended": one.mended}
            for one in found.findings
        ]  # fmt: skip
        told = {
            "healthy": not found.code,
            "jobs": found.jobs,
            "findings": findings,
            "unchecked": found.unchecked,
        }
        text = msgspec.json.encode(told).decode()
    else:
        text = _told(found, fix=options.fix)
    # Names that clients gave may be no valid text.
    sys.stdout.buffer.write(text.encode(errors="replace") + b"\n")
    return found.code


async def _examine(options: DoctorOptions, settings: Settings) -> Diagnosis:
    async with AsyncExitStack() as stack:
        redis = connect(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        queue = Queue(redis, lease=settings.lease, keep=settings.keep)
        stack.push_async_callback(queue.close)
        ledger = LedgerCheck(await stack.enter_async_context(open_ledger(settings)), queue)
        store = None
        if options.files:
            store = FilesCheck(
                await stack.enter_async_context(open_store(settings.store_url)), queue, ledger
            )
        return await Doctor(queue, ledger=ledger, store=store, pause=settings.lease / 2).examine(
            fix=options.fix
        )


def _told(found: Diagnosis, *, fix: bool) -> str:
    lines = []
    for one in found.findings:
        seen = f" ({one.seen})" if one.seen else ""
        remedy = "mended" if one.mended else "not mended" if fix else one.fix
        lines.append(f"{one.word}: {one.subject}{seen}\n    {one.says}; {remedy}.")
    lines += [f"could not be checked: {line}" for line in found.unchecked]
    verdict = "nothing found" if not found.unchecked else "nothing else found"
    if found.findings:
        mended = sum(one.mended for one in found.findings)
        verdict = f"{len(found.findings)} found" + (
            f", {mended} mended" if fix else "; --fix mends what can be"
        )
    return "\n".join((*lines, f"{found.jobs} jobs looked at: {verdict}."))
