"""The options of `python -m tandem_worker`, run as a process."""

import asyncio
import os
import pstats
import sys
from pathlib import Path

from tandem_shared.dev.servers import die_with_parent


async def run_worker(redis_url: str, tmp_path: Path, *options: str) -> tuple[int | None, str]:
    """Run a worker; return its exit code and its output."""
    env = {
        **os.environ,
        "TANDEM_REDIS_URL": redis_url,
        "TANDEM_STORE_URL": (tmp_path / "files").as_uri(),
    }
    env["TANDEM_DATABASE_URL"] = f"sqlite://{tmp_path / 'tandem.db'}"
    pipe = asyncio.subprocess.PIPE
    argv = die_with_parent([sys.executable, "-m", "tandem_worker", "--burst", *options])
    process = await asyncio.create_subprocess_exec(
        *argv, env=env, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT, process_group=0
    )
    try:
        assert process.stdout is not None
        output = await asyncio.wait_for(process.stdout.read(), 60)
        return await asyncio.wait_for(process.wait(), 10), output.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_profile_shows_the_loop_of_the_worker(redis_url: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    code, text = await run_worker(redis_url, tmp_path, "--profile", str(path))
    assert code == 0, text
    stats = pstats.Stats(str(path)).stats  # type: ignore[attr-defined] # undocumented, and so not in the types
    functions = {(Path(file).name, name) for file, _, name in stats}
    assert ("claims.py", "run") in functions
    assert not any(file == "heartbeat.py" and name == "beat" for file, name in functions), (
        "the heartbeat is another thread"
    )


async def test_a_profile_that_cannot_be_written_stops_the_start(
    redis_url: str, tmp_path: Path
) -> None:
    code, text = await run_worker(redis_url, tmp_path, "--profile", str(tmp_path / "no" / "out"))
    assert code == 2
    assert "--profile" in text
    assert "No such file" in text
