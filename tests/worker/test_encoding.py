"""JSON of what tasks return and emit."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from tandem_worker import task
from tandem_worker.encoding import encode
from tandem_worker.task import task_of


class Point(BaseModel):
    x: float
    label: str = Field("", alias="the label")


@dataclass
class Pair:
    left: int
    right: int = 2


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | st.integers() | FLOATS | st.text()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(VALUES)
def test_json_survives_encoding(value: Any) -> None:
    assert msgspec.json.decode(encode(value)) == value


@given(
    VALUES,
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.sampled_from(["plain", "model", "typed"]),
)
def test_infinities_never_become_null(value: Any, bad: float, where: str) -> None:
    @task("floats")
    async def floats() -> list[float]:
        return []

    returned = {
        "plain": partial(encode, [value, {"deep": [bad]}]),
        "model": partial(encode, [value, Point.model_construct(x=bad)]),
        "typed": partial(task_of(floats).encode, [1.0, bad]),
    }
    with pytest.raises(TypeError, match="JSON has no NaN or infinity"):
        returned[where]()


def test_strings_that_look_like_infinities_are_written() -> None:
    assert encode(["NaN", "Infinity", None]) == b'["NaN","Infinity",null]'


def test_the_usual_types_are_written() -> None:
    class Struct(msgspec.Struct):
        a: int

    value = [
        Point(x=1),
        Pair(1),
        Struct(2),
        datetime(2024, 5, 17, tzinfo=UTC),
        Decimal("1.50"),
        {3},
        10**30,
    ]
    assert encode(value) == (
        b'[{"x":1.0,"the label":""},{"left":1,"right":2},{"a":2},'
        b'"2024-05-17T00:00:00Z","1.50",[3],1' + b"0" * 30 + b"]"
    )
    assert encode(msgspec.Raw(b'{"as": "it is"}')) == b'{"as": "it is"}'


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize("value", [object(), ValueError("x"), b"\xff", "\ud800", LOOP, len])
def test_values_that_json_cannot_hold_are_rejected_in_a_sentence(value: Any) -> None:
    @task("anything")
    async def anything() -> Any: ...

    with pytest.raises(
        TypeError, match=r"^the result of anything is not JSON: \w+ cannot be written as JSON: "
    ) as caught:
        task_of(anything).encode({"value": [value]})
    assert "\n" not in str(caught.value)


def test_a_result_of_another_type_than_declared_is_written_by_its_own() -> None:
    @task("declared")
    async def declared() -> int:
        return 1

    assert task_of(declared).encode({"rows": None}) == b'{"rows":null}'
