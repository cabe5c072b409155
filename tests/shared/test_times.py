"""Times as clients read them say what the library would."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_shared.times import rfc3339, rfc3339_of_stamp


def by_the_library(seconds: float) -> str:
    return (
        datetime.fromtimestamp(seconds, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


@given(st.floats(0, 4e9))
def test_seconds(moment: float) -> None:
    assert rfc3339(moment) == by_the_library(moment)


@given(st.integers(0, 4 * 10**12))
def test_milliseconds(moment: int) -> None:
    assert rfc3339(moment / 1000) == by_the_library(moment / 1000)


@given(st.integers(1, 4 * 10**15))
def test_stamps(stamp: int) -> None:
    assert rfc3339_of_stamp(stamp) == by_the_library(stamp / 1_000_000)


@pytest.mark.parametrize(
    ("moment", "told"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1.9999996, "1970-01-01T00:00:02.000Z"),
        (1e9, "2001-09-09T01:46:40.000Z"),
    ],
)
def test_what_it_looks_like(moment: float, told: str) -> None:
    assert rfc3339(moment) == by_the_library(moment) == told


def test_no_time_is_none() -> None:
    assert rfc3339(None) is rfc3339_of_stamp(None) is rfc3339_of_stamp(0) is None
