"""`file.archive` and `file.extract`, against system programs and malicious archives."""

import asyncio
import gzip
import hashlib
import io
import os
import random
import shutil
import stat
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import psutil
import pytest

from tandem_worker.archives.compression import zstd
from tandem_worker.archives.names import entry_names
from tandem_worker.errors import TaskError
from tandem_worker.jobs.files import FileRef
from tandem_worker.task import task_of
from tandem_worker.tasks.file.archive import archive, extract
from tests.conftest import eventually
from tests.worker.bench import Bench, open_bench

MIB = 1 << 20
OCTETS = "application/octet-stream"
TEXT = "".join(f"row {number},{number * 7}\n" for number in range(50_000)).encode()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        yield bench


def run(program: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """The output of a system program; skips the test if it is missing."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not here")
    return subprocess.run(
        [path, *arguments], check=True, cwd=cwd, capture_output=True, text=True
    ).stdout


def pool() -> list[psutil.Process]:
    """The processes of the pool; this process has other children, too: servers of other tests."""
    return [
        child
        for child in psutil.Process().children()
        if "tandem_worker.executors.child" in child.cmdline()
    ]


async def fetched(bench: Bench, ref: dict[str, Any], stamp: int = 0) -> bytes:
    """The bytes of a file that a job of `Bench.run` produced."""
    job, _, name = ref["file"].partition("/")
    data = await bench.resources.files.load(f"jobs/{job}/{stamp}/{name}", 1 << 30)
    assert hashlib.sha256(data).hexdigest() == ref["sha256"]
    return data


async def unpacked(bench: Bench, data: bytes, **options: Any) -> dict[str, bytes]:
    source = await bench.upload("an archive", data, OCTETS)
    result = await bench.run(extract, {"source": {"file": source}, **options})
    return {ref["name"]: await fetched(bench, ref) for ref in result["files"]}


@pytest.mark.parametrize("format", ["zip", "tar", "tar.gz", "tar.zst"])
async def test_system_programs_open_our_archives(bench: Bench, tmp_path: Path, format: str) -> None:
    wanted = {
        "rows.csv": TEXT,
        "rows-2.csv": b"",
        "Straße.bin": random.Random(3).randbytes(MIB + 1),
    }
    given = [
        await bench.upload("rows.csv" if name == "rows-2.csv" else name, data, OCTETS)
        for name, data in wanted.items()
    ]
    payload = {"sources": [{"file": id} for id in given], "format": format}
    result = await bench.run(archive, payload)
    assert (result["entries"], result["file"]["name"]) == (3, f"archive.{format}")
    assert bench.recorder.progressed[0] == {
        "current": 0,
        "total": len(TEXT) + MIB + 1,
        "message": None,
    }
    assert bench.recorder.progressed[-1]["current"] == len(TEXT) + MIB + 1
    data = await fetched(bench, result["file"])
    path = tmp_path / f"archive.{format}"
    path.write_bytes(data)
    out = tmp_path / "out"
    out.mkdir()
    if format == "zip":
        run("unzip", "-q", path, "-d", out)
        listing = run("zipinfo", "-1", path)
    else:
        if format == "tar.zst":
            run("zstd", "--version")
        run("tar", "-C", out, "-xf", path)
        listing = run("tar", "--quoting-style=literal", "-tf", path)
    assert listing.splitlines() == list(wanted)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == wanted
    assert await unpacked(bench, data) == wanted
    again = await bench.run(archive, payload, id="again")
    assert again["file"]["sha256"] == result["file"]["sha256"]


@pytest.mark.parametrize("how", ["tar", "tar z", "tar zstd", "zip", "zip -0"])
async def test_archives_of_system_programs_are_unpacked(
    bench: Bench, tmp_path: Path, how: str
) -> None:
    wanted = {
        "a/b/rows.csv": TEXT,
        "a/empty": b"",
        "x" * 150: b"long",
        "ü.txt": b"u",
        "z.bin": os.urandom(3 * MIB),
    }
    root = tmp_path / "in"
    for name, data in wanted.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "none").mkdir()
    path = tmp_path / "made"
    if how == "tar zstd":
        run("zstd", "--version")
    if how == "tar z":
        run("tar", "-C", root, "-czf", path, "a", "none", "x" * 150, "ü.txt", "z.bin")
    elif how.startswith("tar"):
        run(
            "tar",
            "-C",
            root,
            "--format=pax",
            *(["--zstd"] if how == "tar zstd" else []),
            "-cf",
            path,
            ".",
        )
    else:
        run("zip", "-qr0" if how == "zip -0" else "-qr", f"{path}.zip", ".", cwd=root)
    data = Path(f"{path}.zip" if how.startswith("zip") else path).read_bytes()
    assert await unpacked(bench, data) == wanted
    assert bench.recorder.progressed


def test_names_in_an_archive_are_unique() -> None:
    def names(*given: str | None) -> list[str]:
        return entry_names([FileRef(file="J/fall", name=name) for name in given])

    assert names("a.csv", "a.csv", "a-2.csv", "a.csv") == [
        "a.csv",
        "a-2.csv",
        "a-2-2.csv",
        "a-3.csv",
    ]
    assert names("d/a", "d", "d/a/b", "a") == ["d/a", "d-2", "b", "a"]
    assert names("/etc/passwd", "../../x.y", "C:\\a\\b.txt", None, "..") == [
        "passwd",
        "x.y",
        "b.txt",
        "fall",
        "file",
    ]
    assert names(".env", ".env", "v1.2/x", "v1.2/x") == [".env", ".env-2", "v1.2/x", "v1.2/x-2"]


# malicious archives.


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], **options: Any) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, **options) as made:
        for entry, content in entries:
            made.writestr(entry, content)
    return data.getvalue()


def tarred(*entries: tarfile.TarInfo | str, content: bytes = b"x") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as made:
        for entry in entries:
            info = tarfile.TarInfo(entry) if isinstance(entry, str) else entry
            info.size = len(content) if info.isreg() else 0
            made.addfile(info, io.BytesIO(content))
    return data.getvalue()


def special(name: str, type: bytes, target: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, target
    return tarred(info)


def zip_link() -> bytes:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped((info, b"/etc/passwd"))


def altered(data: bytes, *changes: tuple[bytes, int, bytes]) -> bytes:
    """The data with other bytes at `offset` after the last `mark`."""
    made = bytearray(data)
    for mark, offset, new in changes:
        at = made.rindex(mark) + offset
        made[at : at + len(new)] = new
    return bytes(made)


CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


def overlapping() -> bytes:
    """A zip whose list has two entries for the same bytes."""
    return altered(zipped(("a", b"x" * 100), ("b", b"y" * 100)), (CENTRAL, 42, bytes(4)))


def pax(records: bytes) -> bytes:
    """A tar whose only file has an extended header with valid checksums."""
    info = tarfile.TarInfo("x")
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    padding = bytes(-len(records) % 512)
    return (
        header.tobuf(tarfile.USTAR_FORMAT)
        + records
        + padding
        + info.tobuf(tarfile.USTAR_FORMAT)
        + bytes(1024)
    )


def in_gzip(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)


BIG = bytes(64 * MIB)
DEEP = "d/" * 32 + "x"

UNSAFE: dict[str, Callable[[], bytes]] = {
    "zip: parent path": lambda: zipped(("../x", b"")),
    "zip: parent path within": lambda: zipped(("a/../../x", b"")),
    "zip: absolute path": lambda: zipped(("/etc/cron.d/x", b"")),
    "zip: drive": lambda: zipped(("C:/x", b"")),
    "zip: drive-relative": lambda: zipped(("C:x", b"")),
    "zip: backslashes": lambda: zipped(("..\\..\\x", b"")),
    "zip: NUL in a name": lambda: altered(
        zipped(("abc", b"")), (LOCAL, 31, b"\0"), (CENTRAL, 47, b"\0")
    ),
    "zip: empty part": lambda: zipped(("a//x", b"")),
    "zip: parent directory": lambda: zipped(("../d/", b"")),
    "zip: link": zip_link,
    "zip: twice": lambda: zipped(("a", b"1"), ("./a", b"2")),
    "zip: file and directory": lambda: zipped(("a", b"1"), ("a/b", b"2")),
    "zip: directory and file": lambda: zipped(("a/b", b"1"), ("a", b"2")),
    "zip: shared bytes": overlapping,
    "zip: too deep": lambda: zipped((DEEP, b"")),
    "zip: part too long": lambda: zipped(("x" * 300, b"")),
    "tar: parent path": lambda: tarred("../x"),
    "tar: parent path within": lambda: tarred("a/../../x"),
    "tar: absolute path": lambda: tarred("/etc/cron.d/x"),
    "tar: drive": lambda: tarred("c:/x"),
    "tar: control character": lambda: tarred("a\nb"),
    "tar: symbolic link": lambda: special("l", tarfile.SYMTYPE, "/etc/passwd"),
    "tar: symbolic link inside": lambda: special("l", tarfile.SYMTYPE, "x"),
    "tar: hard link": lambda: special("l", tarfile.LNKTYPE, "/etc/passwd"),
    "tar: character device": lambda: special("d", tarfile.CHRTYPE),
    "tar: block device": lambda: special("d", tarfile.BLKTYPE),
    "tar: fifo": lambda: special("d", tarfile.FIFOTYPE),
    "tar: twice": lambda: tarred("a", "a"),
    "tar: file and directory": lambda: tarred("a", "a/b"),
    "tar: in gzip": lambda: in_gzip(tarred("ok", "../x")),
    "tar: path in an extension": lambda: pax(b"16 path=../../x\n"),
    "tar: too deep": lambda: tarred(DEEP),
    "tar: negative size": lambda: pax(b"20 size=-1000000000\n"),
}
TOO_LARGE: dict[str, Callable[[], bytes]] = {
    "zip: bomb": lambda: zipped(("zeros", BIG)),
    "zip: bomb of many": lambda: zipped(*((f"{number}", BIG[: 4 * MIB]) for number in range(16))),
    "zip: entries": lambda: zipped(*((f"{number}", b"") for number in range(101))),
    "zip: list with a false length": lambda: altered(
        zipped(("a", b"x"), allowZip64=True) + bytes(9 * MIB) + zipped(("a", b"x"))[-22:],
        (END, 12, struct.pack("<I", 9 * MIB)),
    ),
    "tar: bytes": lambda: tarred("a", content=bytes(33 * MIB)),
    "tar: entries": lambda: tarred(*(f"{number}" for number in range(101)), content=b""),
    "tar: bomb in gzip": lambda: in_gzip(tarred("zeros", content=BIG[: 24 * MIB])),
    "tar: bomb in zstd": lambda: zstd.compress(tarred("zeros", content=BIG[: 24 * MIB])),
    "tar: header as bomb": lambda: in_gzip(
        pax(b"15728640 comment=" + bytes(15 * MIB - 18) + b"\n")
    ),
    "tar: bomb behind the end": lambda: in_gzip(tarred("a") + BIG),
}
INVALID: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "text": lambda: TEXT,
    "noise": lambda: random.Random(4).randbytes(10_000),
    "zip: encrypted": lambda: altered(zipped(("a", b"x")), (LOCAL, 6, b"\1"), (CENTRAL, 8, b"\1")),
    "zip: bzip2": lambda: altered(zipped(("a", b"x")), (LOCAL, 8, b"\x0c"), (CENTRAL, 10, b"\x0c")),
    "zip: declares too few bytes": lambda: altered(
        zipped(("a", b"x" * 99)), (CENTRAL, 24, struct.pack("<I", 9))
    ),
    "zip: declares too many bytes": lambda: altered(
        zipped(("a", b"x" * 99)), (CENTRAL, 24, struct.pack("<I", 999))
    ),
    "zip: checksum": lambda: altered(zipped(("a", b"x" * 99)), (CENTRAL, 16, b"\1\2\3\4")),
    "zip: damaged": lambda: altered(zipped(("a", TEXT)), (LOCAL, 500, os.urandom(500))),
    "zip: cut": lambda: zipped(("a", TEXT))[:-30],
    "zip: two names": lambda: altered(zipped(("a", b"x")), (LOCAL, 30, b"b")),
    "tar: cut": lambda: tarred("a", content=TEXT)[:5000],
    "tar: header damaged": lambda: altered(tarred("a"), (b"ustar", -100, b"9")),
    "gzip: cut": lambda: in_gzip(tarred("a", content=TEXT))[:-20],
    "gzip: checksum": lambda: altered(
        in_gzip(tarred("a")), (in_gzip(tarred("a"))[-8:], 0, b"\1\2\3\4")
    ),
    "zstd: cut": lambda: zstd.compress(tarred("a", content=TEXT))[:-20],
    "zstd: damaged": lambda: zstd.compress(tarred("a", content=TEXT))[:100] + os.urandom(500),
    "gzip: of text": lambda: in_gzip(TEXT),
}


async def test_malicious_archives_fail_permanently(bench: Bench) -> None:
    wanted: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for type, table in (
        ("unsafe_archive", UNSAFE),
        ("too_large", TOO_LARGE),
        ("invalid_archive", INVALID),
    ):
        for name, make in table.items():
            wanted[name] = (type, False)
            source = await bench.upload("x", make(), OCTETS)
            payload = {"source": {"file": source}, "max_entries": 100, "max_bytes": 32 * MIB}
            try:
                found[name] = await bench.run(extract, payload, id=f"J{len(found)}")
            except TaskError as error:
                found[name] = (error.type, error.retryable)
    assert found == wanted


async def test_a_bomb_is_refused_in_bounded_memory(bench: Bench) -> None:
    # 2 GiB of zeros in 64 KiB: as a single header of a tar, and as a single file.
    zeros = zstd.ZstdCompressor()
    bomb = b"".join(zeros.compress(bytes(16 * MIB)) for _ in range(128)) + zeros.flush()
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2 << 30
    file = tarfile.TarInfo("x")
    file.size = 2 << 30
    for info in (header, file):
        source = await bench.upload(
            "x", zstd.compress(info.tobuf(tarfile.GNU_FORMAT)) + bomb, OCTETS
        )
        with pytest.raises(TaskError) as error:
            await bench.run(extract, {"source": {"file": source}, "max_bytes": 4 << 30})
        assert (error.value.type, error.value.retryable) == ("too_large", False)
    (child,) = pool()
    assert child.memory_info().rss < 200 * MIB


async def test_a_cancelled_extract_stops_at_once(bench: Bench) -> None:
    data = tarred(*(f"{number}" for number in range(2000)))
    source = await bench.upload("x", data, OCTETS)
    running = asyncio.create_task(bench.run(extract, {"source": {"file": source}}))
    await eventually(lambda: len(bench.recorder.progressed) > 0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: not pool())


def test_limits_are_in_the_schema() -> None:
    source = {"source": {"file": "x"}}
    task = task_of(extract)
    for good in (source, {**source, "max_entries": 10_000, "max_bytes": 1 << 40}):
        assert jsonschema_rs.is_valid(task.entry.payload_schema, good)
        task.decode(msgspec.json.encode(good))
    for bad in ({"max_entries": 0}, {"max_entries": 10_001}, {"max_bytes": 0}, {"depth": 1}):
        assert not jsonschema_rs.is_valid(task.entry.payload_schema, source | bad)
    schema = task_of(archive).entry.payload_schema
    for wrong in ({"sources": [], "format": "zip"}, {"sources": [{"file": "x"}], "format": "rar"}):
        assert not jsonschema_rs.is_valid(schema, wrong)
