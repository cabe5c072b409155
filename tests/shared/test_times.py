"""Times and durations: written as the standard library would, read as the schemas promise."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem_shared.times import (
    DURATION_PATTERN,
    SECONDS_PER_UNIT,
    parse_duration,
    parse_rfc3339,
    rfc3339,
    rfc3339_of_stamp,
)

laws = settings(derandomize=True, database=None, deadline=None)


def isoformat(seconds: float) -> str:
    """What the standard library writes."""
    return (
        datetime.fromtimestamp(seconds, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


@given(st.floats(0, 4e9))
def test_seconds_are_written_as_the_standard_library_does(seconds: float) -> None:
    assert rfc3339(seconds) == isoformat(seconds)


@given(st.integers(0, 4 * 10**12))
def test_milliseconds_survive(milliseconds: int) -> None:
    written = rfc3339(milliseconds / 1000)
    assert written == isoformat(milliseconds / 1000)
    assert parse_rfc3339(written) == milliseconds / 1000


@given(st.integers(1, 4 * 10**15))
def test_stamps_are_written_as_the_standard_library_does(stamp: int) -> None:
    assert rfc3339_of_stamp(stamp) == isoformat(stamp / 1_000_000)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1.9999996, "1970-01-01T00:00:02.000Z"),
        (1e9, "2001-09-09T01:46:40.000Z"),
    ],
)
def test_times_have_milliseconds_and_end_in_z(seconds: float, written: str) -> None:
    assert rfc3339(seconds) == isoformat(seconds) == written


def test_a_missing_time_stays_missing() -> None:
    assert rfc3339(None) is rfc3339_of_stamp(None) is rfc3339_of_stamp(0) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2001-09-09T01:46:40Z", 1e9),
        ("2001-09-09t01:46:40.5z", 1e9 + 0.5),
        ("2001-09-09 03:46:40+02:00", 1e9),
        ("2001-09-08T17:46:40.123456789-08:00", 1e9 + 0.123456),
    ],
)
def test_times_are_read_with_any_offset(text: str, seconds: float) -> None:
    assert parse_rfc3339(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2001-09-09",
        "2001-09-09T01:46:40",
        "2001-09-09T01:46Z",
        "2001-02-30T01:46:40Z",
        "2001-09-09T25:46:40Z",
        "20010909T014640Z",
        "２001-09-09T01:46:40Z",
    ],
)
def test_other_texts_are_not_times(text: str) -> None:
    assert parse_rfc3339(text) is None


@laws
@given(st.decimals(0, 10**6, places=3), st.sampled_from(sorted(SECONDS_PER_UNIT)))
def test_a_duration_is_an_amount_and_a_unit(amount: Any, unit: str) -> None:
    text = f"{amount}{unit}"
    assert re.match(DURATION_PATTERN, text)
    assert parse_duration(text) == float(amount) * SECONDS_PER_UNIT[unit]
    assert parse_duration(f" {text} ") == parse_duration(text)


@laws
@given(st.floats(0, 1e12) | st.integers(0, 10**12))
def test_a_number_is_seconds(value: float) -> None:
    assert parse_duration(value) == float(value)


@laws
@given(st.text(max_size=12))
def test_a_text_is_a_duration_exactly_if_the_schema_accepts_it(text: str) -> None:
    if re.match(DURATION_PATTERN, text.strip()):
        assert parse_duration(text) >= 0
    else:
        with pytest.raises(ValueError, match="is not a duration"):
            parse_duration(text)


@pytest.mark.parametrize(
    "wrong",
    [
        -1,
        -0.1,
        float("nan"),
        float("inf"),
        10**400,
        "9" * 400 + "s",
        True,
        None,
        [],
        "",
        "5",
        "5 m",
        "-5s",
        "1e3s",
    ],
)
def test_other_values_are_rejected(wrong: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(wrong)


def test_a_timedelta_is_a_duration() -> None:
    assert parse_duration(timedelta(minutes=2)) == 120.0
    with pytest.raises(ValueError, match="negative"):
        parse_duration(timedelta(seconds=-1))
