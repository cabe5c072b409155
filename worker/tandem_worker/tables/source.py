"""Stored tables as text: their compression, encoding, format and delimiter told, their rows read one by one.

Errors are Permanent: `invalid_file` for what is not what it is said to be, `too_large` for a row
above MAX_ROW.
"""

import codecs
import csv
import io
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import msgspec
from charset_normalizer import from_bytes

from tandem_worker.archives.compression import Compression, compression_of, inflated
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.sync import SyncFiles
from tandem_worker.tables.json_array import elements
from tandem_worker.tables.table import Format
from tandem_worker.tables.text import MAX_ROW, SAMPLE, as_file, delimiter_of, file_name
from tandem_worker.tables.writers import bare, format_of

INFLATED = 10 << 30  # bytes of a compressed source, inflated: what an upload may have
_NEAR = 0.02  # of charset-normalizer's measure of disorder, which goes from 0 to 1
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
         codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip


@dataclass
class Source:
    """A stored file of rows, which may be read several times. `count` is the bytes inflated so far, in all reads."""

    files: SyncFiles
    ref: FileRef  # as `stat` gives it
    compression: Compression | None
    format: Format
    encoding: str
    delimiter: str
    progress: Callable[
        [int], None
    ]  # told how many bytes of the stored file were read so far, in all reads
    count: int = 0
    read: int = 0

    def open(self) -> io.BufferedReader:
        """The file's bytes, inflated."""
        return as_file(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        size = 0
        for piece in inflated(self._stored(), self.compression):
            size += len(piece)
            self.count += len(piece)
            if self.compression is not None and size > INFLATED:
                raise Permanent("too_large", f"the file inflates to more than {INFLATED} bytes")
            yield piece

    def _stored(self) -> Iterator[bytes]:
        for piece in self.files.open(self.ref):
            self.read += len(piece)
            self.progress(self.read)
            yield piece

    def text(self) -> Iterator[str]:
        """The file's lines, each with its end."""
        text = io.TextIOWrapper(
            self.open(), self.encoding, newline="" if self.format == "csv" else "\n"
        )
        try:
            while line := text.readline(MAX_ROW + 1):
                if len(line) > MAX_ROW:
                    raise _long()
                yield line
        except UnicodeError:
            raise self._wrong_encoding() from None

    def records(self) -> Generator[list[str], None, None]:
        """The fields of its CSV records, the header's first and each with as many.

        Empty lines are left out, but where there is one column.
        """
        csv.field_size_limit(MAX_ROW)
        width = 0
        try:
            for number, fields in enumerate(csv.reader(self.text(), delimiter=self.delimiter)):
                if not fields:
                    # So COPY and our own CSV write a row whose only field is a null.
                    if width == 1:
                        yield [""]
                    continue
                width = width or len(fields)
                if len(fields) != width:
                    raise Permanent(
                        "invalid_file",
                        f"record {number + 1} of its CSV has {len(fields)} fields, the first has {width}",
                    )
                yield fields
        except csv.Error as error:
            raise Permanent("invalid_file", f"its CSV cannot be read: {error}") from None

    def items(self) -> Iterator[tuple[str, object]]:
        """The values of its NDJSON or its JSON array, each as it stands and decoded."""
        try:
            for number, text in enumerate(self._values(), 1):
                try:
                    yield text, msgspec.json.decode(text)
                except (msgspec.DecodeError, UnicodeError) as error:
                    raise Permanent("invalid_file", f"value {number} is no JSON: {error}") from None
        except RecursionError:
            raise Permanent("invalid_file", "its JSON is nested too deeply") from None

    def _values(self) -> Iterator[str]:
        if self.format == "ndjson":
            yield from filter(None, map(str.strip, self.text()))
            return
        text = io.TextIOWrapper(self.open(), self.encoding, newline="\n")
        try:
            yield from elements(text.read)
        except UnicodeError:
            raise self._wrong_encoding() from None

    def _wrong_encoding(self) -> Permanent:
        name = self.encoding.removesuffix("-sig")
        return Permanent("invalid_file", f"not all of it is {name}: give the encoding it has")


def recognise(
    files: SyncFiles,
    ref: FileRef,
    format: Format | None,
    *,
    delimiter: str | None,
    encoding: str | None,
    progress: Callable[[int], None],
) -> Source:
    """The file with all that its first bytes and its name tell of it, where nothing was said."""
    compression = compression_of(as_file(files.open(ref)).peek(4))
    start = as_file(inflated(files.open(ref), compression)).read(SAMPLE)
    if encoding is None:
        encoding = "utf-8" if start.startswith(b"PAR1") else _encoding_of(start)
    text = start.decode(encoding, errors="replace")
    found = format or _format_of(ref, start, text)
    return Source(
        files,
        ref,
        compression,
        found,
        encoding,
        delimiter or (delimiter_of(text) if found == "csv" else ","),
        progress,
    )


def check_encoding(name: str) -> str:
    """The encoding as Python calls it. Raises ValueError for one it does not know, or that is none of text."""
    try:
        found = codecs.lookup(name)
        "".encode(name)
    except (LookupError, UnicodeError):
        raise ValueError(f"{name!r} is no encoding that is known") from None
    return "utf-8-sig" if found.name == "utf-8" else found.name


def plain_name(ref: FileRef) -> tuple[str, str]:
    """What the file is called without a compression's ending: the stem, and the ending with its dot."""
    return file_name(ref.model_copy(update={"name": bare(ref.name or "") or None}))


def _encoding_of(start: bytes) -> str:
    for bom, name in _BOMS.items():
        if start.startswith(bom):
            return name
    try:
        # The last character may be cut.
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        found = from_bytes(start)
        best = found.best()
        # Where western text is about as likely as a rarer kind, it is that; so it is where nothing
        # is likely.
        if best is None or any(
            "cp1252" in one.could_be_from_charset and one.chaos <= best.chaos + _NEAR
            for one in found
        ):
            return "cp1252"
        return best.encoding
    return "utf-8"


def _format_of(ref: FileRef, start: bytes, text: str) -> Format:
    if start.startswith(b"PAR1"):
        return "parquet"
    told = format_of(ref.model_copy(update={"content_type": None}))
    if told is not None:
        return told
    mark = text.lstrip("\ufeff \t\r\n")[:1]
    return "json" if mark == "[" else "ndjson" if mark == "{" else "csv"


def _long() -> Permanent:
    return Permanent("too_large", f"a row has more than {MAX_ROW} characters")
