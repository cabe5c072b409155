"""The application: its routes, what it holds while it serves, and its background tasks."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.routing import APIRoute
from redis.exceptions import RedisError

from tandem_api.auth import ApiKeys
from tandem_api.drain import Drain
from tandem_api.edge import Edge
from tandem_api.files import downloads, uploads
from tandem_api.http.memory import request_memory
from tandem_api.http.problems import HANDLERS
from tandem_api.http.routing import for_head
from tandem_api.jobs import bulk, job, listing, replays
from tandem_api.metrics import RequestMetrics
from tandem_api.openapi import document, pages
from tandem_api.operations import health, metrics, queues, tasks
from tandem_api.origin import PagePolicy
from tandem_api.state import AppState
from tandem_api.streams import http, websocket
from tandem_api.validation.catalogue import Catalogue
from tandem_api.validation.submission import Submissions
from tandem_shared.cancellation import cancel_and_wait
from tandem_shared.errors import TandemError, Unavailable
from tandem_shared.files.resumable import UploadJoiner
from tandem_shared.files.store import FileStore, open_store
from tandem_shared.files.sweep import sweep
from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.ledger.lost import LostJobs
from tandem_shared.queue.connections import connect
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import Settings
from tandem_shared.setup.checks import SetupChecks
from tandem_shared.setup.watch import SetupWatch
from tandem_shared.streams.reader import StreamSource
from tandem_shared.version import tandem_version

SWEEP_SECONDS = 3600.0  # between two sweeps of the file store, ±50 % at random
LOST_JOBS_SECONDS = 600.0  # between two searches for jobs that Redis has lost, ±50 %
TICK_SECONDS = 1.0  # between two ticks of the queue, at most

log = structlog.get_logger()


def create_app(settings: Settings) -> Edge:
    """The ASGI application. Its server must begin its `drain` before it shuts down."""
    routes = all_routes()
    drain, request_metrics = Drain(), RequestMetrics(routes)
    fastapi = FastAPI(
        title="Tandem",
        description=document.ABOUT,
        openapi_tags=document.TAGS,
        version=tandem_version(),
        routes=routes,
        lifespan=partial(open_state, settings=settings, drain=drain, metrics=request_metrics),
        openapi_url=None,  # /openapi.json and /docs are ours, see openapi/document.py
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Spans belong to jobs. FastAPI would look for a provider in every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        exception_handlers=HANDLERS,
    )
    return Edge(
        fastapi,
        ApiKeys(settings.keys),
        request_metrics,
        drain,
        None if settings.keys else PagePolicy(settings),
        root_path=settings.root_path,
    )


def all_routes() -> list[Any]:
    """The routes of all endpoints; every GET answers HEAD too, unless HEAD has its own endpoint."""
    routers = (
        job.plain, job.router, bulk.router, http.router, websocket.router, listing.router,
        replays.router, tasks.router, queues.router, health.router, metrics.router,
        document.router, pages.router, uploads.router, downloads.router,
    )  # fmt: skip
    # `include_router` would nest the routes, and the Allow header of a 405 needs them in one list.
    routes = [route for router in routers for route in router.routes]
    return [
        *routes,
        *(for_head(one) for one in routes if isinstance(one, APIRoute) and one.methods == {"GET"}),
    ]


@asynccontextmanager
async def open_state(
    fastapi: FastAPI, *, settings: Settings, drain: Drain, metrics: RequestMetrics
) -> AsyncIterator[AppState]:
    """The lifespan: opens what requests need, runs the background tasks, and closes it all."""
    async with AsyncExitStack() as stack:
        redis = connect(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        queue = Queue(
            redis,
            lease=settings.lease,
            keep=settings.keep,
            backlog=settings.max_backlog,
            on_batch=metrics.redis_answered,
        )
        stack.push_async_callback(queue.close)
        with suppress(Unavailable):  # else with the first read of the catalogue
            await queue.clock.sync()
        store = await stack.enter_async_context(open_store(settings.store_url))
        joiner = UploadJoiner()
        stack.push_async_callback(joiner.close)
        ledger = await stack.enter_async_context(open_ledger(settings))
        catalogue = Catalogue(queue)
        pause = min(TICK_SECONDS, settings.lease / 4)  # so that short leases end in time
        lost = LostJobs(ledger, queue)
        setup = SetupWatch(SetupChecks(settings, redis, queue, store, ledger))
        for task in (
            asyncio.create_task(keep_ticking(queue, catalogue, pause), name="tick"),
            asyncio.create_task(keep_sweeping(store, queue, settings.keep), name="sweep"),
            asyncio.create_task(keep_ending_lost_jobs(lost), name="lost jobs"),
            asyncio.create_task(setup.run(), name="setup"),
        ):
            stack.push_async_callback(cancel_and_wait, task)
        yield AppState(
            settings=settings,
            queue=queue,
            catalogue=catalogue,
            submissions=Submissions(catalogue, queue.clock.now, settings.queues_allowed),
            openapi=document.Document(fastapi, catalogue, settings).read,
            store=store,
            source=StreamSource(queue, store, settings.root_path),
            joiner=joiner,
            ledger=ledger,
            lost=lost,
            setup=setup,
            drain=drain,
            metrics=metrics,
            memory=request_memory(settings.bulk_spool),
        )


async def keep_ticking(queue: Queue, catalogue: Catalogue, pause: float) -> None:
    """Ticks the queue every `pause` seconds, and reads the catalogue.

    So leases end and delayed jobs become due even without a worker. Failures of Redis are logged
    when they begin and when they are over.
    """
    failing = False
    while True:
        try:
            if ended := await queue.tick():
                log.warning("leases of lost workers have ended", leases=ended)
            await catalogue.refresh()
            if failing:
                log.info("Redis answers again")
            failing = False
        except (TandemError, RedisError) as error:
            if not failing:
                log.warning("Redis does not answer", error=str(error))
            failing = True
        await asyncio.sleep(pause)


async def keep_sweeping(store: FileStore, queue: Queue, keep: float) -> None:
    """Removes expired uploads and the files of deleted jobs, about hourly on every replica."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.5, 1.5))
        try:
            now = await queue.clock.earliest()
            removed = await sweep(store, now=now, keep=keep, alive=queue.exists)
        except Unavailable as error:
            log.warning("the file store could not be swept", error=str(error))
        else:
            log.info("the file store was swept", removed=removed)


async def keep_ending_lost_jobs(lost: LostJobs) -> None:
    """Ends jobs that only the ledger has, in every replica; those that are asked for end before."""
    while True:
        await asyncio.sleep(LOST_JOBS_SECONDS * random.uniform(0.5, 1.5))
        try:
            await lost.sweep()
        except (TandemError, RedisError) as error:
            log.warning("lost jobs could not be looked for", error=str(error))
