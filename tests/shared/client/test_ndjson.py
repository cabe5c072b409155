"""The decoder of NDJSON streams."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_jobs.client import ndjson
from tandem_jobs.client.ndjson import EntryDecoder
from tandem_jobs.client.transport import ConnectionLost
from tandem_shared.errors import Malformed

ENTRIES = [
    {
        "id": f"{n}-0",
        "type": "output",
        "attempt": 1,
        "at": "2026-01-01T00:00:00.000Z",
        "data": {"n": n, "é": "\u2028"},
    }
    for n in range(8)
]
LINES = [msgspec.json.encode(entry) + b"\n" for entry in ENTRIES]
STREAM = b"".join([*LINES[:4], b"\n", *LINES[4:]])  # with a heartbeat


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_entries_do_not_depend_on_how_the_bytes_are_split(cuts: list[int]) -> None:
    decoder, found = EntryDecoder(), []
    for start, end in pairwise([0, *sorted(cuts), len(STREAM)]):
        entries, alive = decoder.feed(STREAM[start:end])
        assert alive == (b"\n" in STREAM[start:end])
        found += entries
    assert [entry.data for entry in found] == [entry["data"] for entry in ENTRIES]


def test_a_line_without_its_end_is_not_decoded() -> None:
    assert EntryDecoder().feed(STREAM[:-1])[0][-1].id == "6-0"


def test_a_line_that_is_not_an_entry_counts_as_a_cut() -> None:
    with pytest.raises(ConnectionLost):
        EntryDecoder().feed(b'{"id": "1-0"}\n')


def test_a_line_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndjson, "MAX_LINE_BYTES", 100)
    decoder = EntryDecoder()
    decoder.feed(b"x" * 60)
    with pytest.raises(Malformed, match="100 bytes"):
        decoder.feed(b"x" * 60)
