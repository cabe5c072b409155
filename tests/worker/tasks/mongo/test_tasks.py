"""MongoDB tasks against servers over TCP: `nx-27017`, and the one in TANDEM_TEST_MONGO_URL.

Tests of what only a real server has (decimals, announced transactions, time limits) are marked
`real`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import bson
import jsonschema_rs
import pymongo
import pytest

from tandem_shared.jobs.ids import new_id
from tandem_worker.connectors.mongo.connection import APPLIED
from tandem_worker.connectors.mongo.extended_json import derived_id
from tandem_worker.errors import TaskError
from tandem_worker.task import task_of
from tandem_worker.tasks.mongo.export import export as mongo_export
from tandem_worker.tasks.mongo.find import aggregate as mongo_aggregate
from tandem_worker.tasks.mongo.find import find as mongo_find
from tandem_worker.tasks.mongo.write import delete as mongo_delete
from tandem_worker.tasks.mongo.write import insert as mongo_insert
from tandem_worker.tasks.mongo.write import update as mongo_update
from tests.conftest import eventually
from tests.worker.bench import Bench, open_bench
from tests.worker.connectors.sql.databases import MONGOS, REAL_MONGO, mongo_database

real = pytest.mark.skipif(not REAL_MONGO, reason="TANDEM_TEST_MONGO_URL names no server")
OID = "0123456789abcdef01234567"
ORDERS = [
    {"_id": {"$oid": OID}, "city": "Oslo", "amount": 12.5, "at": {"$date": "2026-01-31T12:00:00Z"}},
    {
        "_id": 2,
        "city": "Bergen",
        "amount": 7,
        "items": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}],
    },
    {
        "_id": 3,
        "city": "Oslo",
        "amount": 1152921504606846976,
        "raw": {"$binary": {"base64": "AAE=", "subType": "00"}},
    },
]

Database = pymongo.database.Database[dict[str, Any]]


@pytest.fixture(params=MONGOS)
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a new database on each server; it may have parameters."""
    return mongo_database(
        REAL_MONGO if request.param == "real" else str(request.getfixturevalue("mongo_url"))
    )


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """The database through another client."""
    with pymongo.MongoClient[dict[str, Any]](
        url, tz_aware=True, serverSelectionTimeoutMS=5000
    ) as client:
        database = client.get_default_database()
        yield database
        client.drop_database(database.name)


@pytest.fixture
async def bench(url: str, database: Database, tmp_path: Path) -> AsyncIterator[Bench]:
    """The connection `demo`, whose pipelines may read `cities`."""
    async with open_bench(
        tmp_path, mongo={"demo": f"{url}{'&' if '?' in url else '?'}lookup=cities"}
    ) as opened:
        yield opened


async def ask(bench: Bench, function: Any, payload: dict[str, Any], **job: Any) -> Any:
    """The result of a task on `orders`; checks payload and result against their schemas."""
    given = {"connection": "demo", "collection": "orders", **payload}
    entry = task_of(function).entry
    jsonschema_rs.validator_for(entry.payload_schema).validate(given)
    result = await bench.run(function, given, **{"id": new_id(), **job})
    jsonschema_rs.validator_for(entry.result_schema).validate(result)
    return result


async def failure(bench: Bench, function: Any, payload: dict[str, Any], **job: Any) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await ask(bench, function, payload, **job)
    return caught.value


async def fill(bench: Bench) -> None:
    assert await ask(bench, mongo_insert, {"documents": ORDERS}) == {"inserted": 3}


async def test_inserted_documents_are_found_with_their_types(
    bench: Bench, database: Database
) -> None:
    await fill(bench)
    stored = database.orders.find_one({"city": "Oslo", "amount": 12.5})
    assert stored is not None
    assert stored["_id"] == bson.ObjectId(OID)
    assert stored["at"].isoformat() == "2026-01-31T12:00:00+00:00"
    result = await ask(bench, mongo_find, {"filter": {"amount": {"$gt": 0}}, "sort": {"amount": 1}})
    assert result == {"count": 3}
    assert bench.recorder.items == [ORDERS[1], ORDERS[0], ORDERS[2]]
    assert bench.recorder.progressed[-1] == {"current": 3, "total": 3, "message": None}


