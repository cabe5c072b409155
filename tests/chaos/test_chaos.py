"""A minute of faults, and three builds that are broken on purpose and must be caught."""

from collections.abc import Mapping

import pytest

from tests.chaos.run import Plan, perform


@pytest.mark.timeout(400)
async def test_every_promise_is_kept_through_a_minute_of_faults() -> None:
    result = await perform(Plan(seed=20, seconds=45.0, pause=1.5))
    assert result.broken == [], result.figures
    assert result.figures["jobs"] > 100
    assert result.figures["faults"] > 5


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mutant", "faults", "sentence"),
    [
        ("without-fence", {"stop worker": 1}, "not of the accepted attempt"),
        ("finish-before-commit", {"kill worker": 1}, "nothing was done"),
        ("without-heartbeat", {}, "lost its worker without a fault"),
    ],
)
async def test_a_build_that_is_broken_on_purpose_is_caught(
    mutant: str, faults: Mapping[str, int], sentence: str
) -> None:
    plan = Plan(
        seed=5,
        seconds=12.0,
        pause=1.0 if faults else 1000.0,
        worker=f"tests.chaos.check.mutants {mutant}",
        faults=faults or {"late finishes": 1},
        work={"slow": 30, "sql": 10},
        rest=60.0,
    )
    result = await perform(plan)
    found = any(sentence in broken for broken in result.broken)
    assert found, (result.broken[:20], result.figures)
