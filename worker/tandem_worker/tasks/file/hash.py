"""`file.hash`."""

import asyncio
import hashlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.payload import FILE_EXAMPLE, Payload

MAX_WAITING_PIECES = 4  # read ahead of the thread that hashes

Algorithm = Literal[
    "sha256", "sha1", "sha224", "sha384", "sha512",
    "sha3_256", "sha3_512", "blake2b", "blake2s", "md5",
]  # fmt: skip


class HashPayload(Payload):
    """What to hash, with which algorithms."""

    source: FileRef
    algorithms: list[Algorithm] = Field(default=["sha256"], min_length=1, max_length=32)


class Digests(TypedDict):
    """The file's size in bytes, and the requested digests in hexadecimal."""

    size: int
    sha256: NotRequired[str]
    sha1: NotRequired[str]
    sha224: NotRequired[str]
    sha384: NotRequired[str]
    sha512: NotRequired[str]
    sha3_256: NotRequired[str]
    sha3_512: NotRequired[str]
    blake2b: NotRequired[str]
    blake2s: NotRequired[str]
    md5: NotRequired[str]


@task(
    "file.hash",
    timeout="10m",
    example={"source": FILE_EXAMPLE, "algorithms": ["sha256", "md5"]},
)
async def hash_file(job: Job, payload: HashPayload) -> Digests:
    """Hash a file: its size in bytes and one hexadecimal digest per algorithm."""
    digests = {
        name: hashlib.new(name, usedforsecurity=False) for name in dict.fromkeys(payload.algorithms)
    }

    def update(piece: bytes) -> None:
        for digest in digests.values():
            digest.update(piece)

    total = (await job.files.stat(payload.source)).size
    done = 0
    await job.progress(0, total)
    # A dedicated thread: all algorithms together may take milliseconds for a piece of about 1 MiB.
    # Pieces are read ahead to keep it busy.
    thread = ThreadPoolExecutor(1, thread_name_prefix="hash")
    waiting: deque[asyncio.Future[None]] = deque()
    try:
        async for piece in job.files.open(payload.source):
            if len(waiting) == MAX_WAITING_PIECES:
                await waiting.popleft()
            waiting.append(asyncio.get_running_loop().run_in_executor(thread, update, piece))
            done += len(piece)
            await job.progress(done, total)
        while waiting:
            await waiting.popleft()
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
    result: Digests = {"size": done}
    for name, digest in digests.items():
        result[name] = digest.hexdigest()
    return result
