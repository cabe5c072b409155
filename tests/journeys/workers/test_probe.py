"""`tandem probe`, as a container's health check runs it."""

import subprocess
import sys

from tandem_shared.dev.servers import free_port
from tests.journeys.stage import WorkerStage, exit_code, until_registered
from tests.worker.workers import Client


def probe(*arguments: str, port: int) -> tuple[int, str]:
    """Exit code and stderr."""
    command = [sys.executable, "-m", "tandem_jobs.cli", "probe", *arguments]
    environment = {"TANDEM_METRICS_PORT": str(port), "TANDEM_PORT": str(port)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


async def test_a_worker_is_well_until_it_has_gone(stage: WorkerStage, client: Client) -> None:
    port = free_port()
    code, reason = probe("worker", port=port)
    assert (code, "refused" in reason) == (1, True)
    process = stage.worker(metrics_port=str(port))
    await until_registered(client, 1)
    assert probe("worker", port=port) == (0, "")
    assert probe("worker", "--ready", port=port) == (0, "")
    process.terminate()
    assert await exit_code(process) == 0
    assert probe("worker", port=port)[0] == 1


def test_a_worker_without_a_port_cannot_be_probed() -> None:
    code, reason = probe("worker", port=0)
    assert (code, "TANDEM_METRICS_PORT" in reason) == (2, True)
