"""A custom task: count the words of a text.

Start the services with it, then submit a job:

    TANDEM_TASKS=wordcount PYTHONPATH=docs/examples tandem dev

    curl -H 'content-type: application/json' http://127.0.0.1:8000/v1/jobs \
         -d '{"task": "text.wordcount", "payload": {"text": "to be or not to be", "top": 2}}'
"""

import re
from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Iterable, Iterator

from pydantic import BaseModel, Field, model_validator

from tandem_worker import FileRef, SyncJob, task

WORD = re.compile(r"[\w'’]+")


class Text(BaseModel):
    """A text, given inline or as an uploaded file."""

    text: str | None = None
    source: FileRef | None = None
    top: int = Field(10, ge=0, le=1000, description="how many of the most frequent words to stream")

    @model_validator(mode="after")
    def _exactly_one(self) -> "Text":
        if (self.text is None) == (self.source is None):
            raise ValueError("give either text or source")
        return self


class Count(BaseModel):
    """The result; the words themselves are streamed as output."""

    words: int
    distinct: int


# A plain function runs in a thread, so that counting does not block other jobs.
@task("text.wordcount", timeout="10m", example={"text": "to be or not to be", "top": 2})
def wordcount(job: SyncJob, payload: Text) -> Count:
    """Count the words of a text and stream the most frequent ones."""
    counts = Counter(words(read(job, payload)))
    top = counts.most_common(payload.top)
    for number, (word, count) in enumerate(top, 1):
        job.emit({"word": word, "count": count})
        job.progress(number, len(top), word)
    return Count(words=counts.total(), distinct=len(counts))


def read(job: SyncJob, payload: Text) -> Iterator[bytes]:
    """The text piece by piece, because a file may be larger than memory."""
    if payload.text is not None:
        yield payload.text.encode()
        return
    size = job.files.stat(payload.source).size
    done = 0
    for piece in job.files.open(payload.source):
        yield piece
        done += len(piece)
        job.progress(done, size, "reading")


def words(pieces: Iterable[bytes]) -> Iterator[str]:
    """The words of UTF-8 text, in lower case. A word may span two pieces."""
    decode = getincrementaldecoder("utf-8")(errors="replace").decode
    unfinished = ""
    for piece in pieces:
        text = unfinished + decode(piece)
        unfinished = ""
        for match in WORD.finditer(text):
            if match.end() == len(text):
                unfinished = match[0]
            elif word := match[0].strip("'’_"):
                yield word.lower()
    if word := unfinished.strip("'’_"):
        yield word.lower()
