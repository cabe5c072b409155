"""The tutorial task, docs/examples/wordcount.py, on real texts."""

import itertools
import os
import pydoc_data.topics
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tandem_worker.task import task_of
from tandem_worker.testing import Recorder, open_bench, run, upload

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
# A manual that comes with Python: half a megabyte of prose.
MANUAL = "\n".join(pydoc_data.topics.topics.values())


@pytest.fixture(scope="module")
def wordcount() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLES))
    import wordcount  # noqa: PLC0415 - only there from now on

    yield wordcount
    sys.path.remove(str(EXAMPLES))
    del sys.modules["wordcount"]


async def test_the_words_of_a_line(wordcount: ModuleType) -> None:
    seen = Recorder()
    count = await run(
        wordcount.wordcount, {"text": "To be, or not to be: that's it.", "top": 2}, sink=seen
    )
    assert (count.words, count.distinct) == (8, 6)
    assert seen.items == [{"word": "to", "count": 2}, {"word": "be", "count": 2}]
    assert seen.progressed[-1] == {"current": 2, "total": 2, "message": "be"}


async def test_the_words_of_a_manual_as_a_file(wordcount: ModuleType) -> None:
    # Larger than a piece of the file store, so that words are split between pieces.
    text = MANUAL * 4
    async with open_bench() as resources:
        seen = Recorder()
        source = await upload(resources, text.encode(), "manual.txt")
        count = await run(
            wordcount.wordcount, {"source": source, "top": 50}, resources=resources, sink=seen
        )
    found = [part.strip("'’_") for part in re.split(r"[^\w'’]+", text.lower())]
    expected = Counter(filter(None, found))
    assert count.words == expected.total()
    assert count.distinct == len(expected)
    assert [(item["word"], item["count"]) for item in seen.items] == expected.most_common(50)
    size = len(text.encode())
    assert {"current": size, "total": size, "message": "reading"} in seen.progressed


@given(text=st.text(alphabet="aé'_😀 \n"), cuts=st.lists(st.integers(0, 100)))
def test_the_split_into_pieces_does_not_matter(
    wordcount: ModuleType, text: str, cuts: list[int]
) -> None:
    data = text.encode()
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(borders)]
    assert list(wordcount.words(pieces)) == list(wordcount.words([data]))


@pytest.mark.parametrize(
    "payload", [{}, {"text": "a", "source": {"file": "b"}}, {"text": "a", "top": -1}]
)
async def test_an_invalid_payload_is_rejected(
    wordcount: ModuleType, payload: dict[str, object]
) -> None:
    with pytest.raises(ValidationError):
        await run(wordcount.wordcount, payload)


def test_its_catalogue_entry_describes_it(wordcount: ModuleType) -> None:
    entry = task_of(wordcount.wordcount).entry
    assert entry.name == "text.wordcount"
    assert entry.summary == "Count the words of a text and stream the most frequent ones."
    assert entry.result_schema["required"] == ["words", "distinct"]


def test_a_worker_loads_it() -> None:
    code = "from tandem_worker.loader import load_tasks; print(','.join(load_tasks(['wordcount'])))"
    env = {**os.environ, "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{EXAMPLES.parents[1]}"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, check=True, timeout=60
    )
    assert "text.wordcount" in found.stdout.decode().strip().split(",")


def test_the_curl_line_of_its_docstring_has_a_valid_payload(wordcount: ModuleType) -> None:
    (body,) = re.findall(r"-d '(.*)'", wordcount.__doc__ or "")
    job = msgspec.json.decode(body)
    assert job["task"] == "text.wordcount"
    task_of(wordcount.wordcount).decode(msgspec.json.encode(job["payload"]))
