"""The laws of `retry_delay`: whether and when a failed attempt is followed by another."""

import random
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tandem_shared.retry_policy import RETRY_SCHEMA, RetryPolicy, retry_delay

settings.register_profile("laws", derandomize=True, database=None, deadline=None)
laws = settings(settings.get_profile("laws"))

finite = st.floats(0, 1e9)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 1000),
    backoff=st.sampled_from(["exponential", "linear", "fixed"]),
    base=finite,
    cap=finite,
    jitter=st.booleans(),
)
attempts = st.integers(1, 1100)
after = st.none() | finite
chance = st.floats(0, 1, exclude_max=True)


@laws
@given(policies, attempts, after, chance)
def test_every_attempt_but_the_last_is_retried(
    policy: RetryPolicy, attempt: int, after: float | None, chance: float
) -> None:
    wait = retry_delay(policy, attempt, after=after, random=lambda: chance)
    assert (wait is None) is (attempt >= policy.max_attempts)


@laws
@given(policies, attempts, after)
def test_a_permanent_failure_is_never_retried(
    policy: RetryPolicy, attempt: int, after: float | None
) -> None:
    assert retry_delay(policy, attempt, retryable=False, after=after) is None


@laws
@given(policies, attempts, after, chance)
def test_the_delay_is_between_the_floor_and_the_cap(
    policy: RetryPolicy, attempt: int, after: float | None, chance: float
) -> None:
    wait = retry_delay(policy, attempt, after=after, random=lambda: chance)
    if wait is not None:
        floor = after or 0.0
        assert floor <= wait <= max(policy.cap, floor)


@laws
@given(policies, attempts, chance)
def test_retry_after_exceeds_the_cap(policy: RetryPolicy, attempt: int, chance: float) -> None:
    wait = retry_delay(policy, attempt, after=policy.cap + 1, random=lambda: chance)
    assert wait in (None, policy.cap + 1)


@laws
@given(policies, attempts, chance)
def test_jitter_takes_a_random_share_of_the_delay(
    policy: RetryPolicy, attempt: int, chance: float
) -> None:
    plain = retry_delay(policy.model_copy(update={"jitter": False}), attempt)
    spread = retry_delay(policy.model_copy(update={"jitter": True}), attempt, random=lambda: chance)
    assert spread == (None if plain is None else plain * chance)


@laws
@given(policies, st.integers(1, 998))
def test_without_jitter_the_delay_never_shrinks(policy: RetryPolicy, attempt: int) -> None:
    steady = policy.model_copy(update={"jitter": False, "max_attempts": 1000})

    def never() -> float:
        raise AssertionError("random was called")

    first, second = (retry_delay(steady, number, random=never) for number in (attempt, attempt + 1))
    assert first is not None
    assert second is not None
    assert first <= second


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [
        ("exponential", [2, 4, 8, 16, 20, 20]),
        ("linear", [2, 4, 6, 8, 10, 12]),
        ("fixed", [2, 2, 2, 2, 2, 2]),
    ],
)
def test_the_delay_grows_by_the_backoff(backoff: Any, waits: list[float]) -> None:
    policy = RetryPolicy(max_attempts=7, backoff=backoff, base=2.0, cap=20.0, jitter=False)
    assert [retry_delay(policy, attempt) for attempt in range(1, 8)] == [*waits, None]


def test_full_jitter_spreads_over_the_whole_delay() -> None:
    policy = RetryPolicy(base=8.0)
    chance = random.Random(4).random
    waits = [retry_delay(policy, 1, random=chance) or 0.0 for _ in range(1000)]
    assert min(waits) < 0.1
    assert max(waits) > 7.9
    assert 3.5 < sum(waits) / 1000 < 4.5


def test_durations_may_have_a_unit() -> None:
    policy = RetryPolicy.model_validate({"base": "250ms", "cap": "5m"})
    assert (policy.base, policy.cap) == (0.25, 300.0)
    assert (policy.max_attempts, policy.backoff, policy.jitter) == (3, "exponential", True)


WRONG = [
    {"max_attempts": 0},
    {"max_attempts": 1001},
    {"backoff": "never"},
    {"base": -1},
    {"cap": "soon"},
    {"other": 1},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_policy_and_schema_reject_the_same(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RetryPolicy.model_validate(wrong)
    assert not jsonschema_rs.validator_for(RETRY_SCHEMA).is_valid(wrong)


def test_the_schema_requires_no_field() -> None:
    validator = jsonschema_rs.validator_for(RETRY_SCHEMA)
    assert validator.is_valid({})
    assert validator.is_valid(dict.fromkeys(RetryPolicy.model_fields))
    assert validator.is_valid(RetryPolicy().model_dump())
    assert set(RETRY_SCHEMA["properties"]) == set(RetryPolicy.model_fields)
