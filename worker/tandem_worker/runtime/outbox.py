"""The reports of all jobs of a worker, on the way to Redis and from there to the file store."""

import asyncio
import time
from itertools import islice

from tandem_shared.backoff import until_available
from tandem_shared.files.store import FileStore
from tandem_shared.queue.batch import Batcher
from tandem_shared.queue.messages import Chunk, Report
from tandem_shared.queue.queue import Queue
from tandem_shared.streams.segments import write_segment
from tandem_worker.runtime.metrics import ObserveBatch

SEGMENT_BYTES = 2 << 20  # moved to the file store at once
MAX_MOVES = 4  # at once per worker: each holds its segment twice


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
        self.loop = asyncio.get_running_loop()
        self._moves = asyncio.Semaphore(MAX_MOVES)

    async def send(self, reports: list[Report]) -> list[str]:
        """Redis' answers, see `Queue.report`. Repeated until Redis answers, but written once."""
        return await until_available(lambda: self._batch.call(reports))

    async def _send(self, batch: list[list[Report]]) -> list[list[str]]:
        flat = [report for reports in batch for report in reports]
        began = time.monotonic()
        answers = iter(await self._queue.report(flat, limit=self.max_output_bytes))
        self._observe("report", time.monotonic() - began, len(flat))
        return [list(islice(answers, len(reports))) for reports in batch]

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
            # As many as are missing, at the average size of those that were read.
            count = max(1, min(1000, (SEGMENT_BYTES - size) * len(found) // size))
        return found
