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
    # Records
    "record-broken": (
        "the job's record lacks fields that every job has, so it cannot be processed",
        "--fix cannot repair it: look at the record, and submit the job again",
    ),
    "record-expires": (
        "the job is not final, yet Redis would delete its record after a while",
        "--fix removes the expiry",
    ),
    "job-nowhere": (
        "the job is not final but in no queue, so it would never run",
        "--fix puts it where it belongs",
    ),
    "expiry-missing": (
        "the job has an expires_in that is not scheduled",
        "--fix schedules it",
    ),
    "final-stays": (
        "the job is final and the ledger knows that, yet its record would stay forever",
        "--fix sends it to the ledger again and lets it expire after that, or now without a ledger",
    ),
    # Places in the queue
    "entry-without-record": (
        "an entry of the queue refers to a job without a record",
        "--fix removes the entry",
    ),
    "entry-misplaced": (
        "the job is in a place that does not match its state",
        "--fix removes it from there",
    ),
    "entry-at-wrong-time": (
        "the job is queued for another time than when it is due",
        "--fix moves it to the right time",
    ),
    "limit-gone": (
        "jobs wait for the limits of a task that no longer has any",
        "--fix queues them",
    ),
    "limit-unwatched": (
        "jobs wait for the limits of a task, and nothing would check these again",
        "--fix checks them now",
    ),
    "place-unlisted": (
        "jobs wait where no worker would look for them in time",
        "--fix puts the place on the list that workers check",
    ),
    "time-stands": (
        "jobs are overdue, because no API or worker of this Redis processes what is due",
        "--fix processes it once; start an API or a worker",
    ),
    # What running jobs hold
    "worker-gone": (
        "the job runs on a worker that has been silent for a minute",
        "--fix ends the attempt as worker_lost, as the end of its lease would",
    ),
    "lease-too-long": (
        "the job's lease ends later than a lease can",
        "--fix shortens it to a full lease",
    ),
    "holder-gone": (
        "an attempt that no longer runs holds a slot of a concurrency key or a task's limit",
        "--fix frees the slot and wakes the next job",
    ),
    "slot-untold": (
        "the job runs without the slot of its key or its task's limit, so too many may run at once",
        "--fix gives it the slot",
    ),
    "lock-stays": (
        "an attempt that no longer runs holds a lock that others may wait for",
        "--fix passes the lock on, or removes it",
    ),
    "wait-stays": (
        "an attempt that no longer runs waits for a lock",
        "--fix removes it from the lock's queue",
    ),
    "lock-forgotten": (
        "the job's attempt asked for a lock, but is not in the lock's queue",
        "--fix adds it to the queue",
    ),
    "locks-stay": (
        "the job does not run, yet its record lists locks",
        "--fix removes them from the record",
    ),
    # Lifetimes
    "kin-stays": (
        "output, steps or an idempotency key would outlive their job",
        "--fix lets them expire with the job, or now if it is gone",
    ),
    "kin-expires": (
        "output, steps or the idempotency key of a job would expire before the job",
        "--fix removes the expiry",
    ),
    "worker-stays": ("a worker's registration would stay forever", "--fix lets it expire"),
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
