"""A project whose own modules have the names of the service's folders."""

import tempfile
from pathlib import Path

from tandem_jobs import Client
from tests.journeys.pair import KEY, Pair, open_pair

FILES = {
    "api/__init__.py": "",
    "api/errors.py": "class NoStock(Exception): pass\n",
    "shared/__init__.py": "",
    "shared/errors.py": "from api.errors import NoStock\n",
    "shared/settings.py": "STOCK = {'cup': 3}\n",
    "worker.py": """
from shared.errors import NoStock
from shared.settings import STOCK
from tandem_worker import task

@task("shop.stock")
async def stock(payload: str) -> int:
    if payload not in STOCK:
        raise NoStock(payload)
    return STOCK[payload]
""",
}


def test_a_project_may_have_an_api_a_shared_and_a_worker_of_its_own() -> None:
    # A short name: Redis' socket lies in it.
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        project = Path(directory, "project")
        for name, text in FILES.items():
            path = project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        started = Pair(Path(directory), task="shop.stock", modules="worker", path=".", cwd=project)
        with open_pair(started) as pair, Client(pair.url, KEY) as client:
            assert client.result(client.submit("shop.stock", "cup"), timeout=30) == 3
            retry = {"max_attempts": 1}
            failed = client.wait(client.submit("shop.stock", "pot", retry=retry), timeout=30)
    assert failed.error is not None
    assert (failed.state, failed.error.type) == ("failed", "exception:NoStock")
