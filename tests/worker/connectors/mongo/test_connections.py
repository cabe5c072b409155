"""MongoDB connections that do not work, and their errors."""

from pathlib import Path
from typing import Any

import pytest

from tandem_shared.errors import Misconfigured
from tandem_shared.settings import load_settings
from tandem_worker.connectors.mongo.connections import open_mongo
from tandem_worker.errors import TaskError
from tandem_worker.tasks.mongo.find import find as mongo_find
from tests.worker.bench import Bench, open_bench

UNREACHABLE = "127.0.0.1:1"
SOON = "serverSelectionTimeoutMS=50"


async def failure(bench: Bench, connection: str, **more: Any) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await bench.run(mongo_find, {"connection": connection, "collection": "orders", **more})
    return caught.value


async def test_an_unreachable_server_is_retryable_and_does_not_reveal_its_url(
    tmp_path: Path,
) -> None:
    urls = {
        "unreachable": f"mongodb://user:hunter2@{UNREACHABLE}/db?{SOON}",
        "bare": f"mongodb://{UNREACHABLE}/?{SOON}",
    }
    async with open_bench(tmp_path, mongo=urls) as bench:
        error = await failure(bench, "unreachable")
        assert (error.type, error.retryable) == ("mongo_connection", True)
        assert "hunter2" not in error.message
        assert UNREACHABLE not in error.message
        assert (await failure(bench, "bare", database="db")).type == "mongo_connection"


async def test_the_server_timeout_of_a_url_suffices_for_a_server_that_answers(
    tmp_path: Path, mongo_url: str
) -> None:
    async with open_bench(
        tmp_path, mongo={"main": f"{mongo_url}?serverSelectionTimeoutMS=5000"}
    ) as bench:
        assert (await bench.run(mongo_find, {"connection": "main", "collection": "none"})) == {
            "count": 0
        }


async def test_unknown_connections_and_missing_databases_fail_permanently(tmp_path: Path) -> None:
    async with open_bench(tmp_path, mongo={"bare": f"mongodb://{UNREACHABLE}"}) as bench:
        error = await failure(bench, "nope")
        assert (error.type, error.retryable) == ("unknown_connection", False)
        error = await failure(bench, "bare")
        assert (error.type, error.retryable) == ("forbidden_database", False)


@pytest.mark.parametrize(
    "url",
    [
        "http://h/d",
        "mongodb://",
        "mongodb://u:hunter2@h:port/d",
        "mongodb://h/d?maxPoolSize=x",
        "mongodb:///d",
    ],
)
async def test_an_invalid_url_stops_the_start(url: str) -> None:
    with pytest.raises(Misconfigured, match="TANDEM_MONGO__MAIN") as caught:
        async with open_mongo(load_settings(mongo={"main": url})):
            pass
    assert "hunter2" not in str(caught.value)
