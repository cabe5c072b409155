"""Files: `file.hash`."""

import asyncio
import hashlib
from typing import Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from worker.files import FileRef
from worker.job import Job
from worker.task import task

Algorithm = Literal[
    "sha256", "sha1", "sha224", "sha384", "sha512", "sha3_256", "sha3_512", "blake2b", "blake2s", "md5"
]  # fmt: skip


class HashPayload(BaseModel):
    """What to hash, and how."""

    model_config = ConfigDict(extra="forbid")

    source: FileRef
    algorithms: list[Algorithm] = Field(default=["sha256"], min_length=1, max_length=32)


class Digests(TypedDict):
    """The file's size in bytes and the digests that were asked for, hexadecimal."""

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
    example={"source": {"file": "01JC8XW3T4Z5PC3V8M2G7QK9RN4HDA"}, "algorithms": ["sha256", "md5"]},
)
async def hash_file(job: Job, payload: HashPayload) -> Digests:
    """Hash an uploaded or produced file: its size in bytes and one hexadecimal digest per algorithm."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in dict.fromkeys(payload.algorithms)}

    def update(piece: bytes) -> None:
        for digest in digests.values():
            digest.update(piece)

    total = (await job.files.stat(payload.source)).size
    done = 0
    await job.progress(0, total)
    async for piece in job.files.open(payload.source):
        # A piece is about 1 MiB: in a thread, since all algorithms together may take milliseconds for it.
        await asyncio.to_thread(update, piece)
        done += len(piece)
        await job.progress(done, total)
    result: Digests = {"size": done}
    for name, digest in digests.items():
        result[name] = digest.hexdigest()
    return result
