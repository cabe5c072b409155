"""The MongoDB servers that tasks may name: `TANDEM_MONGO__<NAME>=mongodb://…/<database>`. All of Motor is here.

One parameter of the URL is ours: `lookup=orders,customers` names the collections that $lookup and
its like may read (`*`: all of the database). Failures are TaskErrors:

    unknown_connection    no such name in the settings
    forbidden_database    the server's own, or none is named
    forbidden_collection, forbidden_operator    see
    worker/tandem_worker/connectors/mongo/allowlist.py
    mongo_connection      the server does not answer (retryable), or refuses the settings
    mongo_error           the server refuses the command or fails; retryable where the server says
                          so
    duplicate_key         documents with these keys exist
    invalid_document      what BSON or the server cannot hold
    timeout               the server ended the command, since it took longer than the job may
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
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

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
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    DuplicateKeyError,
    InvalidOperation,
    InvalidURI,
    PyMongoError,
)
from pymongo.uri_parser import parse_uri
from pymongo.write_concern import WriteConcern

from tandem_shared.errors import Misconfigured
from tandem_shared.settings import Settings
from tandem_worker.connectors.mongo.allowlist import check_collection
from tandem_worker.connectors.mongo.errors import explained, late, unanswered
from tandem_worker.connectors.mongo.extended_json import DECODING
from tandem_worker.errors import TaskError

BATCH = 500  # documents that a cursor asks for at once; the server's replies end at 16 MiB
APPLIED = "tandem_applied"  # jobs whose work is done, or begun: {_id: job id, at, result}
PATIENCE = 5.0  # seconds until a server must have answered, where the URL does not say otherwise
KILL_TIMEOUT = 2.0  # seconds that a cancelled job takes to end its commands on the server

# Of the driver, where the URL does not say otherwise.
_DEFAULTS: dict[str, Any] = {
    "appname": "tandem",
    "maxPoolSize": 20,
    "connectTimeoutMS": 5000,
    "serverSelectionTimeoutMS": int(1000 * PATIENCE),
    "waitQueueTimeoutMS": 10_000,
}
_SYSTEM = frozenset({"admin", "config", "local"})
_RAW: Any = DECODING.with_options(document_class=RawBSONDocument)
_DUPLICATE = 11000  # the server's code

Document = dict[str, Any]
Work = Callable[[AsyncIOMotorCollection[Document], AsyncIOMotorClientSession], Awaitable[Document]]


class Target(NamedTuple):
    """A collection, and until when (`time.monotonic()`) what is done with it may take."""

    database: str | None  # None: that of the connection's URL
    collection: str
    until: float


class Rejected(NamedTuple):
    """A document that was not inserted: its place among those that were given, from 0, and why."""

    place: int
    duplicate: bool
    reason: str


class MongoConnection:
    """A named server, `job.mongo(name)`; it connects when first used."""

    def __init__(
        self, name: str, url: str, *, database: str | None, reach: Collection[str], patience: float
    ) -> None:
        self.name = name
        self.reach = reach  # collections that $lookup may read
        self.transactional: bool | None = (
            None  # whether the server has transactions; None: not asked yet
        )
        self._url = url
        self._patience = patience  # seconds until a server must have answered
        self._database = database
        self._client: AsyncIOMotorClient[Document] | None = None
        self._opening = asyncio.Lock()

    async def database(self, name: str | None = None) -> AsyncIOMotorDatabase[Document]:
        """Motor's database, for tasks of one's own; without a name that of the URL. Raises TaskError."""
        chosen = name or self._database
        if chosen is None:
            raise _forbidden(f"the connection {self.name!r} names no database: give one")
        if chosen in _SYSTEM:
            raise _forbidden(f"the database {chosen!r} is the server's own")
        return (await self._open()).get_database(chosen, codec_options=DECODING)

    @asynccontextmanager
    async def find(
        self,
        target: Target,
        filter: Document,
        *,
        projection: Document | None = None,
        sort: Sequence[tuple[str, Any]] = (),
        limit: int = 0,
        raw: bool = False,
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """The documents that the filter matches, as they come; 0 is no limit. Arguments are checked by the caller.

        With `raw` they are RawBSONDocuments, which nobody has decoded yet.
        """
        collection = await self._collection(target)
        if raw:
            collection = collection.with_options(codec_options=_RAW)
        async with self._session(target.until) as session:
            with self._asking(target.until):
                cursor = collection.find(
                    filter, projection, session=session, limit=limit, batch_size=BATCH
                )
                if sort:
                    cursor = cursor.sort(list(sort))
            async with aclosing(self._read(cursor, target.until)) as documents:
                yield documents

    @asynccontextmanager
    async def aggregate(
        self, target: Target, pipeline: list[Document]
    ) -> AsyncIterator[AsyncIterator[Document]]:
        """The documents that the pipeline makes; on disk it sorts and groups nothing."""
        collection = await self._collection(target)
        async with self._session(target.until) as session:
            with self._asking(target.until):
                cursor = collection.aggregate(
                    pipeline, session=session, batchSize=BATCH, allowDiskUse=False
                )
            async with aclosing(self._read(cursor, target.until)) as documents:
                yield documents

    async def insert(
        self, target: Target, documents: list[Document], *, derived: Collection[int], repeated: bool
    ) -> list[Rejected]:
        """Insert documents that all have an `_id`; what was not inserted, now or by an earlier attempt.

        `derived` are the indexes of those whose ids are this job's own: one that exists is one that
        an earlier attempt inserted. With `repeated` the same holds for other ids whose stored
        document is equal.
        """
        collection = await self._collection(target)
        async with self._session(target.until) as session:
            with self._asking(target.until):
                try:
                    await collection.insert_many(documents, ordered=False, session=session)
                    return []
                except BulkWriteError as error:
                    errors = error.details.get("writeErrors", [])
                    if (
                        not errors
                    ):  # the write concern was not met: what has been written may be lost again
                        raise
            failed = {int(one["index"]): one for one in errors}
            doubles = [index for index, one in failed.items() if one.get("code") == _DUPLICATE]
            stored: dict[bytes, Document] = {}
            with self._asking(target.until):
                ids = [documents[index]["_id"] for index in doubles]
                async for found in collection.find(
                    {"_id": {"$in": ids}}, session=session, batch_size=BATCH
                ):
                    stored[_key(found)] = found
        rejected = []
        for index, one in sorted(failed.items()):
            there = stored.get(_key(documents[index])) if index in doubles else None
            if there is not None and (
                index in derived or (repeated and _same(there, documents[index]))
            ):
                continue
            reason = (
                "its _id exists already" if there is not None else str(one.get("errmsg", "refused"))
            )
            rejected.append(Rejected(index, index in doubles, reason))
        return rejected

    async def begin(self, target: Target, job: str) -> bool:
        """Note that the job begins to write; whether an earlier attempt of it had begun."""
        applied = (await self.database(target.database))[APPLIED]
        with self._asking(target.until):
            try:
                await applied.insert_one({"_id": job, "at": datetime.now(UTC)})
            except DuplicateKeyError:
                return True
        return False

    async def update(
        self, target: Target, job: str, filter: Document, update: Any, *, many: bool, upsert: bool
    ) -> Document:
        """`{matched, modified, upserted}`; applied once where the server has transactions."""

        async def work(
            collection: AsyncIOMotorCollection[Document], session: AsyncIOMotorClientSession
        ) -> Document:
            change = collection.update_many if many else collection.update_one
            done = await change(filter, update, upsert=upsert, session=session)
            upserted = int(done.upserted_id is not None)
            return {
                "matched": done.matched_count,
                "modified": done.modified_count,
                "upserted": upserted,
            }

        return await self._once(target, job, work)

    async def delete(self, target: Target, job: str, filter: Document, *, many: bool) -> Document:
        """`{deleted}`; applied once where the server has transactions."""

        async def work(
            collection: AsyncIOMotorCollection[Document], session: AsyncIOMotorClientSession
        ) -> Document:
            delete = collection.delete_many if many else collection.delete_one
            return {"deleted": (await delete(filter, session=session)).deleted_count}

        return await self._once(target, job, work)

    async def close(self) -> None:
        """End all connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    # ------------------------------------------------------------------------------ how it is asked

    async def _open(self) -> AsyncIOMotorClient[Document]:
        async with self._opening:
            client: AsyncIOMotorClient[Document] | None = self._client
            if client is None:
                given = {key.lower() for key, _ in parse_qsl(urlsplit(self._url).query)}
                options = {
                    key: value for key, value in _DEFAULTS.items() if key.lower() not in given
                }
                made: Callable[[], AsyncIOMotorClient[Document]] = partial(
                    AsyncIOMotorClient, self._url, io_loop=asyncio.get_running_loop(), **options
                )
                try:
                    # In a thread: mongodb+srv:// asks the name servers.
                    client = await asyncio.to_thread(made)
                except PyMongoError as error:
                    raise explained(error, self.name) from None
                self._client = client
            return client

    async def _collection(self, target: Target) -> AsyncIOMotorCollection[Document]:
        check_collection(target.collection)
        return (await self.database(target.database))[target.collection]

    @asynccontextmanager
    async def _session(self, until: float) -> AsyncIterator[AsyncIOMotorClientSession]:
        """A session of one job, so that its commands can be ended on the server when the job is."""
        client = await self._open()
        # Asked first, since commands look for a server as long as they have time: a job should not
        # wait for minutes.
        answer = min(until, time.monotonic() + self._patience)
        try:
            with self._asking(answer):
                hello = await client.admin.command("hello")
                session = await client.start_session()
        except TaskError as error:
            if error.type == "timeout" and answer < until:
                raise unanswered(self.name) from None
            raise
        if self.transactional is None:
            # A replica set, or the router of a sharded cluster: a lone server has none.
            self.transactional = "setName" in hello or hello.get("msg") == "isdbgrid"
        try:
            yield session
        except asyncio.CancelledError:
            # The driver's thread goes on waiting for the reply, and the server works for it, unless
            # it is told.
            with suppress(PyMongoError, TimeoutError), pymongo.timeout(KILL_TIMEOUT):
                async with asyncio.timeout(2 * KILL_TIMEOUT):
                    await client.admin.command("killSessions", [session.session_id])
            raise
        finally:
            with (
                suppress(PyMongoError, InvalidOperation, TimeoutError),
                pymongo.timeout(KILL_TIMEOUT),
            ):
                async with asyncio.timeout(2 * KILL_TIMEOUT):
                    await session.end_session()

    async def _read(self, cursor: Any, until: float) -> AsyncGenerator[Document, None]:
        try:
            while True:
                # Around each step alone: a yield inside would leak the limit to whoever iterates.
                with self._asking(until):
                    try:
                        document = await anext(cursor)
                    except StopAsyncIteration:
                        return
                yield document
        finally:
            with suppress(PyMongoError, TimeoutError), pymongo.timeout(KILL_TIMEOUT):
                async with asyncio.timeout(2 * KILL_TIMEOUT):
                    await cursor.close()

    async def _once(self, target: Target, job: str, work: Work) -> Document:
        """The work, in one transaction with the note that it is done; what an earlier attempt noted, if it did."""
        collection = await self._collection(target)
        async with self._session(target.until) as session:
            with self._asking(target.until):
                if not self.transactional:
                    return await work(collection, session)
                applied = collection.database[APPLIED]
                session.start_transaction(write_concern=WriteConcern("majority"))
                try:
                    note = await applied.find_one({"_id": job}, session=session)
                    if note is not None:
                        await session.abort_transaction()
                        return dict(note["result"])
                    result = await work(collection, session)
                    await applied.insert_one(
                        {"_id": job, "at": datetime.now(UTC), "result": result}, session=session
                    )
                    await session.commit_transaction()
                except PyMongoError:
                    # Not when the job is cancelled: the server would first wait for the command
                    # that `_session` ends.
                    with suppress(PyMongoError):  # it is over already
                        await session.abort_transaction()
                    raise
        return result

    @contextmanager
    def _asking(self, until: float) -> Iterator[None]:
        """The driver's calls inside end in time, on the server too (maxTimeMS), and fail as TaskErrors."""
        rest = until - time.monotonic()
        if rest <= 0:
            raise late()
        try:
            with pymongo.timeout(rest):
                yield
        except (PyMongoError, BSONError, OverflowError) as error:
            raise explained(error, self.name) from None