async def test_find_by_extended_json(bench: Bench) -> None:
    await fill(bench)
    assert await ask(bench, mongo_find, {"filter": {"_id": {"$oid": OID}}}) == {"count": 1}
    late = {"at": {"$gt": {"$date": "2026-01-01T00:00:00Z"}}}
    assert await ask(bench, mongo_find, {"filter": late, "extended_json": "canonical"}) == {
        "count": 1
    }
    canonical = {
        **ORDERS[0],
        "amount": {"$numberDouble": "12.5"},
        "at": {"$date": {"$numberLong": "1769860800000"}},
    }
    assert bench.recorder.items == [ORDERS[0], canonical]


async def test_find_with_a_projection_and_a_limit(bench: Bench) -> None:
    await fill(bench)
    asked = {"projection": {"city": 1, "_id": 0}, "sort": {"amount": -1}, "limit": 2}
    assert await ask(bench, mongo_find, asked) == {"count": 2}
    assert bench.recorder.items == [{"city": "Oslo"}, {"city": "Oslo"}]


async def test_find_reads_beyond_the_first_batch(bench: Bench, database: Database) -> None:
    database.orders.insert_many([{"n": number} for number in range(1234)])
    assert await ask(bench, mongo_find, {"sort": {"n": 1}}) == {"count": 1234}
    assert [item["n"] for item in bench.recorder.items] == list(range(1234))


async def test_aggregate_streams_the_pipelines_documents(bench: Bench) -> None:
    await fill(bench)
    pipeline = [
        {"$match": {"amount": {"$lt": 100}}},
        {"$group": {"_id": "$city", "total": {"$sum": "$amount"}}},
        {"$sort": {"_id": 1}},
    ]
    assert await ask(bench, mongo_aggregate, {"pipeline": pipeline}) == {"count": 2}
    assert bench.recorder.items == [{"_id": "Bergen", "total": 7}, {"_id": "Oslo", "total": 12.5}]


async def test_lookup_reads_only_collections_that_the_connection_allows(
    bench: Bench, database: Database
) -> None:
    await fill(bench)
    database.cities.insert_one({"name": "Bergen", "people": 291940})
    joined = {"from": "cities", "localField": "city", "foreignField": "name", "as": "place"}
    pipeline = [{"$match": {"city": "Bergen"}}, {"$lookup": joined}]
    assert await ask(bench, mongo_aggregate, {"pipeline": pipeline}) == {"count": 1}
    assert bench.recorder.items[0]["place"][0]["people"] == 291940
    error = await failure(
        bench, mongo_aggregate, {"pipeline": [{"$lookup": {**joined, "from": "users"}}]}
    )
    assert (error.type, error.retryable) == ("forbidden_operator", False)


@pytest.mark.parametrize(
    ("function", "payload"),
    [
        (mongo_find, {"filter": {"$where": "1"}}),
        (mongo_find, {"projection": {"a": {"$function": {}}}}),
        (mongo_find, {"sort": {"a": {"$function": {}}}}),
        (mongo_aggregate, {"pipeline": [{"$out": "x"}]}),
        (mongo_insert, {"documents": [{"a": {"$where": "1"}}]}),
        (mongo_update, {"filter": {"$where": "1"}, "update": {"$set": {"a": 1}}}),
        (mongo_update, {"filter": {}, "update": {"a": 1}}),
        (mongo_delete, {"filter": {"$where": "1"}}),
        (mongo_export, {"filter": {"$expr": {"$function": {}}}, "format": "csv"}),
    ],
)
async def test_every_task_refuses_forbidden_operators(
    bench: Bench, function: Any, payload: dict[str, Any]
) -> None:
    error = await failure(bench, function, payload)
    assert (error.type, error.retryable) == ("forbidden_operator", False)


