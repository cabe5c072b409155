"""The `tandem` command as a process."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.settings import Settings, load_settings
from tandem_shared.times import rfc3339
from tests.shared.ledger.rows import BEGAN, many

KEY = "tk_abcd_0123456789abcdefSECRET"


def tandem(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    return subprocess.run(
        [sys.executable, "-m", "tandem_jobs.cli", *arguments],
        env={**env, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_settings_prints_each_setting_with_its_default() -> None:
    done = tandem("settings", TANDEM_PORT="9001")
    assert done.returncode == 0
    assert done.stderr == ""
    for name, field in Settings.model_fields.items():
        assert f"# {field.description} (default: " in done.stdout
        assert re.search(rf"^(# )?TANDEM_{name.upper()}(__<NAME>)?=", done.stdout, re.MULTILINE)
    assert "(default: 8000)\nTANDEM_PORT=9001\n" in done.stdout


def test_settings_masks_secrets() -> None:
    done = tandem("settings", TANDEM_KEYS=KEY, TANDEM_SQL__SALES="postgres://me:SECRET@db/sales")
    assert "SECRET" not in done.stdout
    assert "TANDEM_KEYS=tk_abcd_***\n" in done.stdout
    assert "TANDEM_SQL__SALES=postgres://me:***@db/sales\n" in done.stdout


@pytest.mark.parametrize("command", [["settings"], ["dev"], ["api"], ["worker"]])
def test_each_invalid_variable_is_one_line(command: list[str]) -> None:
    done = tandem(*command, TANDEM_PORT="x", TANDEM_LEASE="soon")
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "TANDEM_LEASE",
        "TANDEM_PORT",
    ]


@pytest.mark.parametrize("command", [["dev", "--no-demo"], ["api"]])
def test_a_public_address_needs_keys(command: list[str]) -> None:
    done = tandem(*command, "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("TANDEM_KEYS: ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such"],
        ["dev", "--workers", "0"],
        ["dev", "--port", "x"],
        ["settings", "--no-such"],
        ["submit"],
        ["submit", "t", "--tag", "x"],
        ["submit", "t", "--wait", "--watch"],
        ["watch"],
        ["watch", "x", "--patience", "5m"],
    ],
)
def test_a_wrong_option_prints_the_usage(arguments: list[str]) -> None:
    done = tandem(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: tandem")


@pytest.mark.parametrize(
    "command", ["api", "worker", "dev", "settings", "submit", "watch", "result", "cancel", "replay"]
)
def test_each_command_has_a_help(command: str) -> None:
    assert f" {command} " in tandem("--help").stdout
    done = tandem(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: tandem {command}")


def test_version() -> None:
    assert re.fullmatch(r"tandem (\d+\.\d+\.\d+|0\+unknown)\n", tandem("--version").stdout)


def test_a_closed_pipe_ends_a_command_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "tandem_jobs.cli", "settings"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 141


def test_the_doctor_reports_findings_and_repairs_them(redis_url: str, tmp_path: Path) -> None:
    environment = {
        "TANDEM_REDIS_URL": redis_url,
        "TANDEM_STORE_URL": f"file://{tmp_path}/store",
        "TANDEM_DATABASE_URL": f"sqlite://{tmp_path}/tandem.db",
        "TANDEM_LEASE": "1s",
    }
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
        assert tandem("doctor", **environment).returncode == 0
        redis.zadd("tandem:{a}:leases", {"nobody": 1e15})
        found = tandem("doctor", **environment)
        assert found.returncode == 1
        assert (
            "entry-misplaced: leases nobody (no record)\n    an entry does not match the state of"
            in found.stdout
        )
        assert "1 found" in found.stdout
        mended = tandem("doctor", "--fix", "--json", **environment)
        assert mended.returncode == 1
        (finding,) = json.loads(mended.stdout)["findings"]
        assert (finding["finding"], finding["subject"], finding["mended"]) == (
            "entry-misplaced",
            "leases nobody",
            True,
        )
        assert not redis.exists("tandem:{a}:leases")
        assert json.loads(tandem("doctor", "--json", **environment).stdout) == {
            "healthy": True, "jobs": 0, "findings": [], "unchecked": [],
        }  # fmt: skip


def test_the_doctor_reports_that_redis_is_away() -> None:
    done = tandem("doctor", "--no-files", TANDEM_REDIS_URL="redis://:SECRET@127.0.0.1:1/0")
    assert done.returncode == 2
    assert "could not be checked: the queue: Redis does not answer" in done.stdout
    assert "SECRET" not in done.stdout + done.stderr


def exported(*options: str) -> list[dict[str, object]]:
    """What `tandem export` prints of the test's ledger."""
    done = tandem("export", *options, TANDEM_DATABASE_URL=os.environ["TANDEM_DATABASE_URL"])
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_export_prints_the_jobs_of_the_ledger_oldest_first() -> None:
    rows = many(20)
    async with open_ledger(load_settings()) as ledger:
        await ledger.save(rows)
    jobs = await asyncio.to_thread(exported)
    assert [job["id"] for job in jobs] == [row.id for row in rows]
    assert [job["tenant"] for job in jobs] == [row.tenant for row in rows]
    failed = [job for job in jobs if job["state"] == "failed"]
    assert [job["payload"] for job in failed] == [{"n": 1}] * len(failed)
    assert await asyncio.to_thread(exported, "--state", "failed") == failed
    first, *_, last = (rfc3339(BEGAN / 1e6 + number) for number in range(20))
    assert (
        await asyncio.to_thread(exported, "--since", f"{first}", "--until", f"{last}") == jobs[:-1]
    )


@pytest.mark.parametrize("options", [("--since", "yesterday"), ("--state", "failed,lost")])
def test_export_refuses_a_wrong_filter_in_one_line(options: tuple[str, str]) -> None:
    done = tandem("export", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{options[0]}: {options[1]!r} is not ")
    assert done.stderr.count("\n") == 1
