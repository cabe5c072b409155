"""The wheel without extras, in an environment that has only what its base dependencies bring."""

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.distributions import required
from tests.journeys.pair import KEY, ROOT, Pair

BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "api", "worker", "shared")
IMPORT_ALL = """
import pkgutil, tandem_jobs
for module in pkgutil.walk_packages(tandem_jobs.__path__, "tandem_jobs."):
    __import__(module.name)
for name in tandem_jobs.__all__:
    getattr(tandem_jobs, name)
"""
RUN_A_JOB = """
import asyncio
from tandem_jobs import AsyncClient, Client

with Client() as client:
    job = client.submit("client.ends", {"result": "blocking"})
    print(client.result(job))

async def main():
    async with AsyncClient() as client:
        job = await client.submit("client.ends", {"result": "asyncio"})
        print(await client.result(job))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the environment's programs."""
    directory = tmp_path_factory.mktemp("bare")
    source, environment = directory / "source", directory / "env"
    source.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    venv.create(environment)
    programs = environment / "bin"
    uv(directory, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "source")
    (wheel,) = (source / "dist").glob("*.whl")
    uv(directory, "pip", "install", "--python", programs / "python", "--no-deps", wheel)
    (packages,) = environment.glob("lib/python*/site-packages")
    for entry in entries(required()):
        (packages / entry.name).symlink_to(entry)
    return programs


def uv(directory: Path, *arguments: str | Path) -> None:
    """Run uv, which downloads nothing."""
    given = {"UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_CACHE_DIR": str(directory / "cache")}
    program = [sys.executable, "-m", "uv", *map(str, arguments)]
    done = subprocess.run(
        program,
        cwd=directory,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def entries(distributions: set[str]) -> Iterator[Path]:
    """What lies in site-packages of the running environment for these distributions."""
    for name in distributions:
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        assert tops, f"{name} does not say which files it has"
        yield from (Path(str(distribution.locate_file(top))) for top in tops)


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_client_and_the_command_import_nothing_else(bare: Path) -> None:
    done = run(bare / "python", "-c", IMPORT_ALL)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_client_runs_jobs(bare: Path, pair: Pair) -> None:
    done = run(bare / "python", "-c", RUN_A_JOB, TANDEM_URL=pair.url, TANDEM_API_KEY=KEY)
    assert (done.stdout, done.stderr) == ("blocking\nasyncio\n", "")


def test_the_command_runs_jobs(bare: Path, pair: Pair) -> None:
    command = (bare / "tandem", "submit", "client.ends", '{"result": 7}', "--wait")
    done = run(*command, TANDEM_URL=pair.url, TANDEM_API_KEY=KEY)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


@pytest.mark.parametrize("options", [["--help"], ["--version"], ["dev", "--help"]])
def test_the_command_helps(bare: Path, options: list[str]) -> None:
    done = run(bare / "tandem", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^(usage: )?tandem ", done.stdout)


@pytest.mark.parametrize("command", ["api", "worker", "dev", "doctor", "export", "settings"])
def test_commands_of_the_server_say_what_to_install(bare: Path, command: str) -> None:
    done = run(bare / "tandem", command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tandem {command} needs the server: install tandem-jobs[server]\n"