@pytest.mark.parametrize(
    "place",
    [{"database": "admin"}, {"collection": "system.users"}, {"collection": "tandem_applied"}],
)
async def test_system_databases_and_collections_are_refused(
    bench: Bench, place: dict[str, str]
) -> None:
    given = {"connection": "demo", "collection": "orders", **place}
    assert not jsonschema_rs.validator_for(task_of(mongo_find).entry.payload_schema).is_valid(given)
    with pytest.raises(TaskError) as caught:
        await bench.run(mongo_find, given)
    assert caught.value.type in ("forbidden_database", "forbidden_collection")
    assert not caught.value.retryable


async def test_inserts_are_applied_once(bench: Bench, database: Database) -> None:
    documents = [{"n": number} for number in range(20)]
    id = new_id()
    # The first attempt inserted half of them before its worker was lost.
    database.orders.insert_many(
        [{"_id": derived_id(id, number), "n": number} for number in range(10)]
    )
    for attempt in (2, 3):
        assert await ask(bench, mongo_insert, {"documents": documents}, id=id, attempt=attempt) == {
            "inserted": 20
        }
    assert sorted(one["n"] for one in database.orders.find()) == list(range(20))
    assert await ask(bench, mongo_insert, {"documents": documents}) == {"inserted": 20}
    assert database.orders.count_documents({}) == 40


async def test_an_existing_key_is_an_error_unless_the_job_inserted_it(
    bench: Bench, database: Database
) -> None:
    id = new_id()
    assert await ask(bench, mongo_insert, {"documents": [{"_id": 1, "n": 1}]}, id=id) == {
        "inserted": 1
    }
    error = await failure(bench, mongo_insert, {"documents": [{"_id": 1, "n": 1}, {"_id": 2}]})
    assert (error.type, error.retryable) == ("duplicate_key", False)
    assert error.message.startswith(
        "1 of 2 documents were refused, the others are inserted; documents/0:"
    )
    assert database.orders.count_documents({}) == 2
    assert await ask(bench, mongo_insert, {"documents": [{"_id": 1, "n": 1}]}, id=id) == {
        "inserted": 1
    }
    # Since then another client has replaced it.
    database.orders.update_one({"_id": 1}, {"$set": {"n": 5}})
    assert (
        await failure(bench, mongo_insert, {"documents": [{"_id": 1, "n": 1}]}, id=id)
    ).type == "duplicate_key"


async def test_a_duplicate_in_another_unique_index_is_not_taken_for_a_repeat(
    bench: Bench, database: Database
) -> None:
    database.orders.create_index("n", unique=True)
    database.orders.insert_one({"_id": "x", "n": 1})
    error = await failure(bench, mongo_insert, {"documents": [{"n": 1}, {"n": 2}]})
    assert error.type == "duplicate_key"
    assert sorted(one["n"] for one in database.orders.find()) == [1, 2]


async def test_update_and_delete_count_documents(bench: Bench, database: Database) -> None:
    database.orders.insert_many([{"_id": number, "n": number} for number in range(10)])
    low = {"n": {"$lt": 5}}
    marked = {"filter": low, "update": {"$set": {"low": True}}}
    assert await ask(bench, mongo_update, marked) == {"matched": 1, "modified": 1, "upserted": 0}
    assert (await ask(bench, mongo_update, {**marked, "many": True}))["matched"] == 5
    assert database.orders.count_documents({"low": True}) == 5
    upsert = {"filter": {"_id": "new"}, "update": {"$set": {"n": 99}}, "upsert": True}
    assert await ask(bench, mongo_update, upsert) == {"matched": 0, "modified": 0, "upserted": 1}
    assert database.orders.find_one({"_id": "new"}) == {"_id": "new", "n": 99}
    assert await ask(bench, mongo_delete, {"filter": low}) == {"deleted": 1}
    assert await ask(bench, mongo_delete, {"filter": low, "many": True}) == {"deleted": 4}
    assert await ask(bench, mongo_delete, {"filter": low, "many": True}) == {"deleted": 0}


