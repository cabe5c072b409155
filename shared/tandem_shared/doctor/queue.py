"""Checks of the queue in Redis, see shared/tandem_shared/queue/integrity.py."""

from tandem_shared.doctor.findings import Finding
from tandem_shared.queue.integrity import CountMismatch, Integrity, Violation

MAX_FIX_ROUNDS = 1000
# The first is fixed for a batch of jobs at a time, so in several rounds. The second is still found
# right after its fix, which takes effect once the ledger has read the job again.
_FIXED_IN_ROUNDS, _FIXED_LATER = "limit-gone", "final-stays"


class QueueCheck:
    """Checks records, places, holders and lifetimes; raises Unavailable without Redis."""

    def __init__(self, integrity: Integrity) -> None:
        self._integrity = integrity
        self.find = integrity.check_all

    async def recheck(self, suspects: list[Violation], *, fix: bool = False) -> list[Finding]:
        """The suspects that are still broken, fixed if possible and asked for."""
        still = left = await self._integrity.recheck(suspects, fix=fix)
        for _ in range(MAX_FIX_ROUNDS if fix else 0):
            left = await self._integrity.recheck(left)
            more = [one for one in left if one.word == _FIXED_IN_ROUNDS]
            if not more:
                break
            await self._integrity.recheck(more, fix=True)
        broken = {(one.word, one.subject) for one in left if one.word != _FIXED_LATER}
        return [
            Finding(word, subject, seen, fix and (word, subject) not in broken)
            for _, word, subject, seen in dict.fromkeys(still)
        ]


class CountCheck:
    """Checks the kept numbers of jobs by queue and state; raises Unavailable without Redis."""

    def __init__(self, integrity: Integrity) -> None:
        self._integrity = integrity
        self.find = integrity.check_counts

    async def recheck(self, suspects: list[CountMismatch], *, fix: bool = False) -> list[Finding]:
        """The suspects that are off by as much as before, fixed if possible and asked for."""
        before = {(one.name, one.counted - one.kept) for one in suspects}
        left = await self._integrity.check_counts()
        still = [one for one in left if (one.name, one.counted - one.kept) in before]
        if fix and still:
            await self._integrity.check_counts(still)
            left = await self._integrity.check_counts()
        broken = {one.name for one in left}
        return [
            Finding("counts-differ", name, f"kept {kept}, counted {counted}", name not in broken)
            for name, kept, counted in still
        ]
