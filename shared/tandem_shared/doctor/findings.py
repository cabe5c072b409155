"""What the doctor finds: the meaning of each finding, and what `--fix` does about it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

MAX_FINDINGS = 5000  # per check


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken invariant: `code` is a key of EXPLANATIONS, `seen` the evidence where it helps."""

    code: str
    subject: str
    seen: str = ""
    fixed: bool = False

    def view(self) -> dict[str, Any]:
        """The finding as `tandem doctor --json` shows it."""
        meaning, remedy = EXPLANATIONS[self.code]
        return {
            "finding": self.code,
            "subject": self.subject,
            "seen": self.seen,
            "says": meaning,
            "fix": remedy,
            "mended": self.fixed,
        }

    def text(self, *, fix: bool) -> str:
        """The finding for people; `fix` is whether fixes were asked for."""
        meaning, remedy = EXPLANATIONS[self.code]
        if fix:
            remedy = "fixed" if self.fixed else "not fixed"
        seen = f" ({self.seen})" if self.seen else ""
        return f"{self.code}: {self.subject}{seen}\n    {meaning}; {remedy}."


async def collect(batches: AsyncGenerator[list[Finding], None]) -> list[Finding]:
    """The findings of these batches, at most MAX_FINDINGS."""
    found: list[Finding] = []
    async with aclosing(batches):
        async for batch in batches:
            found += batch
            if len(found) >= MAX_FINDINGS:
                break
    return found[:MAX_FINDINGS]


# Finding → its meaning, and what --fix does.
EXPLANATIONS: dict[str, tuple[str, str]] = {
    # The setup
    "setup-weak": (
        "a server or a setting does not hold what Tandem promises",
        "--fix cannot change it: see the settings and docs/operating.md",
    ),
    # The queue
    "record-broken": (
        "the job's record lacks fields that every job has, so it cannot be processed",
        "--fix cannot repair it: look at the record, and submit the job again",
    ),
    "entry-missing": (
        "a job or a place lacks this entry, so jobs might never run, or too many at once",
        "--fix adds the entry",
    ),
    "entry-misplaced": (
        "an entry does not match the state of its job, or has no job",
        "--fix removes it, and lets the next job have a slot that it held",
    ),
    "entry-at-wrong-time": (
        "the job or the place is in this key at another time than it should be",
        "--fix corrects the time",
    ),
    "final-stays": (
        "the job is final and the ledger knows that, yet its record would stay forever",
        "--fix sends it to the ledger again and lets it expire after that, or now without a ledger",
    ),
    "limit-gone": (
        "jobs wait for a limit that no longer exists",
        "--fix queues them",
    ),
    "time-stands": (
        "jobs are overdue, because no API or worker of this Redis processes what is due",
        "--fix processes it once; start an API or a worker",
    ),
    "worker-gone": (
        "the job runs on a worker that has been silent for a minute",
        "--fix ends the attempt as worker_lost, as the end of its lease would",
    ),
    "lock-stays": (
        "an attempt that no longer runs holds a lock that others may wait for",
        "--fix passes the lock on, or removes it",
    ),
    "locks-stay": (
        "the job does not run, yet its record lists locks",
        "--fix removes them from the record",
    ),
    "kin-stays": (
        "what belongs to a job, or the registration of a worker, would outlive it",
        "--fix lets it expire as well, or now if the job is gone",
    ),
    "kin-expires": (
        "a job's record, output, steps or idempotency key would expire before the job is final",
        "--fix removes the expiry",
    ),
    "counts-differ": (
        "the stored number of jobs in a state is wrong, and with it metrics and backlog limits",
        "--fix corrects it, unless thousands of jobs are in that state",
    ),
    # Ledger
    "ledger-behind": (
        "the ledger lags minutes behind the queue: no worker runs, or its database is slow or away",
        "--fix cannot help: workers catch up on their own once both are back",
    ),
    "row-behind": (
        "the ledger missed a change of the job, although it has read all events",
        "--fix writes the job as it is now",
    ),
    "row-without-record": (
        "the job is unfinished in the ledger, but Redis has lost it",
        "--fix ends it in the ledger as failed with the type record_lost; submit it again",
    ),
    # Files
    "files-without-job": (
        "the file store has files of a job that neither Redis nor the ledger knows",
        "--fix removes them",
    ),
    "half-upload": (
        "the file store has parts of an upload that can no longer be completed",
        "--fix removes them",
    ),
    "file-missing": (
        "a file that the job published is missing from the store, or has another size",
        "--fix cannot repair it: restore the file from a backup, or replay the job",
    ),
    "output-missing": (
        "a part of the job's output is missing from the store, or has another size",
        "--fix cannot repair it: restore the file from a backup, or replay the job",
    ),
}
