"""The doctor's part in a random life."""

from tandem_shared.doctor.doctor import examine, queue_checks
from tests.shared.queue.model.pausing import Living


class Examining:
    """A step of a life: the doctor, which has its own rules, finds nothing at any time."""

    def examine(self: Living) -> None:
        found = self.run(examine(queue_checks(self.shard.queue.integrity), pause=0))
        assert not found.findings, found.findings
