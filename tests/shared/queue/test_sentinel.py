"""Sentinel URLs."""

import pytest

from tandem_shared.errors import Misconfigured
from tandem_shared.redis_url import parse_sentinel_url
from tandem_shared.settings import load_settings, mask_url


def test_a_url_names_sentinels_master_and_database() -> None:
    found = parse_sentinel_url(
        "redis+sentinel://me:s%40fe@one:26380,[::1]:26381,two/main/3?sentinel_password=x%26y"
    )
    assert found is not None
    assert found.sentinels == [("one", 26380), ("::1", 26381), ("two", 26379)]
    assert (found.master, found.db) == ("main", 3)
    assert found.credentials == {"username": "me", "password": "s@fe"}
    assert found.sentinel_options == {"password": "x&y"}


def test_a_password_alone_and_no_credentials() -> None:
    for url, credentials in (
        ("redis+sentinel://:pw@h/m", {"password": "pw"}),
        ("redis+sentinel://h/m", {}),
    ):
        found = parse_sentinel_url(url)
        assert found is not None
        assert found.credentials == credentials


def test_other_schemes_are_not_sentinel_urls() -> None:
    assert parse_sentinel_url("redis://localhost:6379/0") is None


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel:///main",
        "redis+sentinel://one:26379",
        "redis+sentinel://one:26379/main/x",
        "redis+sentinel://one:port/main",
        "redis+sentinel://one:0/main",
        "redis+sentinel://one/main?socket_timeout=5",
    ],
)  # fmt: skip
def test_an_invalid_url_stops_the_start_and_shows_no_secret(url: str) -> None:
    with pytest.raises(Misconfigured, match="TANDEM_REDIS_URL") as caught:
        load_settings(redis_url=url.replace("://", "://:hidden@", 1))
    assert "hidden" not in str(caught.value)


def test_secrets_of_a_sentinel_url_are_masked() -> None:
    shown = mask_url("redis+sentinel://me:hidden@one,two/main?sentinel_password=secret")
    assert "hidden" not in shown
    assert "secret" not in shown
