"""A Redis that answers, but does not serve: told in words, and waited for."""

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tandem_shared.errors import Unavailable
from tandem_shared.queue.scripts import execute
from tandem_worker import task
from tests.conftest import eventually
from tests.worker.workers import Client, open_client, working

RIGHTS = ("on", ">pw", "~*", "&*", "+@all", "-@dangerous", "+info")


@task("adds")
async def adds(payload: int) -> int:
    return payload + 1


def as_user(url: str) -> str:
    return url.replace("unix://", "unix://limited:pw@")


async def rights(redis: Any, *words: str) -> None:
    """What the user may do from now on."""
    await execute(redis, "ACL", "SETUSER", "limited", "reset", *words)


@pytest.fixture(autouse=True)
async def user(redis: Redis) -> Any:
    await rights(redis, *RIGHTS)
    yield
    await execute(redis, "ACL", "DELUSER", "limited")


@pytest.fixture
def place(redis_url: str, tmp_path: Path) -> tuple[str, Path]:
    return redis_url, tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*RIGHTS, "-evalsha", "-eval"), "(NOPERM): its user lacks a permission"),
        ((*RIGHTS, "-@all"), "(NOPERM): its user lacks a permission"),
        (("on", ">another", *RIGHTS[2:]), "(NOAUTH): TANDEM_REDIS_URL needs another user"),
    ],
)
async def test_a_worker_waits_for_its_rights(
    client: Client,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
    place: tuple[str, Path],
) -> None:
    redis, printed = client.redis, list[str]()
    url, directory = place

    def has_said(text: str) -> bool:
        printed.append(capsys.readouterr().out)
        return text in "".join(printed)

    async with working(as_user(url), directory, adds) as worker:
        assert await client.result(await client.submit(adds, 1)) == 2
        await rights(redis, *words)
        await execute(redis, "CLIENT", "KILL", "USER", "limited")
        id = await client.submit(adds, 2)
        await eventually(lambda: has_said(said))
        await rights(redis, *RIGHTS)
        assert await client.result(id) == 3
        assert (await client.record(id)).attempts[0].worker == worker.id
        assert not has_said("Traceback")


async def test_the_rights_that_are_documented_suffice(redis_url: str, tmp_path: Path) -> None:
    async with (
        open_client(as_user(redis_url)) as client,
        working(as_user(redis_url), tmp_path, adds),
    ):
        assert await client.result(await client.submit(adds, 1)) == 2


async def test_a_wrong_password_is_unavailable(redis_url: str) -> None:
    async with open_client(redis_url.replace("unix://", "unix://limited:SECRET@")) as client:
        with pytest.raises(Unavailable, match="NOAUTH") as caught:
            await client.queue.ping()
        assert "SECRET" not in str(caught.value)
