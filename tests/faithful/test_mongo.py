"""BSON values through Extended JSON and back: the bytes that the server returns are the same."""

import math
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bson import (
    Binary,
    Code,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
    decode,
    encode,
)
from bson.codec_options import DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.json_util import CANONICAL_JSON_OPTIONS, loads
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from tandem_worker.connectors.mongo.extended_json import DECODING, Form, to_json
from tandem_worker.errors import Permanent, TaskError
from tandem_worker.tasks.mongo.export import export as mongo_export
from tandem_worker.tasks.mongo.imports import import_file as mongo_import
from tandem_worker.tasks.mongo.imports import read_documents
from tests.worker.bench import Bench, open_bench
from tests.worker.connectors.sql.databases import MONGOS, REAL_MONGO, mongo_database

READING = CANONICAL_JSON_OPTIONS.with_options(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO, tz_aware=True
)
FORMS: tuple[Form, ...] = ("relaxed", "canonical")
OID = ObjectId("65a0c0ffee0000000000abcd")
SAME_IN_BOTH_FORMS: list[Any] = [
    *(-0.0, 0.1, 1.0, 5e-324, 1e20, 2.0**53, 1.7976931348623157e308),
    *(math.nan, math.inf, -math.inf),
    *(0, -(2**31), 2**31 - 1, Int64(2**31), Int64(2**53 + 1), Int64(2**63 - 1), Int64(-(2**63))),
    *map(Decimal128, ("0.10", "-0", "0E-6176", "1E-6176", "NaN", "-Infinity", "1.0E+3")),
    Decimal128("9.999999999999999999999999999999999E+6144"),
    *(datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)),
    *(datetime(2026, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)),
    *map(DatetimeMS, (253402300800000, -62135596800001, 2**63 - 1, -(2**63))),
    *(b"", b"\x00\xff", Binary(b"x" * 16, 3), Binary(b"x" * 16, 4), Binary(b"x" * 16, 5)),
    *(Binary(b"ab", 2), Binary(b"ab", 4), Binary(b"ab", 6), Binary(b"ab", 0x80)),
    *(OID, DBRef("c", OID), DBRef("c", "x", "db", more=[-0.0]), Regex('a/b"', "imx"), Regex("")),
    *(Timestamp(0, 0), Timestamp(2**32 - 1, 2**32 - 1), MinKey(), MaxKey(), None, True, False),
    *(Code("f()"), Code("f()", {"a": -0.0, "b": OID}), "", "a\0b", "\u2028🎉", [], {}),
    [1, [2.0, [-0.0, None]], {"": {"": []}}],
    {"a.b": 1, "a$b": 2, "": 3, "__proto__": {"x": OID}},
]
# Relaxed Extended JSON writes both integer types as the same number.
CANONICAL_ONLY: list[Any] = [Int64(1), [Int64(0), {"a": Int64(-1)}], DBRef("c", Int64(5))]
# A field with the name of a wrapper would come back as a value of that type.
AMBIGUOUS: list[dict[str, Any]] = [
    {"$date": "2026-01-01T00:00:00Z"},
    {"$numberLong": "5"},
    {"$oid": "x"},
    {"a": [{"$minKey": 1}]},
]


@pytest.fixture(params=MONGOS)
def url(request: pytest.FixtureRequest) -> str:
    real = request.param == "real"
    return mongo_database(REAL_MONGO if real else str(request.getfixturevalue("mongo_url")))


@pytest.fixture
async def bench(url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, mongo={"shop": url}) as opened:
        yield opened


@pytest.fixture
def database(url: str) -> Iterator[Any]:
    """The database through pymongo; documents are read as the server's bytes."""
    with MongoClient[Any](url, document_class=RawBSONDocument) as client:
        database = client.get_default_database()
        yield database
        client.drop_database(database)


def _is_stored(collection: Any, document: dict[str, Any]) -> bool:
    """Whether the server keeps the document as it is: that of the tests knows few types."""
    try:
        collection.insert_one(document)
    except PyMongoError:
        return False
    return [encode(document)] == [
        bytes(one.raw) for one in collection.find({"_id": document["_id"]})
    ]


@pytest.mark.parametrize("form", FORMS)
def test_extended_json_has_every_type_as_pymongo_reads_it(form: Form) -> None:
    for value in SAME_IN_BOTH_FORMS + (CANONICAL_ONLY if form == "canonical" else []):
        data = encode({"v": value})
        decoded: Any = decode(data, DECODING)
        line = to_json(decoded, form)
        [row] = read_documents([line], "ndjson", None)
        assert encode(row.document or {}) == data, line
        if form == "canonical":
            assert encode(loads(line, json_options=READING)) == data, line


@pytest.mark.parametrize("document", AMBIGUOUS)
@pytest.mark.parametrize("form", FORMS)
def test_a_field_that_would_become_a_type_is_refused(document: Any, form: Form) -> None:
    with pytest.raises(Permanent, match="means a type") as caught:
        to_json(document, form)
    assert caught.value.type == "invalid_document"


@pytest.mark.parametrize("format", ["ndjson", "json"])
@pytest.mark.parametrize("form", FORMS)
async def test_export_and_import_are_the_identity(
    bench: Bench, database: Any, form: Form, format: str
) -> None:
    values = SAME_IN_BOTH_FORMS + (CANONICAL_ONLY if form == "canonical" else [])
    documents = [{"_id": number, "v": value} for number, value in enumerate(values)]
    kept = [document for document in documents if _is_stored(database.tried, document)]
    assert len(kept) > 20
    database.here.insert_many(kept)
    asked = {"connection": "shop", "collection": "here", "sort": {"_id": 1}, "extended_json": form}
    await bench.run(mongo_export, {**asked, "format": format}, stamp=7)
    data = await bench.resources.files.load(f"jobs/job/7/here.{format}", 1 << 20)
    source = {"file": await bench.upload(f"here.{format}", data, "application/octet-stream")}
    target = {"connection": "shop", "collection": "there", "source": source}
    result = await bench.run(mongo_import, target, id="import")
    assert result == {"inserted": len(kept), "bad_count": 0}
    found = sorted(bytes(one.raw) for one in database.there.find())
    assert found == sorted(map(encode, kept))


@pytest.mark.parametrize("format", ["ndjson", "csv", "parquet"])
async def test_an_export_of_such_a_field_is_refused(
    bench: Bench, database: Any, format: str
) -> None:
    database.here.insert_one({"v": {"$numberLong": "5"}})
    payload = {"connection": "shop", "collection": "here", "format": format}
    with pytest.raises(TaskError, match="means a type") as caught:
        await bench.run(mongo_export, payload)
    assert (caught.value.type, caught.value.retryable) == ("invalid_document", False)
