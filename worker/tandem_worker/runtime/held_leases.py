"""The leases of the jobs that this worker holds."""

import time

from tandem_shared.queue.messages import Claimed


class Leases:
    """Which jobs the heartbeat renews, and until when.

    `doubtful`: a call to Redis failed, so the leases must be renewed before anything is claimed.
    """

    def __init__(self) -> None:
        # By job id: the token, and the monotonic time at which renewal ends.
        self.held: dict[str, tuple[str, float]] = {}
        self.doubtful = False

    def hold(self, job: Claimed, seconds: float) -> None:
        """Renew for at most `seconds`: code that ignores cancellation must not keep its job."""
        self.held[job.id] = (job.token, time.monotonic() + seconds)

    def holds(self, job: Claimed) -> bool:
        """Whether this attempt is held, as opposed to another attempt of the same job."""
        held = self.held.get(job.id)
        return held is not None and held[0] == job.token

    def release(self, id: str, token: str) -> None:
        """Stop renewing. Does nothing when a later attempt of the job is held by now."""
        held = self.held.get(id)
        if held is not None and held[0] == token:
            del self.held[id]
