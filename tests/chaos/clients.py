"""Clients of a chaos run: they submit with idempotency keys, repeat on any doubt, and note what they were told."""

import asyncio
import random
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import aiohttp
import msgspec

from tests.chaos.check.evidence import Told, View
from tests.chaos.followers import FAULTS, follow_lines, follow_socket
from tests.chaos.submissions import RETRY, WEIGHTS, work
from tests.chaos.work import made

PATIENCE = 15.0  # seconds for an answer
LOOKS = 0.4  # of the jobs whose end is waited for
TWICE = 0.02  # of the clients that did not hear an answer, and ask once more


class Answer(NamedTuple):
    """One that leaves no doubt, to what was asked at `asked`."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    asked: float
    answered: float


class Clients:
    """Everybody who submits, by one seed; `told` is their log."""

    def __init__(self, url: str, seed: int, *, weights: Mapping[str, float] = WEIGHTS) -> None:
        self.told: list[Told] = []
        self.requests = 0
        self.repeats = 0  # requests that had to be made again
        self._url, self._seed, self._weights = url, seed, weights
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession

    def start(self, count: int) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_read=PATIENCE, sock_connect=5)
        self._session = aiohttp.ClientSession(
            self._url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0), trust_env=False
        )
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(count)]

    async def stop(self) -> None:
        """No more is submitted; what is under way is seen through."""
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
            # A generator of its own: how long the last one took changes nothing of the next.
            await self._work(
                kind,
                f"{self._seed}-{number}-{turn}",
                random.Random(f"{self._seed}-{number}-{turn}"),
            )

    async def _work(self, kind: str, key: str, chance: random.Random) -> None:
        if kind in ("bulk", "lines"):
            await self._bulk(key, chance.randrange(20, 100), lines=kind == "lines")
            return
        one = work(kind, key, chance)
        told = Told(key, one.body["task"], held=one.held, count=one.items)
        self.told.append(told)
        id = await self._submit(told, one.body)
        if id and chance.random() < TWICE:
            await self._submit(told, one.body)
        if kind == "cancelled":
            await asyncio.sleep(chance.uniform(0, 0.6))
            told.cancelled = True
            await self.ask("POST", f"/v1/jobs/{id}/cancel", expect=(202,), told=told)
            await self._wait(told, id)
        elif kind == "stream":
            await follow_lines(self._session, told, id, self._again)
        elif kind == "socket":
            await follow_socket(self._session, told, id, self._again)
        elif kind == "file":
            await self._fetch(told, id)
        elif kind != "poison" and chance.random() < LOOKS:
            await self._wait(told, id)

    def _again(self) -> None:
        self.requests += 1
        self.repeats += 1

    # ------------------------------------------------------------------------------ single requests

    async def ask(
        self, method: str, path: str, *, expect: tuple[int, ...], told: Told, **given: Any
    ) -> Answer:
        """The answer: the request is made again until there is no doubt."""
        while True:
            self.requests += 1
            asked = time.time()
            try:
                async with self._session.request(method, path, **given) as found:
                    answer = Answer(
                        found.status, await found.read(), found.headers, asked, time.time()
                    )
            except FAULTS:
                pass
            else:
                if answer.status in expect:
                    return answer
                if answer.status == 404 and told.ids:
                    told.gone = True
                    return answer
                if answer.status != 503:
                    told.wrong.append(f"{method} {path}: {answer.status} {answer.body[:200]!r}")
                    if answer.status < 500:
                        return answer
            self.repeats += 1
            await asyncio.sleep(random.uniform(0.05, 0.4))

    async def _submit(self, told: Told, body: dict[str, Any]) -> str:
        answer = await self.ask(
            "POST",
            "/v1/jobs",
            expect=(202,),
            told=told,
            json=body,
            headers={"Idempotency-Key": told.key},
        )
        id = str(msgspec.json.decode(answer.body).get("id", ""))
        told.accepted(id, answer.asked, answer.answered)
        return id

    async def _bulk(self, key: str, count: int, *, lines: bool) -> None:
        many = [Told(f"{key}-{index}", "chaos.quick") for index in range(count)]
        self.told += many
        items = [
            {
                "task": one.task,
                "payload": {"key": one.key},
                "options": {"retry": RETRY},
                "idempotency_key": one.key,
            }
            for one in many
        ]
        kind, body = "application/json", msgspec.json.encode(items)
        if lines:
            kind, body = (
                "application/x-ndjson",
                b"".join(msgspec.json.encode(item) + b"\n" for item in items),
            )
        headers = {"Content-Type": kind}
        while not all(told.ids for told in many):
            answer = await self.ask(
                "POST", "/v1/jobs/bulk", expect=(200,), told=many[0], data=body, headers=headers
            )
            found = [msgspec.json.decode(line) for line in answer.body.splitlines()]
            for one, told in zip(
                found if lines else found[0], many, strict=False
            ):  # NDJSON may end with a problem
                if "id" in one:
                    told.accepted(one["id"], answer.asked, answer.answered)
                elif one.get("error", one).get("status") != 503:
                    told.wrong.append(str(one))

    async def _wait(self, told: Told, id: str) -> dict[str, Any]:
        while True:
            answer = await self.ask("GET", f"/v1/jobs/{id}?wait=5s", expect=(200,), told=told)
            job: dict[str, Any] = msgspec.json.decode(answer.body)
            if answer.status != 200:
                return {}
            if job["done"]:
                told.finals.append(
                    View(
                        job["state"], answer.headers.get("ETag", ""), answer.asked, answer.answered
                    )
                )
                return job

    async def _fetch(self, told: Told, id: str) -> None:
        job = await self._wait(told, id)
        if job.get("state") == "succeeded":
            url = job["files"][0]["url"]
            answer = await self.ask("GET", url, expect=(200,), told=told)
            if sha256(answer.body).digest() != sha256(made(told.key, told.count)).digest():
                told.wrong.append(f"{url}: other bytes than were made")
