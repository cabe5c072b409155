"""Resumed downloads and the files they end up in."""

from pathlib import Path

import pytest

from tandem_jobs.client.transfers import DownloadState, PartFile
from tandem_shared.errors import Unavailable

ETAG = {"etag": '"a"'}


def begun() -> DownloadState:
    """Five bytes have arrived."""
    state = DownloadState()
    state.start(200, {**ETAG, "content-length": "10"})
    assert state.add(b"12345") == b"12345"
    return state


@pytest.mark.parametrize(
    ("status", "headers", "data"),
    [
        (206, {**ETAG, "content-range": "bytes 5-9/10"}, b"67890"),
        (206, {**ETAG, "content-range": "bytes 3-9/10"}, b"4567890"),
        (200, ETAG, b"1234567890"),
    ],
)
def test_bytes_that_arrive_again_are_skipped(
    status: int, headers: dict[str, str], data: bytes
) -> None:
    state = begun()
    assert not state.is_complete()
    assert state.range_headers() == {"Range": "bytes=5-", "If-Range": '"a"'}
    state.start(status, headers)
    assert b"".join(state.add(data[place : place + 2]) for place in range(0, 10, 2)) == b"67890"


def test_a_download_starts_without_a_range() -> None:
    assert DownloadState().range_headers() == {}


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (206, {"etag": '"b"', "content-range": "bytes 5-9/10"}),
        (200, {}),
        (206, {**ETAG, "content-range": "bytes 6-9/10"}),
        (206, ETAG),
    ],
    ids=["another etag", "no etag", "a gap", "no range"],
)
def test_another_file_is_not_mixed_in(status: int, headers: dict[str, str]) -> None:
    with pytest.raises(Unavailable):
        begun().start(status, headers)


def test_a_wrong_hash_is_noticed() -> None:
    state = DownloadState()
    state.start(200, {"repr-digest": "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"})
    state.add(b"hello")
    assert state.is_complete()
    state.add(b"!")
    with pytest.raises(Unavailable, match="SHA-256"):
        state.is_complete()


@pytest.mark.parametrize("commit", [True, False])
def test_a_part_file_replaces_the_file_or_leaves_nothing(tmp_path: Path, *, commit: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    part = PartFile(path)
    part.file.write(b"new")
    if commit:
        part.commit()
    part.discard()
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"new" if commit else b"old"]
