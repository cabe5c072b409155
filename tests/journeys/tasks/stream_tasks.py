"""A task that streams any amount of generated items, the same in every attempt."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
from pydantic import BaseModel

from tandem_worker import task
from tandem_worker.jobs.job import Job


class Stream(BaseModel):
    """`items` of about `size` bytes; item number `halt` waits until the file `go` exists."""

    items: int
    size: int
    halt: int | None = None
    go: Path = Path("/")


def generate(stream: Stream) -> Iterator[bytes]:
    """The items as JSON."""
    for number in range(stream.items):
        word = f"{number * 2654435761 % 4294967296:08x}"
        yield b'{"n":%d,"text":"%s"}' % (number, (word * (stream.size // 8)).encode())


@task("stream.items", timeout="2m")
async def items(job: Job, payload: Stream) -> int:
    for number, item in enumerate(generate(payload)):
        while number == payload.halt and not payload.go.exists():
            await asyncio.sleep(0.01)
        await job.emit(msgspec.Raw(item))
    return job.attempt
