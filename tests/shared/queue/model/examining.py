"""The doctor's part in a random life."""

from tandem_shared.doctor.doctor import Doctor
from tests.shared.queue.model.pausing import Living


class Examining:
    """A step of a life: the doctor, who knows nothing of the laws in `shard`, finds no fault, whenever he is asked."""

    def examine(self: Living) -> None:
        found = self.run(Doctor(self.shard.queue, ledger=None, store=None, pause=0).examine())
        assert not found.findings, found.findings
