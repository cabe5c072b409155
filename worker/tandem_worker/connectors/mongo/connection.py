"""One MongoDB server: every command of a job runs here, within its deadline, through Motor.

Failures are TaskErrors:

    forbidden_database    one of the server's own databases, or none is named
    forbidden_collection, forbidden_operator    see connectors/mongo/allowlist.py
    mongo_connection      the server does not answer (retryable), or rejects the settings
    mongo_error           the server rejects the command or fails; retryable if it says so
    duplicate_key         documents with these keys exist
    invalid_document      a document that BSON or the server cannot hold
    timeout               the server stopped the command at the job's deadline
"""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import bson
import pymongo
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import (
    AsyncIOMotorClient,
    AsyncIOMotorClientSession,
    AsyncIOMotorCollection,
    AsyncIOMotorDatabase,
)
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError
from pymongo.write_concern import WriteConcern

from tandem_worker.connectors.mongo.allowlist import check_collection
from tandem_worker.connectors.mongo.errors import late, no_answer, task_error
from tandem_worker.connectors.mongo.extended_json import DECODING
from tandem_worker.errors import Permanent, TaskError

CURSOR_BATCH = 500  # documents per reply; the server ends a reply at 16 MiB
APPLIED = "tandem_applied"  # jobs whose work has begun or is done: {_id: job id, at, result}
SERVER_TIMEOUT_SECONDS = 5.0  # for the server's first answer, unless the URL sets another
KILL_TIMEOUT_SECONDS = 2.0  # for ending a cancelled job's commands on the server

# The driver's options, unless the URL sets them.
_DEFAULTS: dict[str, Any] = {
    "appname": "tandem",
    "maxPoolSize": 20,
    "connectTimeoutMS": 5000,
    "serverSelectionTimeoutMS": int(1000 * SERVER_TIMEOUT_SECONDS),
    "waitQueueTimeoutMS": 10_000,
}
_SYSTEM_DATABASES = frozenset({"admin", "config", "local"})
_RAW: Any = DECODING.with_options(document_class=RawBSONDocument)
_DUPLICATE_CODE = 11000

BsonDocument = dict[str, Any]
MotorCollection = AsyncIOMotorCollection[BsonDocument]
MotorSession = AsyncIOMotorClientSession
Work = Callable[[MotorCollection, MotorSession], Awaitable[BsonDocument]]


class CollectionRef(NamedTuple):
    """A collection, and the deadline (by `time.monotonic()`) for what a job does with it."""

    database: str | None  # None: the database of the connection's URL
    name: str
    deadline: float


class Rejected(NamedTuple):
    """A document that was not inserted: its position in the list, from 0, and why."""

    position: int
    duplicate: bool
    reason: str


