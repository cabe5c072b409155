"""FastAPI as people write it: endpoints that do nothing, and POST and status in front of tuned arq."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import arq
import msgspec
from arq.connections import RedisSettings
from arq.jobs import Job
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

from bench.peers import driver


class Payload(BaseModel):
    customer: int
    address: str
    items: list[int]
    note: str


class Wanted(BaseModel):
    task: str
    payload: Payload


class Made(BaseModel):
    id: str
    status: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.redis = await arq.create_pool(
        RedisSettings.from_dsn(driver.URL),
        job_serializer=msgspec.json.encode,
        job_deserializer=msgspec.json.decode,
    )
    yield
    await app.state.redis.aclose()


app = FastAPI(lifespan=lifespan)


@app.post("/empty", status_code=202)
async def empty_post(wanted: Wanted) -> Made:
    return Made(id="0", status="queued")


@app.get("/empty/{id}")
async def empty_get(id: str) -> Made:
    return Made(id=id, status="queued")


async def enqueue(redis: Any, wanted: Wanted) -> Made:
    job = await redis.enqueue_job(wanted.task, **wanted.payload.model_dump())
    return Made(id=job.job_id, status="queued")


@app.post("/jobs", status_code=202)
async def post(wanted: Wanted, request: Request) -> Made:
    return await enqueue(request.app.state.redis, wanted)


@app.post("/jobs/bulk")
async def bulk(wanted: list[Wanted], request: Request) -> list[Made]:
    return list(await asyncio.gather(*(enqueue(request.app.state.redis, one) for one in wanted)))


@app.get("/jobs/{id}")
async def status(id: str, request: Request) -> Made:
    found = await Job(id, request.app.state.redis, _deserializer=msgspec.json.decode).status()
    if found == "not_found":
        raise HTTPException(404)
    return Made(id=id, status=found)
