"""Workers that are killed after MongoDB has written and before the job is finished."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pymongo
import pytest

from tandem_shared.files.store import open_store
from tandem_shared.files.uploads import save_upload
from tandem_worker.tasks.mongo.imports import import_file as mongo_import_file
from tandem_worker.tasks.mongo.inserts import BATCH_DOCUMENTS
from tandem_worker.tasks.mongo.write import delete as mongo_delete
from tandem_worker.tasks.mongo.write import insert as mongo_insert
from tandem_worker.tasks.mongo.write import update as mongo_update
from tests.conftest import eventually
from tests.journeys import stopping_worker
from tests.journeys.stage import RETRY, WorkerStage
from tests.worker.connectors.sql.databases import MONGOS, REAL_MONGO, mongo_database
from tests.worker.workers import Client, outcomes


@pytest.fixture(params=MONGOS)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database."""
    made = mongo_database(
        REAL_MONGO if request.param == "real" else str(request.getfixturevalue("mongo_url"))
    )
    with pymongo.MongoClient[dict[str, int]](made, serverSelectionTimeoutMS=5000) as client:
        yield made
        client.drop_database(client.get_default_database().name)


class Orders:
    """The collection `orders`, and jobs whose first worker is killed once MongoDB has written."""

    def __init__(self, stage: WorkerStage, client: Client, url: str) -> None:
        self._stage, self._client, self._url = stage, client, url

    async def run_killed(self, function: Callable[..., Any], **payload: Any) -> Any:
        """The result of a job's second attempt."""
        notes = self._stage.directory / "stopped"
        module = stopping_worker.__name__
        first = self._stage.worker(
            module=module, arguments=(str(notes), "after"), mongo__shop=self._url
        )
        given = {"connection": "shop", "collection": "orders", **payload}
        id = await self._client.submit(function, given, retry=RETRY)
        await eventually(notes.exists, 30)
        first.kill()
        self._stage.worker(module=module, arguments=(str(notes), "never"), mongo__shop=self._url)
        result = await self._client.result(id)
        assert outcomes(await self._client.record(id)) == ["worker_lost", "succeeded"]
        return result

    def numbers(self) -> list[int]:
        """The field `n` of all documents."""
        with pymongo.MongoClient[dict[str, int]](self._url) as client:
            return sorted(document["n"] for document in client.get_default_database().orders.find())

    def fill(self, *numbers: int) -> None:
        with pymongo.MongoClient[dict[str, int]](self._url) as client:
            client.get_default_database().orders.insert_many([{"n": number} for number in numbers])
            # MongoDB cannot create this collection inside a transaction.
            client.get_default_database().tandem_applied.insert_one({"n": 0})


@pytest.fixture
def orders(stage: WorkerStage, client: Client, url: str) -> Orders:
    return Orders(stage, client, url)


async def test_inserted_documents_exist_once(orders: Orders) -> None:
    documents = [{"n": 0}, {"_id": "own", "n": 1}, {"n": 2}]
    assert await orders.run_killed(mongo_insert, documents=documents) == {"inserted": 3}
    assert orders.numbers() == [0, 1, 2]


async def test_imported_documents_exist_once(orders: Orders, stage: WorkerStage) -> None:
    # More than one batch: the first one has been written when the worker is killed.
    count = BATCH_DOCUMENTS + 500
    text = "".join(f'{{"n": {number}}}\n' for number in range(count)).encode()
    async with open_store(f"file://{stage.directory}/store") as store:
        file = await save_upload(
            store, text, tenant="default", keep=600, name="orders.ndjson", now=time.time
        )
    assert await orders.run_killed(mongo_import_file, source={"file": file.id}) == {
        "inserted": count,
        "bad_count": 0,
    }
    assert orders.numbers() == list(range(count))


async def test_an_update_in_a_transaction_is_applied_once(orders: Orders) -> None:
    orders.fill(1, 2)
    result = await orders.run_killed(mongo_update, filter={}, update={"$inc": {"n": 10}}, many=True)
    assert result == {"matched": 2, "modified": 2, "upserted": 0}
    assert orders.numbers() == [11, 12]


async def test_a_delete_in_a_transaction_is_applied_once(orders: Orders) -> None:
    orders.fill(1, 1, 2)
    assert await orders.run_killed(mongo_delete, filter={"n": 1}) == {"deleted": 1}
    assert orders.numbers() == [1, 2]
