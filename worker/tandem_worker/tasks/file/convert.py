"""`file.convert`."""

from pydantic import Field, field_validator
from typing_extensions import TypedDict

from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.tables.source import detect
from tandem_worker.tables.table import TableFormat
from tandem_worker.tables.text import check_encoding
from tandem_worker.task import task
from tandem_worker.tasks.payload import FILE_EXAMPLE, OutputCompression, Payload


class ConvertPayload(Payload):
    """What to convert. `from`, `delimiter` and `encoding` are detected if they are left out."""

    source: FileRef
    from_: TableFormat | None = Field(
        default=None, alias="from", description="the format of the source"
    )
    to: TableFormat
    compression: OutputCompression = None
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        pattern=r'^[^"\r\n\x00]$',
        description="of a CSV source",
    )
    encoding: str | None = Field(
        default=None,
        min_length=1,
        max_length=40,
        description="of a CSV or JSON source, such as latin-1",
    )

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return None if name is None else check_encoding(name)


class Converted(TypedDict):
    """The file, named like the source with the extension of its format, and its number of rows."""

    file: FileRef
    row_count: int


@task("file.convert", timeout="10m", cpu=True, example={"source": FILE_EXAMPLE, "to": "parquet"})
def convert(job: SyncJob, payload: ConvertPayload) -> Converted:
    """Convert a table between CSV, NDJSON, a JSON array and Parquet.

    The source may be compressed with gzip or Zstandard. CSV has a header and is written as UTF-8
    with commas. A CSV column becomes integers, numbers or booleans if every field in the whole file
    is one (an empty field is a null), and text otherwise; numbers whose digits would change (007)
    stay text. In CSV and Parquet, objects and arrays are JSON text. JSON to JSON leaves values as
    they are. A source that does not have the given or detected format fails as `invalid_file`.
    """
    from tandem_worker.tables import convert  # noqa: PLC0415 - Arrow is large, and only this task needs it

    source = job.files.stat(payload.source)
    total = source.size or 0
    passes = 1

    job.progress(0, total)
    table = detect(
        job.files,
        source,
        payload.from_,
        delimiter=payload.delimiter,
        encoding=payload.encoding,
        progress=lambda bytes_read: job.progress(bytes_read / passes, total),
    )
    passes = convert.passes(table.format, payload.to)
    file, row_count = convert.convert(job.files, table, payload.to, payload.compression)
    job.progress(total, total)
    return {"file": file, "row_count": row_count}
