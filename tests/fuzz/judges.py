"""What other tools make of a success: each judge returns what is different, or None."""

import asyncio
import csv
import hashlib
import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Awaitable, Callable
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import duckdb

from tests.faithful.http_servers import CURL, curl
from tests.fuzz.material import Material, zstd

COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # how gzip and Zstandard start


class Success:
    """A job that succeeded: what it was given, its result, and the files that it wrote."""

    def __init__(
        self, payload: Any, result: Any, files: dict[str, bytes], mails: list[bytes]
    ) -> None:
        self.payload, self.result, self.files, self.mails = payload, result, files, mails

    def file(self) -> bytes:
        return self.files[self.result["file"]["file"]]


def hashed(success: Success) -> str | None:
    data = success.payload["source"].data
    wrong = [
        name
        for name in success.payload.get("algorithms", ["sha256"])
        if success.result[name] != hashlib.new(name, data).hexdigest()
    ]
    return f"{wrong} differ from hashlib's" if wrong else None


def joined(success: Success) -> str | None:
    if success.payload.get("header"):
        return None
    expected = b"".join(source.data for source in success.payload["sources"])
    return None if success.file() == expected else "the joined file is not the sources' bytes"


def split(success: Success) -> str | None:
    data = success.payload["source"].data
    if success.payload.get("header") or data.startswith(COMPRESSED):
        return None
    parts = b"".join(success.files[ref["file"]] for ref in success.result["files"])
    return None if parts == data else "the parts are not the source"


def archived(success: Success) -> str | None:
    data, format_ = success.file(), success.payload["format"]
    expected = sorted(source.data for source in success.payload["sources"])
    found = sorted(unpacked(data, format_).values())
    return None if found == expected else "unpacking gives other files"


def unpacked(data: bytes, format_: str) -> dict[str, bytes]:
    """The files in an archive, as zipfile or tarfile read them."""
    if format_ == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {
                entry.filename: archive.read(entry)
                for entry in archive.infolist()
                if not entry.is_dir()
            }
    if format_ == "tar.zst":
        data = zstd.decompress(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = ((entry.name, archive.extractfile(entry)) for entry in archive if entry.isreg())
        return {name: file.read() for name, file in files if file is not None}


def extracted(success: Success) -> str | None:
    source: Material = success.payload["source"]
    if not source.whole or source.data.startswith(COMPRESSED):
        return None
    expected = unpacked(source.data, "zip" if source.data.startswith(b"PK") else "tar")
    found = {ref["name"]: success.files[ref["file"]] for ref in success.result["files"]}
    same = sorted(found.values()) == sorted(expected.values())
    return None if same else f"{sorted(found)} instead of {sorted(expected)}"


def converted(success: Success) -> str | None:
    """Rows of a whole CSV or JSON file, counted and compared as texts by duckdb and Python."""
    source: Material = success.payload["source"]
    if not source.whole or success.payload.keys() & {"from", "delimiter", "encoding"}:
        return None
    if success.payload.get("compression"):
        return None
    try:
        expected = _cells(source.name, source.data)
    except (ValueError, csv.Error):
        return None
    if not expected:
        return None  # duckdb reads no Parquet file without columns
    found = _read(success.payload["to"], success.file())
    if len(found) != success.result["row_count"]:
        return f"{len(found)} rows, but row_count is {success.result['row_count']}"
    return None if _same(expected, found) else f"{found[:3]} instead of {expected[:3]}"


def _cells(name: str, data: bytes) -> list[list[Any]] | None:
    if name.endswith(".ndjson"):
        rows = [json.loads(line) for line in data.decode().split("\n") if line.strip()]
    elif name.endswith(".json"):
        rows = json.loads(data)
    else:
        return None
    if not all(isinstance(row, dict) for row in rows):
        return None
    names = list(dict.fromkeys(key for row in rows for key in row))
    return [[row.get(key) for key in names] for row in rows]


def _read(format_: str, data: bytes) -> list[list[Any]]:
    if format_ == "csv":
        return [list(row) for row in csv.reader(io.StringIO(data.decode("utf-8"), newline=""))][1:]
    if format_ == "parquet":
        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            Path(file.name).write_bytes(data)
            return [list(row) for row in duckdb.execute(f"FROM '{file.name}'").fetchall()]
    return _cells(f".{format_}", data) or []


def _same(expected: list[list[Any]], found: list[list[Any]]) -> bool:
    return [[_plain(cell) for cell in row] for row in expected] == [
        [_plain(cell) for cell in row] for row in found
    ]


def _plain(cell: Any) -> str:
    """The cell as text in a form that all formats share."""
    if cell is None or cell == "":
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int | float):
        return repr(float(cell)) if abs(cell) < 2**53 else str(cell)
    if not isinstance(cell, str):
        return json.dumps(cell, sort_keys=True)
    try:
        return _plain(json.loads(cell)) if cell[0] in "[{-0123456789tf" else cell
    except ValueError:
        return cell


async def requested(success: Success) -> str | None:
    """What curl reads from the same URL, if it reads anything."""
    payload = success.payload
    if CURL is None or payload.keys() & {"json", "body", "params", "headers"}:
        return None
    if payload.get("method", "GET") not in ("GET", "OPTIONS"):
        return None
    code, body = await curl(
        "-g", "-L", "--path-as-is", "--compressed", "-m", "5", "-X", payload.get("method", "GET"),
        payload["url"],
    )  # fmt: skip
    ours = success.result
    text = ours.get("text", json.dumps(ours["json"]) if "json" in ours else None)
    if code != 0 or text is None or not body.isascii():
        return None
    try:
        same = json.loads(body) == ours["json"] if "json" in ours else body.decode() == text
    except ValueError:
        same = False
    return None if same else f"curl reads {body[:100]!r}, not {text[:100]!r}"


def mailed(success: Success) -> str | None:
    for data in success.mails:
        mail = message_from_bytes(data, policy=policy.default)
        if str(mail["Subject"]) != success.payload["subject"]:
            return f"the subject is {mail['Subject']!r}"
        if mail["Bcc"] is not None or mail.defects:
            return f"a Bcc, or {mail.defects}"
    return None


Judge = Callable[[Success], str | Awaitable[str | None] | None]
JUDGES: dict[str, Judge] = {
    "file.hash": hashed,
    "file.concat": joined,
    "file.split": split,
    "file.archive": archived,
    "file.extract": extracted,
    "file.convert": converted,
    "http.request": requested,
    "email.send": mailed,
}


async def difference(task: str, success: Success) -> str | None:
    """What another tool calls different about a success; None if it agrees or none can judge."""
    judge = JUDGES.get(task)
    verdict = None if judge is None else judge(success)
    return await verdict if asyncio.iscoroutine(verdict) else verdict  # type: ignore[return-value] # some judges are async