async def test_a_transaction_applies_updates_and_deletes_once(
    bench: Bench, database: Database
) -> None:
    # nx-27017 has transactions, but does not announce them like a replica set.
    bench.resources.mongo("demo").has_transactions = True
    database.orders.insert_many([{"_id": number, "n": 0} for number in range(4)])
    database[APPLIED].insert_one({"_id": "somebody else's"})
    id, added = new_id(), {"filter": {"_id": 1}, "update": {"$inc": {"n": 1}}}
    first = await ask(bench, mongo_update, added, id=id)
    assert first == {"matched": 1, "modified": 1, "upserted": 0}
    assert await ask(bench, mongo_update, added, id=id, attempt=2) == first
    assert database.orders.find_one({"_id": 1}) == {"_id": 1, "n": 1}
    id = new_id()
    assert await ask(bench, mongo_delete, {"filter": {"n": 0}}, id=id) == {"deleted": 1}
    assert await ask(bench, mongo_delete, {"filter": {"n": 0}}, id=id, attempt=2) == {"deleted": 1}
    assert database.orders.count_documents({}) == 3


async def test_a_failed_transaction_leaves_no_record(bench: Bench, database: Database) -> None:
    bench.resources.mongo("demo").has_transactions = True
    database.orders.create_index("n", unique=True)
    database.orders.insert_many([{"_id": 1, "n": 1}, {"_id": 2, "n": 2}])
    database[APPLIED].insert_one({"_id": "somebody else's"})
    id = new_id()
    error = await failure(
        bench, mongo_update, {"filter": {"_id": 1}, "update": {"$set": {"n": 2}}}, id=id
    )
    assert (error.type, error.retryable) == ("duplicate_key", False)
    assert database.orders.find_one({"_id": 1}) == {"_id": 1, "n": 1}
    assert database[APPLIED].find_one({"_id": id}) is None


async def test_a_cancelled_job_leaves_the_connection_usable(
    bench: Bench, database: Database
) -> None:
    database.orders.insert_many([{"n": number} for number in range(5000)])
    finding = asyncio.create_task(ask(bench, mongo_find, {}))
    await eventually(lambda: bench.recorder.items)
    finding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finding
    assert len(bench.recorder.items) < 5000
    assert await ask(bench, mongo_find, {"limit": 1}) == {"count": 1}


@real
async def test_decimals_survive(bench: Bench) -> None:
    price = {"_id": 1, "price": {"$numberDecimal": "1.10"}}
    await ask(bench, mongo_insert, {"documents": [price]})
    assert await ask(bench, mongo_find, {"filter": {"price": {"$numberDecimal": "1.1"}}}) == {
        "count": 1
    }
    assert bench.recorder.items == [price]


@real
async def test_a_late_or_cancelled_job_stops_its_command_on_the_server(
    bench: Bench, database: Database
) -> None:
    database.orders.insert_many([{"n": number} for number in range(3000)])
    joined = {"from": "cities", "pipeline": [{"$sort": {"a": 1}}], "as": "x"}
    database.cities.insert_many([{"a": number} for number in range(3000)])
    slow = {
        "pipeline": [{"$lookup": joined}, {"$group": {"_id": None, "n": {"$sum": {"$size": "$x"}}}}]
    }

    def works() -> bool:
        return any(
            "aggregate" in one.get("command", {}) and one["ns"].endswith(".orders") for one in ops()
        )

    def ops() -> list[dict[str, Any]]:
        return list(database.client.admin.aggregate([{"$currentOp": {}}]))

    error = await failure(bench, mongo_aggregate, slow, deadline=time.monotonic())
    assert error.type == "timeout"
    running = asyncio.create_task(ask(bench, mongo_aggregate, slow))
    await eventually(works)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: not works())
