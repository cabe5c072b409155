"""The benchmark runs; its figures are not judged."""

import asyncio
import json
import sys
from pathlib import Path

from bench import figures
from bench.figures import Figure
from tandem_shared.dev.servers import die_with_parent

ROOT = Path(__file__).parent.parent


async def test_a_small_run_measures_and_writes_its_results(tmp_path: Path) -> None:
    options = f"--peers none --only 1 --seconds 0.1 --rounds 1 --to {tmp_path}".split()
    process = await asyncio.create_subprocess_exec(
        *die_with_parent([sys.executable, "-m", "bench", *options]),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        process_group=0,
    )
    try:
        assert process.stdout is not None
        output = await asyncio.wait_for(process.stdout.read(), 100)
        assert await asyncio.wait_for(process.wait(), 10) == 0, output.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    rows = json.loads((tmp_path / "results.json").read_bytes())["figures"]
    names = [row["what"] for row in rows]
    assert names == [
        "no-op jobs, one worker",
        "worker CPU per no-op job",
        "Redis CPU per no-op job",
        "no-op jobs, one worker, including the ledger",
        "no-op jobs, two workers",
        "no-op jobs, two workers, including the ledger",
        "two workers compared with one",
        "submitted by one client",
    ]
    assert all(len(row["values"]) == 1 and row["values"][0] > 0 for row in rows)
    page = (tmp_path / "RESULTS.md").read_text()
    assert "## 1. No-op jobs" in page
    assert all(name in page for name in names)


def test_a_ratio_is_taken_within_its_round() -> None:
    rounds = [
        [Figure("jobs", "jobs/s", "Tandem", 300.0), Figure("jobs", "jobs/s", "arq", 100.0)],
        [Figure("jobs", "jobs/s", "Tandem", 100.0), Figure("jobs", "jobs/s", "arq", 20.0)],
    ]
    ours, theirs = figures.rows(1, rounds)
    assert (ours.system, ours.values, ours.ratios) == ("Tandem", [300.0, 100.0], [])
    assert (theirs.system, theirs.values, theirs.ratios) == ("arq", [100.0, 20.0], [3.0, 5.0])
    shown = figures.table("Jobs", [ours, theirs])
    assert "| jobs, jobs/s | Tandem | 200 (100 to 300) |  |" in shown
    assert "|  | arq | 60.0 (20.0 to 100) | 4.00 (3.00 to 5.00) |" in shown
