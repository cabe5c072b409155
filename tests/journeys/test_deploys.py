"""Deployments: everything is restarted under load, and nobody notices."""

import tempfile
from pathlib import Path

import pytest

from tests.chaos.deploy import SETTINGS, roll
from tests.chaos.stage import open_stage


@pytest.mark.timeout(240)
async def test_a_rolling_restart_fails_no_request_and_charges_no_attempt() -> None:
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        Path(directory).chmod(0o711)  # PostgreSQL's own user passes through it
        async with open_stage(Path(directory), settings=SETTINGS) as stage:
            rolled = await roll(stage, rate=40)
            said = stage.said("[error")
    assert (rolled.failed, rolled.lost, rolled.charged) == ({}, 0, 0), (rolled, said)
    assert rolled.codes == [0] * 5
    assert said == []
    assert rolled.requests > 100
