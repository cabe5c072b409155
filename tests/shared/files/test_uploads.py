"""Uploads: found by their tenant until they expire."""

import hashlib
import time

import pytest

from tandem_shared.errors import NotFound, TooLarge
from tandem_shared.files.store import FileStore
from tandem_shared.files.uploads import delete_upload, find_upload, new_upload_id, save_upload
from tests.shared.files.test_store import collect


async def test_only_its_tenant_finds_an_upload(any_store: FileStore) -> None:
    saved = await save_upload(
        any_store,
        b"hello",
        tenant="a",
        keep=60,
        name="../x",
        content_type="text/plain",
        limit=5,
        now=time.time,
    )
    assert saved.view() | {"expires_at": None} == {
        "id": saved.id,
        "name": "../x",
        "size": 5,
        "sha256": hashlib.sha256(b"hello").hexdigest(),
        "content_type": "text/plain",
        "expires_at": None,
    }
    assert await find_upload(any_store, saved.id, tenant="a", now=time.time()) == saved
    assert await collect(any_store.read(saved.path)) == b"hello"
    for id, tenant in [
        (saved.id, "b"),
        (new_upload_id(time.time()), "a"),
        ("../" + saved.id, "a"),
        ("", "a"),
        (saved.id + "\n", "a"),
    ]:
        with pytest.raises(NotFound):
            await find_upload(any_store, id, tenant=tenant, now=time.time())
    with pytest.raises(NotFound):
        await delete_upload(any_store, saved.id, tenant="b", now=time.time())
    await delete_upload(any_store, saved.id, tenant="a", now=time.time())
    with pytest.raises(NotFound):
        await find_upload(any_store, saved.id, tenant="a", now=time.time())
    assert [stored async for stored in any_store.list("uploads")] == []


async def test_an_upload_above_the_limit_is_not_stored(any_store: FileStore) -> None:
    with pytest.raises(TooLarge):
        await save_upload(any_store, b"123456", tenant="a", keep=60, limit=5, now=time.time)
    assert [stored async for stored in any_store.list("uploads")] == []


async def test_an_expired_upload_is_not_found(any_store: FileStore) -> None:
    saved = await save_upload(any_store, b"hello", tenant="a", keep=60, now=time.time)
    with pytest.raises(NotFound):
        await find_upload(any_store, saved.id, tenant="a", now=time.time() + 61)
    # A clock that is ahead for a moment has removed nothing.
    assert await find_upload(any_store, saved.id, tenant="a", now=time.time()) == saved


async def test_upload_ids_are_unguessable_and_sort_by_time() -> None:
    ids = [new_upload_id(time.time()) for _ in range(1000)]
    assert len({id[10:] for id in ids}) == 1000
    assert [id[:10] for id in ids] == sorted(id[:10] for id in ids)
    assert all(len(id) == 30 and id.isalnum() for id in ids)
