"""Settings: what counts as set, how invalid values are reported, and which are masked."""

import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from tandem_shared.errors import Misconfigured
from tandem_shared.settings import (
    Settings,
    is_loopback,
    load_settings,
    mask_url,
    masked_settings,
    require_keys,
)

KEY = "tk_abcd_0123456789abcdefSECRET"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("TANDEM_"):
            monkeypatch.delenv(name)


def test_settings_load_no_redis_client() -> None:
    program = "import sys, tandem_shared.settings; print('redis' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"


def test_defaults_need_no_environment() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.concurrency, settings.lease, settings.drain) == (
        "127.0.0.1",
        8000,
        100,
        10.0,
        30.0,
    )
    assert settings.queues == ("default",)
    assert settings.http_allow == ()
    assert not settings.model_fields_set


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_TASKS", "one, two.three ,")
    monkeypatch.setenv("TANDEM_QUEUES", "default,mail")
    monkeypatch.setenv("TANDEM_HTTP_ALLOW", "10.0.0.0/8,::1,internal.example,192.168.1.1")
    settings = load_settings()
    assert settings.tasks == ("one", "two.three")
    assert settings.queues == ("default", "mail")
    assert settings.http_allow == ("10.0.0.0/8", "::1", "internal.example", "192.168.1.1")


def test_an_empty_list_counts_as_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_HTTP_ALLOW", "")
    settings = load_settings()
    assert settings.http_allow == ()
    assert "http_allow" in settings.model_fields_set


def test_connections_are_named_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_SQL__ANALYTICS", "postgres://a:b@h/d")
    monkeypatch.setenv("TANDEM_SQL__TWO__PARTS", "sqlite:///x.db")
    monkeypatch.setenv("TANDEM_MONGO__MAIN", "mongodb://h/d")
    settings = load_settings()
    assert settings.sql == {"analytics": "postgres://a:b@h/d", "two__parts": "sqlite:///x.db"}
    assert settings.mongo == {"main": "mongodb://h/d"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5.0), ("2.5", 2.5), ("250ms", 0.25), ("5m", 300.0), ("0", 0.0), ("0s", 0.0)],
)
def test_durations_are_seconds_or_have_a_unit(
    monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv("TANDEM_DRAIN", text)
    assert load_settings().drain == seconds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TANDEM_PORT", "x"),
        ("TANDEM_PORT", "65536"),
        ("TANDEM_PORT", ""),
        ("TANDEM_CONCURRENCY", "0"),
        ("TANDEM_LEASE", "10 parsecs"),
        ("TANDEM_LEASE", "-5"),
        ("TANDEM_LEASE", "nan"),
        ("TANDEM_DRAIN", "2h"),
        ("TANDEM_QUEUES", ""),
        ("TANDEM_QUEUES", "a b"),
        ("TANDEM_HTTP_ALLOW", "10.0.0.0/33"),
        ("TANDEM_HTTP_ALLOW", "not a host"),
        ("TANDEM_REDIS_URL", "http://localhost"),
        ("TANDEM_STORE_URL", "/tmp/files"),
        ("TANDEM_KEYS", "hunter2"),
        ("TANDEM_LOG", "xml"),
    ],
)
def test_an_invalid_value_is_rejected_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


def test_all_invalid_values_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_PORT", "x")
    monkeypatch.setenv("TANDEM_LEASE", "y")
    with pytest.raises(Misconfigured) as caught:
        load_settings()
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "TANDEM_LEASE",
        "TANDEM_PORT",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "TANDEM_LEASE",
            "5 parsecs",
            "'5 parsecs' is not a duration; use a number of seconds, or 250ms, 30s, 5m, 2h, 7d",
        ),
        ("TANDEM_DRAIN", "2h", "must be at most 3600 seconds"),
        ("TANDEM_PORT", "x", "must be a whole number"),
        ("TANDEM_PORT", "65536", "must be at most 65535"),
        ("TANDEM_QUEUES", "", "must name at least 1"),
        ("TANDEM_LOG", "xml", "must be 'console' or 'json'"),
        (
            "TANDEM_SMTP_URL",
            "mail.example",
            "not a supported URL; use smtp://user:password@host:587 or smtps://…",
        ),
    ],
)
def test_messages_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured) as caught:
        load_settings()
    assert str(caught.value) == f"{name}: {message}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TANDEM_KEYS", "tk_ab_hunter2hunter2"),
        ("TANDEM_REDIS_URL", "http://u:hunter2@h"),
        ("TANDEM_PORT", "hunter2"),
    ],
)
def test_no_error_repeats_a_possible_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_PORT", "1000")
    assert load_settings(port=2000).port == 2000


def test_settings_are_frozen() -> None:
    settings: Any = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_only_loopback_addresses_need_no_key(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    require_keys(load_settings(host=host, keys=(KEY,)))
    if loopback:
        require_keys(load_settings(host=host))
    else:
        with pytest.raises(Misconfigured, match="TANDEM_KEYS"):
            require_keys(load_settings(host=host))


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://:hunter2@h:6379/0", "redis://:***@h:6379/0"),
        (
            "postgres://u:hunter2@h/d?sslmode=require&password=hunter2",
            "postgres://u:***@h/d?sslmode=***&password=***",
        ),
        ("postgres://u:hun@ter2@h/d", "postgres://u:***@h/d"),
        ("postgres://u:hun#t?er/2@h/d?a=b", "postgres://u:***@h/d?a=***"),
        ("sqlite:///data/x.db", "sqlite:///data/x.db"),
        ("unix:///run/redis.sock?db=0", "unix:///run/redis.sock?db=***"),
    ],
)
def test_urls_are_masked(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def test_masked_settings_show_no_secret() -> None:
    settings = load_settings(
        redis_url="redis://:hunter2@h",
        database_url="postgres://u:hunter2@h/d",
        store_url="s3://bucket?secret_access_key=hunter2",
        sql={"a": "postgres://u:hunter2@h/d"},
        mongo={"b": "mongodb://u:hunter2@h/d"},
        keys=(KEY, "tk_efgh_hunter2hunter2hunter2"),
    )
    lines = masked_settings(settings)
    assert "hunter2" not in str(lines)
    assert "SECRET" not in str(lines)
    assert lines["TANDEM_KEYS"] == "tk_abcd_***,tk_efgh_***"
    assert {f"TANDEM_{name.upper()}" for name in Settings.model_fields} - lines.keys() == {
        "TANDEM_SQL",
        "TANDEM_MONGO",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TANDEM_DATABASE_URL", "zzz"),
        ("TANDEM_SQL__ANALYTICS", "nope"),
        ("TANDEM_SQL__ANALYTICS", "mysql://host/name"),
        ("TANDEM_MONGO__EVENTS", "x"),
        ("TANDEM_MONGO__EVENTS", "postgres://host/name"),
    ],
)
def test_an_unsupported_url_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured, match=f"^{name}: not a supported URL; use "):
        load_settings()
