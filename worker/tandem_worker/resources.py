"""What the jobs of one worker share, opened together and closed in the opposite order."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from tandem_shared.files.store import FileStore, open_store
from tandem_shared.settings import Settings
from tandem_worker.connectors.http.client import HttpClient, open_http
from tandem_worker.connectors.mail import Mailer, open_mail
from tandem_worker.connectors.mongo.connections import MongoConnections, open_mongo
from tandem_worker.connectors.sql.connections import SqlConnections, open_sql


@dataclass(frozen=True)
class Resources:
    """The worker's connectors: to the web, to databases, to a mail server, to the file store."""

    http: HttpClient
    sql: SqlConnections
    mongo: MongoConnections
    mail: Mailer
    files: FileStore


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open all of them; connections are made when a job first needs them.

    Raises Misconfigured for an invalid URL of the store or of a database.
    """
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(open_store(settings.store_url))
        http = await stack.enter_async_context(open_http(settings))
        sql = await stack.enter_async_context(open_sql(settings))
        mongo = await stack.enter_async_context(open_mongo(settings))
        mail = await stack.enter_async_context(open_mail(settings))
        yield Resources(http=http, sql=sql, mongo=mongo, mail=mail, files=files)
