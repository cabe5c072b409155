"""`file.convert`."""

from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import TypedDict

from tandem_worker.archives.compression import Compression
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.tables.source import check_encoding, recognise
from tandem_worker.tables.table import Format
from tandem_worker.task import task
from tandem_worker.tasks.file.payloads import EXAMPLE


class ConvertPayload(BaseModel):
    """What to convert. What is not said of the source (`from`, `delimiter`, `encoding`), its name and start tell."""

    model_config = ConfigDict(extra="forbid")

    source: FileRef
    from_: Format | None = Field(default=None, alias="from", description="the source's format")
    to: Format
    compression: Compression | None = Field(
        default=None, description="of the result; inside of the file for Parquet"
    )
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, pattern=r'^[^"\r\n\x00]$', description="of CSV"
    )
    encoding: str | None = Field(
        default=None, min_length=1, max_length=40, description="of CSV and JSON: latin-1, …"
    )

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return None if name is None else check_encoding(name)


class Converted(TypedDict):
    """The file, called as the source is, with the ending of its format, and the number of its rows."""

    file: FileRef
    row_count: int


@task("file.convert", timeout="10m", cpu=True, example={"source": EXAMPLE, "to": "parquet"})
def convert(job: SyncJob, payload: ConvertPayload) -> Converted:
    """Convert a table between CSV, NDJSON, a JSON array and Parquet. A source in gzip or Zstandard is inflated.

    CSV has a header, and is written in UTF-8 with commas. Its columns become integers, numbers or
    booleans where every field of the whole file is one, with nulls for empty fields, and text
    otherwise; numbers that would not keep their digits (007) stay text. In CSV and Parquet, objects
    and arrays are JSON text. JSON to JSON leaves values as they are. What is not what it is said to
    be fails as `invalid_file`.
    """
    from tandem_worker.tables import convert  # noqa: PLC0415 - Arrow is large, and only this task needs it

    source = job.files.stat(payload.source)
    total = source.size or 0
    twice = False

    def progress(done: int) -> None:
        job.progress(done / 2 if twice else done, total)

    job.progress(0, total)
    found = recognise(
        job.files,
        source,
        payload.from_,
        delimiter=payload.delimiter,
        encoding=payload.encoding,
        progress=progress,
    )
    twice = convert.passes(found.format, payload.to) == 2
    made = convert.convert(job.files, found, payload.to, payload.compression)
    job.progress(total, total)
    return {"file": made.file, "row_count": made.row_count}
