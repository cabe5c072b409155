"""Sends the reports of all jobs of a worker to Redis, and older output to the file store."""

import asyncio
import time
from itertools import islice, takewhile

from tandem_shared.backoff import until_available
from tandem_shared.files.store import FileStore
from tandem_shared.queue.batch import Batcher
from tandem_shared.queue.messages import Chunk, Report, Reported
from tandem_shared.queue.queue import Queue
from tandem_shared.streams.segments import write_segment
from tandem_worker.runtime.metrics import ObserveBatch

SEGMENT_BYTES = 2 << 20  # moved to the file store at once
MAX_MOVES = 4  # at once per worker: each holds its segment twice
RECENT_BYTES = 32 << 20  # of reports that are kept until they are safe
RESEND_REPORTS = 8  # per call


class Outbox:
    """Sends reports, many per round trip. A job may report `max_output_bytes` in total."""

    def __init__(
        self, queue: Queue, store: FileStore, *, max_output_bytes: int, observe: ObserveBatch
    ) -> None:
        self.max_output_bytes = max_output_bytes
        self._queue, self._store, self._observe = queue, store, observe
        self._batch = Batcher(
            self._send,
            max_items=50,
            size=lambda reports: sum(len(report.body) for report in reports),
        )
        self._recent = queue.repeats.keep(RECENT_BYTES)  # (Report, its answer)
        self.loop = asyncio.get_running_loop()
        self._moves = asyncio.Semaphore(MAX_MOVES)

    async def send(self, reports: list[Report]) -> list[Reported]:
        """Redis' answers, see `Queue.report`. Repeated until Redis answers, but written once."""
        return await until_available(lambda: self._batch.call(reports))

    async def _send(self, batch: list[list[Report]]) -> list[list[Reported]]:
        flat = [report for reports in batch for report in reports]
        began = time.monotonic()
        answers = await self._queue.report(flat, limit=self.max_output_bytes)
        self._observe("report", time.monotonic() - began, len(flat))
        self._recent.add([*zip(flat, answers, strict=True)], sum([len(one.body) for one in flat]))
        parts = iter(answers)
        return [list(islice(parts, len(reports))) for reports in batch]

    async def resend(self, id: str, token: str) -> int:
        """Write an attempt's recent reports again, under their stamps, as far as Redis lacks them.

        Return the number of the last one that Redis now has, 0 if it still lacks earlier ones.
        Raises Unavailable when the file store fails.
        """
        left = [
            report._replace(stamp=answer.stamp)
            for report, answer in self._recent
            if report.id == id and report.token == token and answer.stamp
        ]
        number = 0
        while left:
            answers = await self.send(left[:RESEND_REPORTS])
            done = [*takewhile(lambda answer: answer.word in ("ok", "long"), answers)]
            if done:
                number = left[len(done) - 1].number
            elif answers[0].word != "wait" or await self.move(id, token) is None:
                return number
            left = left[len(done) :]
        return number

    async def move(self, id: str, token: str) -> int | None:
        """Move the oldest part of a job's stream to the file store; return the bytes left in Redis.

        None: this token no longer holds the job. Raises Unavailable when the file store
        fails, and waits while Redis is unavailable.
        """
        async with self._moves:
            began = time.monotonic()
            chunks = await until_available(lambda: self._oldest(id))
            if not chunks:
                return 0
            segment = await write_segment(self._store, id, chunks)
            weight = sum(chunk.weight for chunk in chunks)
            left = await until_available(lambda: self._queue.archive(id, token, segment, weight))
            self._observe("archive", time.monotonic() - began, len(chunks))
            return left

    async def _oldest(self, id: str) -> list[Chunk]:
        found: list[Chunk] = []
        size, count = 0, 32
        while size < SEGMENT_BYTES:
            more = await self._queue.output(id, found[-1].stamp if found else 0, count)
            if not more:
                break
            found += more
            size += sum(chunk.weight for chunk in more)
            # Read as many as are missing, at the average size so far.
            count = max(1, min(1000, (SEGMENT_BYTES - size) * len(found) // size))
        return found
