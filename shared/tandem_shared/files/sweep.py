"""Removal of stored files that nothing refers to any more."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from tandem_shared.errors import NotFound
from tandem_shared.files.store import FileStore
from tandem_shared.files.uploads import UPLOAD_ID, belongs_to_upload, load_upload, remove_upload
from tandem_shared.jobs.ids import id_time

# Twice the longest timeout of an attempt, 24 hours: the writer of such an object has ended.
STALE_SECONDS = 48 * 3600.0


async def sweep(
    store: FileStore,
    *,
    now: float,
    keep: float,
    alive: Callable[[str], Awaitable[bool]],
    limit: int = 10_000,
) -> int:
    """Remove what can no longer be requested, up to about `limit` objects; return the number.

    That is: expired uploads, bytes without an upload, parts that have been joined, files of jobs
    whose record is gone, and temporaries of writers that died. `now` is `RedisClock.earliest`,
    `keep` how many seconds records are kept, and `alive` reports whether a job has one: files of an
    early attempt stay for as long as later attempts take. Several processes may sweep at once.
    """
    removed = 0
    async for stored in store.list("uploads"):
        if removed >= limit:
            return removed
        id, _, part = stored.path.removeprefix("uploads/").partition("/")
        if UPLOAD_ID.fullmatch(id) is None:
            continue  # not written by us
        if part in ("meta.json", "begun.json"):
            # The id shows the age, so young metadata need not be read.
            if (id_time(id) or 0.0) + keep < now:
                with suppress(NotFound):
                    upload = await load_upload(store, id, part)
                    if upload is None or upload.expires <= now:
                        await remove_upload(store, id)
                        removed += 1
        elif stored.modified + STALE_SECONDS < now and not await belongs_to_upload(store, id, part):
            await store.delete(stored.path)
            removed += 1
    removed += await _sweep_jobs(store, now - keep - STALE_SECONDS, alive, limit - removed)
    return removed + await store.drop_temporaries(now - STALE_SECONDS, limit - removed)


async def _sweep_jobs(
    store: FileStore, before: float, alive: Callable[[str], Awaitable[bool]], limit: int
) -> int:
    removed = 0
    last, last_alive = "", False  # most listings have the objects of a job together: ask once
    async for stored in store.list("jobs"):
        if removed >= limit:
            break
        if stored.modified < before:
            id = stored.path.split("/")[1]
            if id != last:
                last, last_alive = id, await alive(id)
            if not last_alive:
                await store.delete(stored.path)
                removed += 1
    return removed
