"""What the doctor finds, in words: what each finding means, and what `--fix` does about it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not hold: `word` is a key of WORDS, `subject` whom it is about, `seen` what was seen."""

    word: str
    subject: str
    seen: str = ""
    mended: bool = False

    @property
    def says(self) -> str:
        """What it means, one sentence."""
        return WORDS[self.word][0]

    @property
    def fix(self) -> str:
        """What --fix does, one sentence."""
        return WORDS[self.word][1]


_NOTHING = "--fix cannot mend it"

WORDS: dict[str, tuple[str, str]] = {
    # -------------------------------------------------------------------------------------- records
    "record-broken": (
        "the job's record lacks fields that every job has, so nothing can be done with it",
        f"{_NOTHING}: look at the record, and submit the job again",
    ),
    "record-expires": (
        "the job is not final, yet Redis would forget its record after a time",
        "--fix takes the time limit away",
    ),
    "job-nowhere": (
        "the job is not final and stands in no queue, so it would never go on",
        "--fix puts it where it belongs",
    ),
    "expiry-missing": ("the job has an expires_in that nobody watches", "--fix has it watched"),
    "final-stays": (
        "the job is final, the ledger has nothing more to read of it, and Redis would keep its record for ever",
        "--fix tells the ledger of it again, after which it expires, or where there is no ledger has it expire",
    ),
    # --------------------------------------------------------------------------------------- places
    "entry-without-record": (
        "a place in the queue names a job that has no record",
        "--fix takes it out",
    ),
    "entry-misplaced": (
        "the job stands in a place that does not fit its state",
        "--fix takes it out of there",
    ),
    "entry-at-wrong-time": (
        "the job does not stand at the time when it is due",
        "--fix moves it there",
    ),
    "hold-without-pause": (
        "jobs wait for a queue to be resumed that is not paused",
        "--fix has them line up again, as a resume does",
    ),
    "limit-gone": (
        "jobs wait for the limits of a task that has none any more",
        "--fix lines them up again",
    ),
    "limit-unwatched": (
        "jobs wait for the limits of a task, and nobody would look at them again",
        "--fix has them looked at now",
    ),
    "key-free": (
        "jobs wait for a concurrency key that nobody holds and nobody was called for",
        "--fix calls the first of them, who calls the next",
    ),
    "park-unlisted": (
        "jobs wait for a worker that knows their task, and no worker would look at them",
        "--fix puts them on the list that workers look at",
    ),
    "time-stands": (
        "jobs are overdue and nobody lets time pass: neither an API nor a worker runs, or none reaches this Redis",
        "--fix does once what a tick does; start an API or a worker",
    ),
    # ----------------------------------------------------------------------- what running jobs hold
    "worker-gone": (
        "the job runs on a worker that nobody has heard of for a minute",
        "--fix ends the attempt as worker_lost, as the end of its lease would",
    ),
    "lease-too-long": (
        "the job's lease ends later than any lease can",
        "--fix shortens it to a whole one",
    ),
    "holder-gone": (
        "a slot of a concurrency key or of a task's limit is held for an attempt that does not run",
        "--fix gives it back and calls who waits for it",
    ),
    "slot-untold": (
        "the job runs without the slot of its key or its task's limit, so that more may run at once than should",
        "--fix has it hold the slot",
    ),
    "lock-stays": (
        "a lock is held by nobody who runs, while others may wait for it",
        "--fix hands it on, or removes it",
    ),
    "wait-stays": (
        "an attempt that does not run waits for a lock",
        "--fix takes it out of the line",
    ),
    "lock-forgotten": (
        "the job's attempt asked for a lock that does not know of it",
        "--fix puts it in the line for the lock",
    ),
    "locks-stay": (
        "the job does not run and has locks in its record",
        "--fix removes them from it",
    ),
    # ------------------------------------------------------------------------------------ lifetimes
    "kin-stays": (
        "output, steps or an idempotency key would outlive their job",
        "--fix has them end with the job, or now if it is gone",
    ),
    "kin-expires": (
        "output, steps or the idempotency key of a job would be forgotten before the job",
        "--fix takes the time limit away",
    ),
    "worker-stays": ("what a worker said of itself would be kept for ever", "--fix has it expire"),
    "counts-differ": (
        "the number of jobs in a state is not what is counted, so that metrics and limits of the backlog are wrong",
        "--fix sets it right, unless thousands of jobs are in that state",
    ),
    # --------------------------------------------------------------------------------------- ledger
    "ledger-behind": (
        "the ledger is minutes behind the queue: no worker runs, or its database does not keep up or does not answer",
        f"{_NOTHING}: workers catch up by themselves once both are there",
    ),
    "row-behind": (
        "the ledger has not seen what became of the job, although it has read all that was told",
        "--fix writes the job as it is now",
    ),
    "row-without-record": (
        "for the ledger the job goes on, but Redis has lost it",
        "--fix ends it there as failed with the type record_lost; submit it again",
    ),
    # ---------------------------------------------------------------------------------------- files
    "files-without-job": (
        "files of a job are stored that neither Redis nor the ledger knows",
        "--fix removes them",
    ),
    "half-upload": (
        "bytes are stored of an upload that was never finished and cannot be",
        "--fix removes them",
    ),
    "file-missing": (
        "the job published a file that is not in the store, or of another size",
        f"{_NOTHING}: restore it from a backup, or replay the job",
    ),
    "output-missing": (
        "a part of the job's output has left Redis and is not in the store, or of another size",
        f"{_NOTHING}: restore it from a backup, or replay the job",
    ),
}