class MongoConnection:
    """A named server, `job.mongo(name)`; connects when first used."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        database: str | None,
        readable: Collection[str],
        server_timeout: float,
    ) -> None:
        self.name = name
        self.readable = readable  # the collections that $lookup may read
        self.has_transactions: bool | None = None  # None until the server was asked
        self._url = url
        self._server_timeout = server_timeout  # seconds
        self._database = database
        self._client: AsyncIOMotorClient[BsonDocument] | None = None
        self._opening = asyncio.Lock()

    async def database(self, name: str | None = None) -> AsyncIOMotorDatabase[BsonDocument]:
        """Motor's database for your own tasks; without a name that of the URL. Raises TaskError."""
        chosen = name or self._database
        if chosen is None:
            message = f"the connection {self.name!r} has no default database: give one"
            raise Permanent("forbidden_database", message)
        if chosen in _SYSTEM_DATABASES:
            message = f"the database {chosen!r} is MongoDB's own and cannot be used"
            raise Permanent("forbidden_database", message)
        return (await self._open()).get_database(chosen, codec_options=DECODING)

    @asynccontextmanager
    async def find(
        self,
        target: CollectionRef,
        filter: BsonDocument,
        *,
        projection: BsonDocument | None = None,
        sort: Sequence[tuple[str, Any]] = (),
        limit: int = 0,
        raw: bool = False,
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """The documents that the filter matches, as they arrive; `limit` 0 returns all.

        The caller has checked the arguments. With `raw`, documents are RawBSONDocuments, which are
        not decoded.
        """
        collection = await self._collection(target)
        if raw:
            collection = collection.with_options(codec_options=_RAW)
        async with self._session(target.deadline) as session:
            with self._bounded(target.deadline):
                cursor = collection.find(
                    filter, projection, session=session, limit=limit, batch_size=CURSOR_BATCH
                )
                if sort:
                    cursor = cursor.sort(list(sort))
            async with aclosing(self._read(cursor, target.deadline)) as documents:
                yield documents

    @asynccontextmanager
    async def aggregate(
        self, target: CollectionRef, pipeline: list[BsonDocument]
    ) -> AsyncIterator[AsyncIterator[BsonDocument]]:
        """The documents that the pipeline produces; it may not sort or group on disk."""
        collection = await self._collection(target)
        async with self._session(target.deadline) as session:
            with self._bounded(target.deadline):
                cursor = collection.aggregate(
                    pipeline, session=session, batchSize=CURSOR_BATCH, allowDiskUse=False
                )
            async with aclosing(self._read(cursor, target.deadline)) as documents:
                yield documents

    async def insert(
        self,
        target: CollectionRef,
        documents: list[BsonDocument],
        *,
        derived: Collection[int],
        repeated: bool,
    ) -> list[Rejected]:
        """Insert documents that all have an `_id`; returns those that no attempt has inserted.

        `derived` are the indexes of documents whose ids belong to this job: one that exists was
        inserted by an earlier attempt. With `repeated`, so was any other whose stored document is
        equal.
        """
        collection = await self._collection(target)
        async with self._session(target.deadline) as session:
            with self._bounded(target.deadline):
                try:
                    await collection.insert_many(documents, ordered=False, session=session)
                    return []
                except BulkWriteError as error:
                    errors = error.details.get("writeErrors", [])
                    failed = {int(failure["index"]): failure for failure in errors}
                    # Without write errors the write concern failed: the writes may be lost again.
                    if not failed:
                        raise
            duplicates = {
                index for index, failure in failed.items() if failure.get("code") == _DUPLICATE_CODE
            }
            stored: dict[bytes, BsonDocument] = {}
            with self._bounded(target.deadline):
                ids = [documents[index]["_id"] for index in duplicates]
                async for found in collection.find(
                    {"_id": {"$in": ids}}, session=session, batch_size=CURSOR_BATCH
                ):
                    stored[_key(found)] = found
        rejected = []
        for index, failure in sorted(failed.items()):
            existing = stored.get(_key(documents[index])) if index in duplicates else None
            if existing is None:
                reason = str(failure.get("errmsg", "refused"))
            elif index in derived or (repeated and _equal(existing, documents[index])):
                continue
            else:
                reason = "its _id exists already"
            rejected.append(Rejected(index, index in duplicates, reason))
        return rejected

    async def begin(self, target: CollectionRef, job: str) -> bool:
        """Record that the job starts to write; returns whether an earlier attempt had started."""
        applied = (await self.database(target.database))[APPLIED]
        with self._bounded(target.deadline):
            try:
                await applied.insert_one({"_id": job, "at": datetime.now(UTC)})
            except DuplicateKeyError:
                return True
        return False

    async def update(
        self,
        target: CollectionRef,
        job: str,
        filter: BsonDocument,
        update: Any,
        *,
        many: bool,
        upsert: bool,
    ) -> BsonDocument:
        """`{matched, modified, upserted}`; applied once if the server has transactions."""

        async def work(collection: MotorCollection, session: MotorSession) -> BsonDocument:
            change = collection.update_many if many else collection.update_one
            done = await change(filter, update, upsert=upsert, session=session)
            return {
                "matched": done.matched_count,
                "modified": done.modified_count,
                "upserted": int(done.upserted_id is not None),
            }

        return await self._once(target, job, work)

    async def delete(
        self, target: CollectionRef, job: str, filter: BsonDocument, *, many: bool
    ) -> BsonDocument:
        """`{deleted}`; applied once if the server has transactions."""

        async def work(collection: MotorCollection, session: MotorSession) -> BsonDocument:
            delete = collection.delete_many if many else collection.delete_one
            return {"deleted": (await delete(filter, session=session)).deleted_count}

        return await self._once(target, job, work)

    async def close(self) -> None:
        """Close all connections to the server."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _open(self) -> AsyncIOMotorClient[BsonDocument]:
        async with self._opening:
            if self._client is None:
                given = {key.lower() for key, _ in parse_qsl(urlsplit(self._url).query)}
                options = {
                    key: value for key, value in _DEFAULTS.items() if key.lower() not in given
                }
                connect: Callable[[], AsyncIOMotorClient[BsonDocument]] = partial(
                    AsyncIOMotorClient, self._url, io_loop=asyncio.get_running_loop(), **options
                )
                try:
                    # In a thread: mongodb+srv:// resolves names.
                    self._client = await asyncio.to_thread(connect)
                except PyMongoError as error:
                    raise task_error(error, self.name) from None
            return self._client

    async def _collection(self, target: CollectionRef) -> MotorCollection:
        check_collection(target.name)
        return (await self.database(target.database))[target.name]

    @asynccontextmanager
    async def _session(self, deadline: float) -> AsyncIterator[MotorSession]:
        """A session for one job, so that its commands can be stopped on the server with the job."""
        client = await self._open()
        # Ask first: a command would look for a server until the job's deadline.
        answer_by = min(deadline, time.monotonic() + self._server_timeout)
        try:
            with self._bounded(answer_by):
                hello = await client.admin.command("hello")
                session = await client.start_session()
        except TaskError as error:
            if error.type == "timeout" and answer_by < deadline:
                raise no_answer(self.name) from None
            raise
        if self.has_transactions is None:
            # Replica sets and the routers of sharded clusters have them; standalone servers do not.
            self.has_transactions = "setName" in hello or hello.get("msg") == "isdbgrid"
        try:
            yield session
        except asyncio.CancelledError:
            # Otherwise the server keeps working on the command, and the driver's thread waits.
            async with _cleanup():
                await client.admin.command("killSessions", [session.session_id])
            raise
        finally:
            async with _cleanup():
                await session.end_session()

    async def _read(self, cursor: Any, deadline: float) -> AsyncGenerator[BsonDocument, None]:
        try:
            while True:
                # Around each step: a yield inside would apply the limit to the consumer, too.
                with self._bounded(deadline):
                    try:
                        document = await anext(cursor)
                    except StopAsyncIteration:
                        return
                yield document
        finally:
            async with _cleanup():
                await cursor.close()

    async def _once(self, target: CollectionRef, job: str, work: Work) -> BsonDocument:
        """Do the work and record its result in one transaction, or return an earlier attempt's."""
        collection = await self._collection(target)
        async with self._session(target.deadline) as session:
            with self._bounded(target.deadline):
                if not self.has_transactions:
                    return await work(collection, session)
                applied = collection.database[APPLIED]
                session.start_transaction(write_concern=WriteConcern("majority"))
                try:
                    before = await applied.find_one({"_id": job}, session=session)
                    if before is not None:
                        await session.abort_transaction()
                        return dict(before["result"])
                    result = await work(collection, session)
                    await applied.insert_one(
                        {"_id": job, "at": datetime.now(UTC), "result": result}, session=session
                    )
                    await session.commit_transaction()
                except PyMongoError:
                    # Not on cancellation: the server would first wait for the running command,
                    # which `_session` kills.
                    with suppress(PyMongoError):  # the transaction may be over already
                        await session.abort_transaction()
                    raise
        return result

    @contextmanager
    def _bounded(self, deadline: float) -> Iterator[None]:
        """Driver calls inside the block end in time, also on the server, and raise TaskError."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise late()
        try:
            with pymongo.timeout(left):
                yield
        except (PyMongoError, BSONError, OverflowError) as error:
            raise task_error(error, self.name) from None


@asynccontextmanager
async def _cleanup() -> AsyncIterator[None]:
    """Bound a call that only tidies up, and ignore its failure."""
    with suppress(PyMongoError, TimeoutError), pymongo.timeout(KILL_TIMEOUT_SECONDS):
        async with asyncio.timeout(2 * KILL_TIMEOUT_SECONDS):
            yield


def _key(document: BsonDocument) -> bytes:
    return bson.encode({"_id": document["_id"]})


def _equal(stored: BsonDocument, ours: BsonDocument) -> bool:
    return stored == bson.decode(bson.encode(ours), DECODING)
