"""Failures as clients see them: a type and one line, without secrets, paths and tracebacks."""

import errno
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from tandem_shared.errors import Full, Unavailable
from tandem_worker.errors import Permanent, Retry
from tandem_worker.failures import (
    MAX_MESSAGE_CHARS,
    invalid_payload,
    sanitize,
    timed_out,
    to_fault,
)


class Inner(BaseModel):
    numbers: list[int]


class Payload(BaseModel):
    inner: Inner
    names: dict[str, int] = {}
    width: int = Field(default=1, ge=1)


def refusal(payload: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Payload).validate_python(payload)
    return caught.value


def test_pointers_name_the_fields_and_values_are_left_out() -> None:
    fault = invalid_payload(
        refusal({"inner": {"numbers": [1, "hunter2"]}, "width": 0, "names": {"a/b~c": "hunter2"}})
    )
    assert (fault.type, fault.retryable) == ("invalid_payload", False)
    lines = fault.message.split("; ")
    assert [line.partition(": ")[0] for line in lines] == [
        "/payload/inner/numbers/1",
        "/payload/names/a~1b~0c",
        "/payload/width",
    ]
    assert "hunter2" not in fault.message


@pytest.mark.parametrize("kind", [Unavailable, Full])
def test_a_service_that_is_away_is_unavailable(kind: type[Unavailable]) -> None:
    assert to_fault(kind("the file store does not answer")) == (
        "unavailable",
        "the file store does not answer",
        True,
        None,
    )


def test_many_errors_are_cut() -> None:
    fault = invalid_payload(refusal({"inner": {"numbers": ["x"] * 500}}))
    assert fault.message.count("/payload") == 10
    assert (
        len(
            invalid_payload(refusal({"inner": {"numbers": []}, "names": {"x" * 5000: "y"}})).message
        )
        <= MAX_MESSAGE_CHARS
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("plain"), ("exception:ValueError", "plain", True, None)),
        (
            ValueError(),
            ("exception:ValueError", "the task raised ValueError without a message", True, None),
        ),
        (KeyError("missing"), ("exception:KeyError", "'missing'", True, None)),
        (TimeoutError("the printer"), ("exception:TimeoutError", "the printer", True, None)),
        (Permanent("card_declined", "no"), ("card_declined", "no", False, None)),
        (Retry(after="30s"), ("retry", "the task asked for another attempt", True, 30.0)),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/srv/app/secret.txt"),
            ("exception:FileNotFoundError", "No such file or directory", True, None),
        ),
        (
            ExceptionGroup("several", [ValueError("a")]),
            ("exception:ExceptionGroup", "several (1 sub-exception)", True, None),
        ),
    ],
)
def test_exceptions_become_faults(error: Exception, expected: tuple[Any, ...]) -> None:
    assert tuple(to_fault(error)) == expected


def test_an_exception_without_a_readable_message() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    assert to_fault(Mute()).message == "the task raised Mute without a message"


def test_a_timeout_names_its_limit() -> None:
    assert timed_out(0.5).message == "the attempt exceeded its timeout of 0.5 s"
    assert timed_out(30.0).retryable


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("cannot open /srv/app/data/x.csv today", "cannot open …/x.csv today"),
        ("see 'file:///srv/app/data/x.csv'", "see 'file://…/x.csv'"),
        ("at /usr/lib/python3.11/", "at …/python3.11"),
        (
            "GET https://example.com/a/b/c?d=e gave 500",
            "GET https://example.com/a/b/c?d=e gave 500",
        ),
        ("GET http://10.0.0.1:8080/a/b gave 500", "GET http://10.0.0.1:8080/a/b gave 500"),
        ("3/4 and 1/2/3 and and/or", "3/4 and 1/2/3 and and/or"),
        ("postgres://app:hunter2@db:5432/x", "postgres://app:***@db:5432/x"),
        ("redis://:hunter2@h/0 refused", "redis://:***@h/0 refused"),
        ("key tk_abcd_abcdefghijklmnop is wrong", "key tk_abcd_*** is wrong"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("host=db password=hunter2 port=1", "host=db password=*** port=1"),
        ("{'user': 'a', 'password': 'hunter2'}", "{'user': 'a', 'password': '***'}"),
        ("api_key=hunter2&x=1", "api_key=***&x=1"),
        ("two\nlines\tand\x00\x1b[31m red", "two lines and [31m red"),
        ("lone \udc80 surrogate", "lone \\udc80 surrogate"),
        ("   ", ""),
    ],
)
def test_messages_are_sanitized(message: str, expected: str) -> None:
    assert sanitize(message) == expected


def test_a_traceback_is_left_out() -> None:
    try:
        raise ValueError("the reason")
    except ValueError:
        trace = traceback.format_exc()
    assert sanitize(trace) == "ValueError: the reason"
    assert sanitize(f"the child failed:\n{trace}") == "the child failed:"
    for fault in (sanitize(trace), sanitize(f"x {trace}")):
        assert __file__ not in fault
        assert "line" not in fault


@given(st.text())
def test_any_message_becomes_one_line_of_text(text: str) -> None:
    fault = sanitize(text)
    assert len(fault) <= MAX_MESSAGE_CHARS
    assert len(fault.splitlines()) <= 1
    fault.encode()


def test_long_messages_are_cut() -> None:
    assert sanitize("x" * 5000) == "x" * (MAX_MESSAGE_CHARS - 1) + "…"
    assert sanitize("x" * 10**7).endswith("…")
