"""A short portion of the fuzz, always the same; `make fuzz` runs others for longer."""

from pathlib import Path

import pytest

from tests.fuzz.judges import JUDGES
from tests.fuzz.payloads import MAKERS
from tests.fuzz.run import fuzz, open_stage
from tests.worker.tasks.test_built_in import NAMES

JOBS_PER_TASK = 20


def test_every_built_in_task_has_a_maker() -> None:
    assert set(MAKERS) == set(NAMES)
    assert set(JUDGES) <= set(MAKERS)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_job_succeeds_or_ends_in_a_documented_error(
    server_data: Path, postgres: str, mongo_url: str, seed: int
) -> None:
    directory = server_data / f"fuzz-{seed}"
    directory.mkdir()
    async with open_stage(directory, postgres, mongo_url) as stage:
        report = await fuzz(stage, seed, range(JOBS_PER_TASK * len(MAKERS)))
    assert report.broken == []
    succeeded = {end.split()[0] for end in report.ends if end.endswith(" succeeded")}
    assert succeeded == set(MAKERS)
