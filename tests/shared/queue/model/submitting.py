"""A step of the state machine: clients submit jobs, and repeat what got no reply."""

from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from tandem_shared.errors import Full, KeyReused
from tandem_shared.jobs.record import Submission
from tandem_shared.jobs.states import PRIORITIES
from tests.shared.queue.model.shard import Shard, Snapshot, job

T = TypeVar("T")


class Machine(Protocol):
    """What this step needs of the state machine."""

    shard: Shard
    jobs: dict[str, Submission]
    keys: dict[str, Submission]
    final: dict[str, dict[str, str]]

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T: ...
    def look(self) -> Snapshot: ...
    def pick(self, options: Sequence[T]) -> T: ...
    def chance(self) -> bool: ...
    def submission(self) -> Submission: ...


class Submitting:
    """Submits jobs of all kinds; an idempotency key belongs to its first content."""

    def submission(self: Machine) -> Submission:
        limit = self.pick((0, 0, 1, 1, 2))
        task, version = self.pick((("t", 1), ("t", 1), ("t", 2), ("u", 1)))
        return job(
            task,
            version=version,
            payload=self.pick((b"1", b"1", b"2")),
            queue=self.pick("aab"),
            priority=self.pick(PRIORITIES),
            delay=self.pick((None, None, None, 0.0, 1.0, 5.0)),
            expires_in=self.pick((None, None, None, 2.0, 20.0)),
            concurrency_key="k" if limit else None,
            concurrency_limit=limit or 1,
            max_attempts=self.pick((1, 2, 4, 9, 9)),
            idempotency_key=self.pick((None, None, None, "x", "y")),
            replay_of=self.pick([*self.final]) if self.final and self.chance() else None,
        )

    def submit(self: Machine) -> None:
        jobs = [self.submission() for _ in range(self.pick((1, 1, 2, 4)))]
        answers = self.run(self.shard.queue.submit_many(jobs))
        for one, answer in zip(jobs, answers, strict=True):
            first = self.keys.setdefault(one.idempotency_key, one) if one.idempotency_key else one
            if first.fingerprint() != one.fingerprint():
                assert isinstance(answer, KeyReused)
            else:
                assert not isinstance(answer, KeyReused | Full)
                assert (answer.id, answer.replayed) == (first.id, first is not one)
            if first is one:
                self.jobs[one.id] = one
        if self.chance():  # the replies were lost
            before = self.look()
            again = self.run(self.shard.queue.submit_many(jobs))
            assert [str(answer) for answer in again] == [str(answer) for answer in answers]
            assert self.look().jobs == before.jobs
