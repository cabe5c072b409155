"""Checks of the queue in Redis, see shared/tandem_shared/queue/integrity.py."""

from tandem_shared.doctor.findings import Finding
from tandem_shared.queue.integrity import Integrity, Violation

# Still found right after its fix, which takes effect once the ledger has read the job again.
_FIXED_LATER = "final-stays"


class QueueCheck:
    """Checks records and all that follows from them; raises Unavailable without Redis."""

    def __init__(self, integrity: Integrity) -> None:
        self._integrity = integrity
        self.find = integrity.check_all

    async def recheck(self, suspects: list[Violation], *, fix: bool = False) -> list[Finding]:
        """The suspects that are still broken, fixed if possible and asked for."""
        still = await self._integrity.recheck(suspects, fix=fix)
        left = await self._integrity.recheck(still) if fix else []
        return [
            Finding(
                one.word,
                one.subject,
                one.seen,
                fix and (one not in left or one.word == _FIXED_LATER),
            )
            for one in still
        ]
