"""Clients of a chaos run: they use idempotency keys, repeat requests if in doubt, and keep logs."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import aiohttp
import msgspec

from tests.chaos.check.evidence import SubmissionLog, View
from tests.chaos.followers import FAULTS, follow_lines, follow_socket
from tests.chaos.submissions import RETRY, WEIGHTS, job_request
from tests.chaos.work import generated

ANSWER_SECONDS = 15.0  # without a byte, then the request is repeated
WATCHED_SHARE = 0.4  # of the jobs whose end the client waits for
FETCHES = 20  # of a job's file, until it is there
CROWD_JOBS = 400  # one of them kills its worker
REPEATED_SHARE = 0.02  # of the submissions that are sent again although they were answered


class Answer(NamedTuple):
    """A conclusive answer; times are in seconds since the epoch."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    requested: float
    answered: float


class Clients:
    """All clients, driven by one seed; `submissions` are their logs."""

    def __init__(self, url: str, seed: int, *, weights: Mapping[str, float] = WEIGHTS) -> None:
        self.submissions: list[SubmissionLog] = []
        self.requests = 0
        self.repeats = 0  # requests that had to be sent again
        self._url, self._seed, self._weights = url, seed, weights
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession

    def start(self, count: int) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_read=ANSWER_SECONDS, sock_connect=5)
        self._session = aiohttp.ClientSession(
            self._url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0), trust_env=False
        )
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(count)]

    async def stop(self) -> None:
        """Submit nothing more, and follow everything submitted to its end."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            await self._session.close()

    async def _client(self, number: int) -> None:
        chance = random.Random(f"{self._seed}-{number}")
        turn = 0
        while not self._stop.is_set():
            turn += 1
            kind = chance.choices(list(self._weights), list(self._weights.values()))[0]
            # A new generator for each job, so that timing does not change what is submitted next.
            key = f"{self._seed}-{number}-{turn}"
            await self._run_job(kind, key, random.Random(key))

    async def _run_job(self, kind: str, key: str, chance: random.Random) -> None:
        if kind in ("bulk", "lines", "crowd"):
            tasks = ["chaos.quick"] * chance.randrange(20, 100)
            if kind == "crowd":
                tasks = ["chaos.quick"] * CROWD_JOBS
                tasks[chance.randrange(CROWD_JOBS)] = "chaos.poison"
            await self._bulk(key, tasks, lines=kind == "lines")
            return
        request = job_request(kind, key, chance)
        log = SubmissionLog(key, request.body["task"])
        log.concurrency_key, log.count = request.concurrency_key, request.size
        self.submissions.append(log)
        id = await self._submit(log, request.body)
        if id and chance.random() < REPEATED_SHARE:
            await self._submit(log, request.body)
        if kind == "cancelled":
            await asyncio.sleep(chance.uniform(0, 0.6))
            log.cancelled = True
            await self.ask("POST", f"/v1/jobs/{id}/cancel", expect=(202,), log=log)
            await self._wait(log, id)
        elif kind == "stream":
            await follow_lines(self._session, log, id, self._count_retry)
        elif kind == "socket":
            await follow_socket(self._session, log, id, self._count_retry)
        elif kind == "file":
            await self._fetch(log, id)
        elif kind != "poison" and chance.random() < WATCHED_SHARE:
            await self._wait(log, id)

    def _count_retry(self) -> None:
        self.requests += 1
        self.repeats += 1

    async def ask(
        self, method: str, path: str, *, expect: tuple[int, ...], log: SubmissionLog, **given: Any
    ) -> Answer:
        """Repeat a request until the answer is conclusive; that answer."""
        while True:
            self.requests += 1
            requested = time.time()
            try:
                async with self._session.request(method, path, **given) as response:
                    body = await response.read()
            except FAULTS:
                pass
            else:
                status = response.status
                answer = Answer(status, body, response.headers, requested, time.time())
                if status in expect:
                    return answer
                if status == 404 and log.ids:
                    log.not_found = True
                    return answer
                if status != 503:
                    log.unexpected.append(f"{method} {path}: {status} {body[:200]!r}")
                    if status < 500:
                        return answer
            self.repeats += 1
            await asyncio.sleep(random.uniform(0.05, 0.4))

    async def _submit(self, log: SubmissionLog, body: dict[str, Any]) -> str:
        answer = await self.ask(
            "POST",
            "/v1/jobs",
            expect=(202,),
            log=log,
            json=body,
            headers={"Idempotency-Key": log.key},
        )
        id = str(msgspec.json.decode(answer.body).get("id", ""))
        log.accepted(id, answer.requested, answer.answered)
        return id

    async def _bulk(self, key: str, tasks: Sequence[str], *, lines: bool) -> None:
        logs = [SubmissionLog(f"{key}-{index}", task) for index, task in enumerate(tasks)]
        self.submissions += logs
        items = [
            {
                "task": log.task,
                "payload": {"key": log.key},
                "options": {"retry": RETRY},
                "idempotency_key": log.key,
            }
            for log in logs
        ]
        kind, body = "application/json", msgspec.json.encode(items)
        if lines:
            kind, body = (
                "application/x-ndjson",
                b"".join(msgspec.json.encode(item) + b"\n" for item in items),
            )
        headers = {"Content-Type": kind}
        while not all(log.ids for log in logs):
            answer = await self.ask(
                "POST", "/v1/jobs/bulk", expect=(200,), log=logs[0], data=body, headers=headers
            )
            decoded = [msgspec.json.decode(line) for line in answer.body.splitlines()]
            results = decoded if lines else decoded[0]
            # NDJSON may end early, with a problem.
            for result, log in zip(results, logs, strict=False):
                if "id" in result:
                    log.accepted(result["id"], answer.requested, answer.answered)
                elif result.get("error", result).get("status") != 503:
                    log.unexpected.append(str(result))

    async def _wait(self, log: SubmissionLog, id: str) -> dict[str, Any]:
        while True:
            answer = await self.ask("GET", f"/v1/jobs/{id}?wait=5s", expect=(200,), log=log)
            job: dict[str, Any] = msgspec.json.decode(answer.body)
            if answer.status != 200:
                return {}
            if job["done"]:
                log.finals.append(
                    View(
                        job["state"],
                        answer.headers.get("ETag", ""),
                        answer.requested,
                        answer.answered,
                    )
                )
                return job

    async def _fetch(self, log: SubmissionLog, id: str) -> None:
        for attempt in range(FETCHES):
            job = await self._wait(log, id)
            if job.get("state") != "succeeded":
                return
            url = job["files"][0]["url"]
            answer = await self.ask("GET", url, expect=(200, 404), log=log)
            # A Redis that came back older may not know the job's end until it is written again.
            if answer.status == 404 and attempt < FETCHES - 1:
                await asyncio.sleep(1)
                continue
            if sha256(answer.body).digest() != sha256(generated(log.key, log.count)).digest():
                log.unexpected.append(f"{url}: wrong bytes")
            return
