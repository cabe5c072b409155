"""The base of the built-in tasks' payloads, and fields that several of them share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tandem_worker.archives.compression import Compression

FILE_EXAMPLE = {"file": "01JC8XW3T4Z5PC3V8M2G7QK9RN4HDA"}

ConnectionName = Annotated[
    str, Field(min_length=1, max_length=128, description="a name from the worker's settings")
]
InputCompression = Annotated[
    Compression | None, Field(description="default: detected from the file's first bytes")
]
OutputCompression = Annotated[
    Compression | None, Field(description="of the file; Parquet is compressed inside")
]


class Payload(BaseModel):
    """Refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
