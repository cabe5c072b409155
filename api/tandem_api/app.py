"""The application: its routes, what it holds while it serves, and its clock."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
from fastapi import FastAPI
from redis.exceptions import RedisError
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from tandem_api.auth import Keys
from tandem_api.drain import Drain
from tandem_api.edge import Edge
from tandem_api.files import downloads, uploads
from tandem_api.http.problems import HANDLERS
from tandem_api.http.routing import Shortcuts
from tandem_api.jobs import bulk, job, listing, replays
from tandem_api.metrics import Requests
from tandem_api.openapi import document
from tandem_api.operations import health, metrics, queues, tasks
from tandem_api.state import State
from tandem_api.streams import http, websocket
from tandem_api.validation.catalogue import Catalogue
from tandem_api.validation.submission import Submissions
from tandem_shared.cancellation import cancel_and_wait
from tandem_shared.errors import TandemError, Unavailable
from tandem_shared.files.resumable import UploadJoiner
from tandem_shared.files.store import FileStore, open_store
from tandem_shared.files.sweep import sweep
from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.queue.connections import connect
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import Settings
from tandem_shared.streams.reader import StreamSource
from tandem_shared.version import tandem_version

SWEEP = 3600.0  # seconds between two sweeps of the file store, about

log = structlog.get_logger()


class Application(FastAPI):
    """FastAPI, past which requests go that a shortcut leads to: its layers would do nothing for them."""

    shortcuts = Shortcuts(())
    edge: Edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (plain := self.shortcuts.find(scope)) is not None:
            scope["app"] = self
            await self.edge.answer(plain, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """The application; `app.state.drain` is what a server begins before it ends."""
    drain, requests = Drain(), Requests()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            redis = connect(settings.redis_url)
            stack.push_async_callback(redis.aclose)
            lease, keep = settings.lease, settings.keep
            queue = Queue(
                redis, lease=lease, keep=keep, backlog=settings.max_backlog, on_batch=requests.heard
            )
            stack.push_async_callback(queue.close)
            store = await stack.enter_async_context(open_store(settings.store_url))
            joins = UploadJoiner()
            stack.push_async_callback(joins.close)
            ledger = await stack.enter_async_context(open_ledger(settings))
            catalogue = Catalogue(queue)
            clock = asyncio.create_task(
                keep_time(queue, catalogue, min(1.0, settings.lease / 4)), name="clock"
            )
            stack.push_async_callback(cancel_and_wait, clock)
            broom = asyncio.create_task(keep_clean(store, queue, settings.keep), name="broom")
            stack.push_async_callback(cancel_and_wait, broom)
            yield State(
                settings=settings,
                queue=queue,
                catalogue=catalogue,
                submissions=Submissions(catalogue),
                store=store,
                source=StreamSource(queue, store),
                joins=joins,
                ledger=ledger,
                drain=drain,
                requests=requests,
            )

    edge = partial(Edge, keys=Keys(settings.keys), requests=requests, drain=drain)
    app = Application(
        title="Tandem",
        version=tandem_version(),
        lifespan=lifespan,
        openapi_url=None,  # /openapi.json and /docs are ours, see openapi.py
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Our spans are made where a job is: FastAPI would look for a provider in every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        exception_handlers=HANDLERS,
        middleware=[Middleware(edge)],
    )
    app.state.drain = drain
    # The hot ones first: routes are tried one after the other.
    for module in (job, bulk, http, websocket, listing, replays, tasks, queues, health, metrics):
        app.router.routes.extend(module.ROUTES)
    app.router.routes.extend(document.routes())
    # Not by include_router: the routes inside another router could not be asked what methods a path
    # allows.
    for router in (uploads.router, downloads.router):
        app.router.routes.extend(router.routes)
    requests.name(app.router.routes)
    app.shortcuts, app.edge = Shortcuts(app.router.routes), edge(app)
    return app


async def keep_time(queue: Queue, catalogue: Catalogue, pause: float) -> None:
    """Lets time pass in the queue, so that leases end and delays fall due without any worker, and reads the catalogue.

    It survives everything that Redis may do, and says once when that begins and once when it is
    over.
    """
    away = False
    while True:
        try:
            await queue.tick()
            await catalogue.refresh()
            if away:
                log.info("Redis answers again")
            away = False
        except (TandemError, RedisError) as error:
            if not away:
                log.warning("Redis does not serve", error=str(error))
            away = True
        await asyncio.sleep(pause)


async def keep_clean(store: FileStore, queue: Queue, keep: float) -> None:
    """Removes expired uploads, and what jobs left that nobody knows any more, about once an hour on every replica."""
    while True:
        await asyncio.sleep(SWEEP * random.uniform(0.5, 1.5))
        try:
            removed = await sweep(store, keep=keep, alive=queue.exists)
        except Unavailable as error:
            log.warning("the file store could not be swept", error=str(error))
        else:
            log.info("the file store is swept", removed=removed)
