"""Mistyped settings, as the real processes report them: by name, in the first line, as one line."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tandem_shared.environment import read_environment, unknown_names
from tandem_shared.errors import Misconfigured
from tandem_shared.settings import Settings

KEY = "tk_abcd_0123456789abcdefSECRET"


def run(process: str, **given: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    return subprocess.run(
        [sys.executable, "-m", f"tandem_{process}"],
        env={**env, **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


MISTYPED = {
    "TANDEM_LEASE": ("5 parsecs", "duration"),
    "TANDEM_KEEP": ("1w", "duration"),
    "TANDEM_MAX_UPLOAD": ("10GB", "whole number"),
    "TANDEM_PORT": ("80a", "whole number"),
    "TANDEM_METRICS_PORT": ("99999", "at most 65535"),
    "TANDEM_LOG": ("jsn", "'console' or 'json'"),
    "TANDEM_DATABASE_URL": ("postgres://a:hunter2@h:99999/x", "port"),
    "TANDEM_STORE_URL": ("s3://[b", "URL"),
    "TANDEM_HTTP_ALLOW": ("10.0.0.0/99", "network"),
    "TANDEM_KEYS_FILE": ("/nonexistent", "No such file"),
    "TANDEM_SQL": ("sqlite://x", "TANDEM_SQL__<NAME>"),
}


@pytest.mark.parametrize(
    ("process", "name"), [*zip(itertools.cycle(["api", "worker"]), MISTYPED, strict=False)]
)
def test_a_mistyped_setting_is_named_in_the_first_line(process: str, name: str) -> None:
    value, reason = MISTYPED[name]
    done = run(process, **{name: value})
    first = done.stderr.splitlines()[0]
    assert done.returncode == 2, done.stderr
    assert first.startswith(name)
    assert reason in first
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://h/0?foo=1", "'foo'"),
        ("redis://h:99999/0", "port"),
        ("redis://h:0/0", "port"),
        ("redis://:hunter2@h/word", "'word'"),
        ("redis://h/0?ssl_ca_certs=/etc/ssl/ca.pem", "rediss://"),
        ("rediss://h/0?ssl_ca_certs=/nonexistent.pem", "no file"),
        ("rediss://h/0?ssl_cert_reqs=maybe", "none, optional, required"),
        ("unix://", "unix:///path"),
    ],
)
def test_a_redis_url_that_cannot_be_used_stops_the_start(url: str, reason: str) -> None:
    done = run("worker", TANDEM_REDIS_URL=url)
    first, *others = done.stderr.splitlines()
    assert (done.returncode, others) == (2, [])
    assert first.startswith("TANDEM_REDIS_URL: ")
    assert reason in first
    assert "hunter2" not in first


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("channel_binding=require", "'channel_binding'"),
        ("sslmode=maybe", "sslmode"),
        ("connect_timeout=soon", "whole number"),
        ("sslrootcert=/nonexistent.pem", "no file"),
    ],
)
def test_words_of_a_database_url_are_understood_or_refused_by_name(words: str, reason: str) -> None:
    done = run("worker", TANDEM_DATABASE_URL=f"postgres://a:hunter2@h/d?{words}")
    assert done.returncode == 2
    assert done.stderr.startswith("TANDEM_DATABASE_URL: ")
    assert reason in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("process", ["api", "worker"])
def test_json_logs_are_json_to_the_last_line(process: str, tmp_path: Path) -> None:
    done = run(
        process,
        TANDEM_LOG="json",
        TANDEM_TASK="greetings",
        TANDEM_HOST="192.0.2.1",
        TANDEM_KEYS=KEY,
        TANDEM_TASKS="nosuch_module",
        TANDEM_STORE_URL=tmp_path.as_uri(),
        TANDEM_DATABASE_URL=f"sqlite://{tmp_path}/tandem.db",
    )
    lines = [json.loads(line) for line in (done.stdout + done.stderr).splitlines()]
    assert done.returncode == 2
    assert "did you mean TANDEM_TASKS?" in lines[0]["event"]
    assert lines[-1]["level"] == "critical"
    assert lines[-1]["event"].startswith("TANDEM_HOST" if process == "api" else "TANDEM_TASKS")


def told(**given: str) -> list[str]:
    return unknown_names(given.items(), Settings.model_fields)


def test_unknown_names_come_with_the_setting_that_was_meant() -> None:
    assert told(TANDEM_TASK="x") == [
        "TANDEM_TASK is not a setting and is ignored: did you mean TANDEM_TASKS?"
    ]
    assert "TANDEM_KEEP?" in told(TANDEM_KEEEP="7d")[0]
    assert "TANDEM_KEYS?" in told(TANDEM_KEY="x")[0]
    assert "TANDEM_SQL__<NAME>" in told(TANDEM_SQL_SHOP="x")[0]
    assert "tandem settings" in told(TANDEM_COLOUR_OF_THE_SKY="blue")[0]


def test_names_of_others_are_not_reported() -> None:
    names = ("TANDEM_URL", "TANDEM_API_KEY", "TANDEM_TEST_SEED", "TANDEM_SQL__A", "TANDEM_LEASE")
    assert told(**dict.fromkeys((*names, "PATH", "tandem_lease"), "x")) == []
    assert told(**SERVICE) == []


# As `kubectl exec … env` prints them for services named tandem, tandem-metrics and tandem-sql--x.
SERVICE = {
    "TANDEM_SERVICE_HOST": "10.0.0.1",
    "TANDEM_SERVICE_PORT": "8000",
    "TANDEM_SERVICE_PORT_HTTP": "8000",
    "TANDEM_PORT": "tcp://10.0.0.1:8000",
    "TANDEM_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "TANDEM_PORT_8000_TCP_PROTO": "tcp",
    "TANDEM_PORT_8000_TCP_PORT": "8000",
    "TANDEM_PORT_8000_TCP_ADDR": "10.0.0.1",
    "TANDEM_METRICS_PORT": "tcp://10.0.0.2:9090",
    "TANDEM_METRICS_SERVICE_HOST": "10.0.0.2",
    "TANDEM_SQL__X_PORT": "tcp://10.0.0.3:5432",
}


def test_variables_of_kubernetes_services_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_environment(SERVICE) == {}
    for name, value in SERVICE.items():
        monkeypatch.setenv(name, value)
    assert (Settings().port, Settings().metrics_port, Settings().sql) == (8000, 0, {})


def test_secrets_come_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys, database = tmp_path / "keys", tmp_path / "database"
    keys.write_text(f"{KEY}\n{KEY}2\n")
    database.write_text("postgres://a:hunter2@h/d\n")
    monkeypatch.setenv("TANDEM_KEYS_FILE", str(keys))
    monkeypatch.setenv("TANDEM_SQL__SHOP_FILE", str(database))
    settings = Settings()
    assert settings.keys == (KEY, f"{KEY}2")
    assert settings.sql == {"shop": "postgres://a:hunter2@h/d"}
    with pytest.raises(Misconfigured, match=r"TANDEM_KEYS_FILE: TANDEM_KEYS is set as well"):
        read_environment({"TANDEM_KEYS_FILE": str(keys), "TANDEM_KEYS": KEY})
