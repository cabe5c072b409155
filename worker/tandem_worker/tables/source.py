"""StoredBytes tables for `file.convert`; compression, encoding, format and delimiter are detected.

Errors are Permanent: `invalid_file` for content that does not have the given format or encoding,
`too_large` for a row above MAX_LINE_CHARS or a file above MAX_INFLATED_BYTES.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tandem_worker.archives.compression import Compression, compression_of, inflated
from tandem_worker.encoding import decode_raw
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.sync import SyncFiles
from tandem_worker.tables.json_array import elements
from tandem_worker.tables.names import format_of, uncompressed
from tandem_worker.tables.reader import FileRow, FileTable, csv_table, json_rows
from tandem_worker.tables.table import TableFormat
from tandem_worker.tables.text import (
    SAMPLE_BYTES,
    decoded,
    delimiter_of,
    encoding_of,
    lines,
    peek,
)

MAX_INFLATED_BYTES = 10 << 30  # as large as an upload may be


@dataclass
class TableSource:
    """A stored table that can be read several times."""

    files: SyncFiles
    ref: FileRef  # as `stat` returns it
    compression: Compression | None
    format: TableFormat
    encoding: str
    delimiter: str
    progress: Callable[[int], None]  # receives the stored bytes read so far, in all readings
    _bytes_read: int = 0

    def pieces(self) -> Iterator[bytes]:
        """The file's bytes, inflated."""
        size = 0
        for piece in inflated(self._stored(), self.compression):
            size += len(piece)
            if self.compression is not None and size > MAX_INFLATED_BYTES:
                message = f"the file inflates to more than {MAX_INFLATED_BYTES} bytes"
                raise Permanent("too_large", message)
            yield piece

    def _stored(self) -> Iterator[bytes]:
        for piece in self.files.open(self.ref):
            self._bytes_read += len(piece)
            self.progress(self._bytes_read)
            yield piece

    def table(self) -> FileTable:
        """The CSV table; its fields are text."""
        found = lines(self.pieces(), self.encoding, newline="")
        return csv_table(found, self.delimiter, on_bad="fail")

    def values(self) -> Iterator[FileRow]:
        """The values of NDJSON or of a JSON array."""
        return json_rows(self._texts(), on_bad="fail", unit=self._unit)

    def objects(self) -> Iterator[FileRow]:
        """The objects of NDJSON or of a JSON array; their fractions are Raw, as they stand."""
        return json_rows(
            self._texts(), on_bad="fail", objects=True, unit=self._unit, decode=decode_raw
        )

    @property
    def _unit(self) -> str:
        return "line" if self.format == "ndjson" else "element"

    def _texts(self) -> Iterator[str]:
        if self.format == "ndjson":
            return lines(self.pieces(), self.encoding)
        return elements(decoded(self.pieces(), self.encoding))


def detect(
    files: SyncFiles,
    ref: FileRef,
    format: TableFormat | None,
    *,
    delimiter: str | None,
    encoding: str | None,
    progress: Callable[[int], None],
) -> TableSource:
    """The file with everything that is not given detected from its first bytes and its name."""
    head, pieces = peek(files.open(ref), 4)
    compression = compression_of(head)
    start = peek(inflated(pieces, compression), SAMPLE_BYTES)[0][:SAMPLE_BYTES]
    if encoding is None:
        encoding = "utf-8" if start.startswith(b"PAR1") else encoding_of(start)
    sample = start.decode(encoding, errors="replace")
    found = format or _format_of(ref, start, sample)
    if delimiter is None:
        delimiter = delimiter_of(sample) if found == "csv" else ","
    return TableSource(files, ref, compression, found, encoding, delimiter, progress)


def _format_of(ref: FileRef, start: bytes, sample: str) -> TableFormat:
    if start.startswith(b"PAR1"):
        return "parquet"
    named = format_of(uncompressed(ref))
    if named is not None:
        return named
    mark = sample.lstrip("\ufeff \t\r\n")[:1]
    return "json" if mark == "[" else "ndjson" if mark == "{" else "csv"
