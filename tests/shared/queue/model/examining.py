"""A step of the state machine: the doctor finds no violation at any time."""

from tandem_shared.doctor.doctor import examine, queue_checks
from tests.shared.queue.model.pausing import Machine


class Examining:
    """Runs the doctor, whose rules are written independently of laws.py."""

    def examine(self: Machine) -> None:
        found = self.run(examine(queue_checks(self.shard.queue.integrity), pause=0))
        assert not found.findings, found.findings
