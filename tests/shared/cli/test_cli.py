"""The command line as a user meets it: in a separate process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from tandem_shared.settings import Settings

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


def test_settings_prints_every_one_with_its_default() -> None:
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
def test_each_wrong_variable_is_a_line_and_no_traceback(command: list[str]) -> None:
    done = tandem(*command, TANDEM_PORT="x", TANDEM_LEASE="soon")
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "TANDEM_LEASE",
        "TANDEM_PORT",
    ]


@pytest.mark.parametrize("command", [["dev", "--no-demo"], ["api"]])
def test_an_address_for_others_needs_keys(command: list[str]) -> None:
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
def test_a_wrong_option_is_a_usage_line(arguments: list[str]) -> None:
    done = tandem(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: tandem")


@pytest.mark.parametrize(
    "command", ["api", "worker", "dev", "settings", "submit", "watch", "result", "cancel", "replay"]
)
def test_help_says_how(command: str) -> None:
    assert f" {command} " in tandem("--help").stdout
    done = tandem(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: tandem {command}")


def test_version() -> None:
    assert re.fullmatch(r"tandem (\d+\.\d+\.\d+|0\+unknown)\n", tandem("--version").stdout)


def test_a_reader_that_goes_away_is_no_failure_of_ours() -> None:
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


def test_the_doctor_says_what_it_finds_and_mends_it(redis_url: str, tmp_path: Path) -> None:
    environment = {
        "TANDEM_REDIS_URL": redis_url,
        "TANDEM_STORE_URL": f"file://{tmp_path}/store",
        "TANDEM_DATABASE_URL": f"sqlite://{tmp_path}/tandem.db",
        "TANDEM_LEASE": "1s",
    }
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
        assert tandem("doctor", **environment).returncode == 0
        redis.zadd("tandem:{a}:later", {"nobody": 1e15})
        found = tandem("doctor", **environment)
        assert found.returncode == 1
        assert (
            "entry-without-record: later nobody\n    an entry of the queue refers to a job without"
            in found.stdout
        )
        assert "1 found" in found.stdout
        mended = tandem("doctor", "--fix", "--json", **environment)
        assert mended.returncode == 1
        told = json.loads(mended.stdout)
        assert [(one["finding"], one["subject"], one["mended"]) for one in told["findings"]] == [
            ("entry-without-record", "later nobody", True)
        ]
        assert not redis.exists("tandem:{a}:later")
        assert json.loads(tandem("doctor", "--json", **environment).stdout) == {
            "healthy": True, "jobs": 0, "findings": [], "unchecked": [],
        }  # fmt: skip


def test_a_doctor_without_redis_says_so() -> None:
    done = tandem("doctor", "--no-files", TANDEM_REDIS_URL="redis://:SECRET@127.0.0.1:1/0")
    assert done.returncode == 2
    assert "could not be checked: the queue: Redis does not answer" in done.stdout
    assert "SECRET" not in done.stdout + done.stderr
