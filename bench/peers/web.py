"""Ordinary FastAPI: endpoints that do nothing, and POST and status in front of tuned arq."""

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


class Submission(BaseModel):
    task: str
    payload: Payload


class Status(BaseModel):
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
async def empty_post(submission: Submission) -> Status:
    return Status(id="0", status="queued")


@app.get("/empty/{id}")
async def empty_get(id: str) -> Status:
    return Status(id=id, status="queued")


async def enqueue(redis: Any, submission: Submission) -> Status:
    job = await redis.enqueue_job(submission.task, **submission.payload.model_dump())
    return Status(id=job.job_id, status="queued")


@app.post("/jobs", status_code=202)
async def post(submission: Submission, request: Request) -> Status:
    return await enqueue(request.app.state.redis, submission)


@app.post("/jobs/bulk")
async def bulk(submission: list[Submission], request: Request) -> list[Status]:
    return list(
        await asyncio.gather(*(enqueue(request.app.state.redis, one) for one in submission))
    )


@app.get("/jobs/{id}")
async def show(id: str, request: Request) -> Status:
    status = await Job(id, request.app.state.redis, _deserializer=msgspec.json.decode).status()
    if status == "not_found":
        raise HTTPException(404)
    return Status(id=id, status=status)
