"""What a table's file name says (format, compression, stem), and the names of tables we write."""

import re

from tandem_worker.archives.compression import Compression
from tandem_worker.archives.names import entry_names
from tandem_worker.jobs.files import FileRef
from tandem_worker.tables.table import TableFormat

_COMPRESSION_SUFFIX = re.compile(r"\.(gz|gzip|zst|zstd)$", re.IGNORECASE)
_SUFFIX: dict[Compression | None, str] = {None: "", "gzip": ".gz", "zstd": ".zst"}
_CONTENT_TYPE: dict[TableFormat, str] = {
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
}
# By file name extension, and by the part of a content type after the slash.
_FORMATS: dict[str, TableFormat] = {
    "csv": "csv",
    "tsv": "csv",
    "ndjson": "ndjson",
    "jsonl": "ndjson",
    "x-ndjson": "ndjson",
    "json": "json",
    "parquet": "parquet",
    "vnd.apache.parquet": "parquet",
}


def split_name(source: FileRef) -> tuple[str, str]:
    """The file's name without directories, as stem and extension (with its dot)."""
    name = entry_names([source])[0].rpartition("/")[2]
    stem, dot, extension = name.rpartition(".")
    return (stem, dot + extension) if stem else (name, "")


def uncompressed(source: FileRef) -> FileRef:
    """The reference under the name its content has once it is decompressed."""
    name = _COMPRESSION_SUFFIX.sub("", source.name or "")
    return source.model_copy(update={"name": name or None, "content_type": None})


def format_of(source: FileRef) -> TableFormat | None:
    """The format by the file's name or, failing that, its content type."""
    extension = (uncompressed(source).name or "").rpartition(".")[2].lower()
    subtype = (source.content_type or "").partition(";")[0].strip().lower().rpartition("/")[2]
    return _FORMATS.get(extension) or _FORMATS.get(subtype)


def output_name(stem: str, format: TableFormat, compression: Compression | None) -> tuple[str, str]:
    """Name and content type of a table we write; Parquet is compressed inside the file."""
    outer = None if format == "parquet" else compression
    content_type = _CONTENT_TYPE[format] if outer is None else f"application/{outer}"
    return f"{stem}.{format}{_SUFFIX[outer]}", content_type
