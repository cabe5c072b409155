"""Zip entries made byte for byte; the names and contents are those that Info-ZIP's unzip gives."""

import os
import stat
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tandem_worker.errors import TaskError
from tests.worker.archives.test_archives import run, unpacked
from tests.worker.bench import Bench, open_bench

FAT, UNIX = 0, 3
UTF8 = 0x800
FOLDER = (stat.S_IFDIR | 0o755) << 16 | 0x10
NAME = "日本.txt".encode()


class Entry(NamedTuple):
    name: bytes
    data: bytes = b"x"
    extra: bytes = b""
    system: int = UNIX
    flags: int = 0
    attributes: int = 0


def zip_of(*entries: Entry) -> bytes:
    files = directory = b""
    for one in entries:
        sizes = (zlib.crc32(one.data), len(one.data), len(one.data))
        names = (len(one.name), len(one.extra))
        at = len(files)
        shared = (20, one.flags, 0, 0, 0x21, *sizes, *names)
        files += struct.pack("<4s5H3L2H", b"PK\3\4", *shared) + one.name + one.extra + one.data
        directory += struct.pack(
            "<4s2B5H3L5H2L", b"PK\1\2", 20, one.system, *shared, 0, 0, 0, one.attributes, at
        )
        directory += one.name + one.extra
    count = len(entries)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(files), 0)
    return files + directory + end


def unicode_path(name: bytes, path: bytes, crc: int | None = None, version: int = 1) -> bytes:
    crc = zlib.crc32(name) if crc is None else crc
    return struct.pack("<HHBL", 0x7075, 5 + len(path), version, crc) + path


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as opened:
        yield opened


LIKE_UNZIP = {
    "a Unicode path": [Entry(b"??.txt", extra=unicode_path(b"??.txt", NAME))],
    "one made on FAT": [Entry(b"??.txt", extra=unicode_path(b"??.txt", NAME), system=FAT)],
    "one behind another field": [
        Entry(b"q", extra=struct.pack("<HHL", 0x9999, 4, 1) + unicode_path(b"q", NAME))
    ],
    "one of another name": [Entry(b"q", extra=unicode_path(b"q", NAME, crc=1))],
    "one of another version": [Entry(b"q", extra=unicode_path(b"q", NAME, version=2))],
    "an empty one": [Entry(b"q", extra=unicode_path(b"q", b""))],
    "one beside the flag": [
        Entry("ü".encode(), extra=unicode_path("ü".encode(), NAME), flags=UTF8)
    ],
    "one of a directory": [
        Entry(b"q/", b"", extra=unicode_path(b"q/", "é/".encode())),
        Entry(b"q/x", b"1", extra=unicode_path(b"q/x", "é/x".encode())),
    ],
    "one with backslashes": [Entry(b"q", extra=unicode_path(b"q", b"a\\b"), system=FAT)],
    "backslashes": [Entry(b"folder\\sub\\file.txt", system=FAT)],
    "directories with backslashes": [
        Entry(b"folder\\", b"", system=FAT, attributes=0x10),
        Entry(b"folder\\sub\\", b"", system=FAT),
        Entry(b"folder\\f", system=FAT),
    ],
    "UTF-8 without the flag": [Entry("ü.txt".encode())],
    "a directory's attributes, but bytes": [Entry(b"d", b"abc", attributes=FOLDER)],
}


def names(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("case", LIKE_UNZIP)
async def test_entries_come_out_as_unzip_gives_them(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    data = zip_of(*LIKE_UNZIP[case])
    (tmp_path / "made.zip").write_bytes(data)
    monkeypatch.setitem(os.environ, "LC_ALL", "C.UTF-8")
    # unzip ends with 1 when it warns about backslashes.
    run("sh", "-c", 'unzip -q "$0" -d "$1" || test $? = 1', tmp_path / "made.zip", tmp_path / "out")
    assert await unpacked(bench, data) == names(tmp_path / "out")


REFUSED = {
    "a parent in the Unicode path": Entry(b"q", extra=unicode_path(b"q", b"../evil")),
    "parents with backslashes": Entry(b"..\\..\\evil", system=FAT),
    "a drive with backslashes": Entry(b"C:\\evil", system=FAT),
    "backslashes of Unix": Entry(b"a\\b"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_no_name_leads_out_of_the_job(bench: Bench, case: str) -> None:
    with pytest.raises(TaskError) as caught:
        await unpacked(bench, zip_of(REFUSED[case]))
    assert (caught.value.type, caught.value.retryable) == ("unsafe_archive", False)


@pytest.mark.parametrize("attributes", [FOLDER, stat.S_IFDIR << 16, 0x10])
async def test_a_directory_without_its_slash_is_no_file(bench: Bench, attributes: int) -> None:
    # unzip 6.00 goes by the slash alone: it writes an empty file, and then cannot write `d/x`.
    data = zip_of(Entry(b"d", b"", attributes=attributes), Entry(b"d/x", b"1"))
    assert await unpacked(bench, data) == {"d/x": b"1"}


async def test_a_damaged_unicode_path_is_ignored(bench: Bench) -> None:
    entry = Entry(b"q", extra=unicode_path(b"q", b"\xff\xfe"))
    assert await unpacked(bench, zip_of(entry)) == {"q": b"x"}