class MongoConnections:
    """All named servers of one worker."""

    def __init__(self, connections: Mapping[str, MongoConnection]) -> None:
        self._connections = connections

    def __call__(self, name: str) -> MongoConnection:
        """The connection of this name, in any case. Raises TaskError `unknown_connection`."""
        connection = self._connections.get(name.lower())
        if connection is None:
            message = (
                f"there is no MongoDB connection named {name!r}: the worker's settings have none"
            )
            raise TaskError("unknown_connection", message, retryable=False)
        return connection


@asynccontextmanager
async def open_mongo(settings: Settings) -> AsyncIterator[MongoConnections]:
    """The servers of the settings, closed at the end. Raises Misconfigured for a URL that is none."""
    connections = {
        name.lower(): _connection(name.lower(), url) for name, url in settings.mongo.items()
    }
    async with AsyncExitStack() as stack:
        for connection in connections.values():
            stack.push_async_callback(connection.close)
        yield MongoConnections(connections)


def _connection(name: str, url: str) -> MongoConnection:
    setting = f"TANDEM_MONGO__{name.upper()}"
    parts = urlsplit(url)
    if parts.scheme not in ("mongodb", "mongodb+srv"):
        raise Misconfigured(f"{setting}: give mongodb://host:port/database or mongodb+srv://…")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    reach = [one for key, value in pairs if key == "lookup" for one in value.split(",") if one]
    rest = "&".join(f"{key}={quote(value, safe='')}" for key, value in pairs if key != "lookup")
    plain = url.partition("?")[0]
    if rest:
        plain += f"?{rest}" if parts.path else f"/?{rest}"
    database = parts.path.strip("/") or None
    patience = PATIENCE
    try:
        if parts.scheme == "mongodb":  # the other one would ask the name servers
            parsed = parse_uri(plain)
            database = parsed["database"]
            patience = parsed["options"].get(
                "serverSelectionTimeoutMS", patience
            )  # which the driver made seconds
    except (InvalidURI, ConfigurationError, ValueError, TypeError):
        # The driver's words may quote the URL, and with it a password.
        raise Misconfigured(f"{setting}: this is no URL of a MongoDB server") from None
    return MongoConnection(
        name, plain, database=database, reach=frozenset(reach), patience=patience
    )


def _forbidden(message: str) -> TaskError:
    return TaskError("forbidden_database", message, retryable=False)


def _key(document: Document) -> bytes:
    return bson.encode({"_id": document["_id"]})


def _same(stored: Document, ours: Document) -> bool:
    return stored == bson.decode(bson.encode(ours), DECODING)
