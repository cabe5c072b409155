"""Clients of a chaos run: they submit with idempotency keys, repeat on any doubt, and note what they were told."""

import asyncio
import random
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import aiohttp
import msgspec

from tests.chaos.work import made

PATIENCE = 15.0  # seconds for an answer
RETRY = {"max_attempts": 6, "base": "50ms", "cap": "500ms"}
INSERT = "INSERT INTO applied (key) VALUES ($1)"
FAULTS = (aiohttp.ClientError, TimeoutError, OSError)

# How often each kind of work is chosen.
WEIGHTS = {
    "quick": 30, "slow": 12, "thread": 4, "flaky": 8, "refuses": 3, "late": 2, "poison": 0, "stream": 5, "file": 4,
    "sql": 14, "delayed": 6, "cancelled": 6, "bulk": 6,
}  # fmt: skip


@dataclass
class Told:
    """What a client knows of one submission of its own."""

    key: str
    task: str
    ids: list[str] = field(default_factory=list)  # of every acceptance: all the same, if all is well
    finals: list[tuple[str, str]] = field(default_factory=list)  # (state, ETag) of every final view
    cancelled: bool = False
    count: int = 0  # items that a stream should have
    places: list[str] = field(default_factory=list)  # ids of the entries that a stream gave
    output: list[tuple[int, int]] = field(default_factory=list)  # (attempt, number) of its items
    ended: bool = False
    wrong: list[str] = field(default_factory=list)  # answers that should not have been


def job(kind: str, key: str, chance: random.Random) -> dict[str, Any]:
    """The body of a submission."""
    payload: dict[str, Any] = {"key": key}
    options: dict[str, Any] = {"retry": RETRY}
    task = f"chaos.{kind}"
    match kind:
        case "slow" | "thread":
            payload["seconds"] = chance.choice((0.02, 0.1, 0.5, 2.5))
        case "flaky":
            payload["fails"] = chance.randrange(1, 3)
        case "late":
            options = {"timeout": "300ms", "retry": {**RETRY, "max_attempts": 2}}
        case "stream":
            payload |= {"count": chance.randrange(20, 400), "seconds": chance.choice((0.0, 0.01, 0.05))}
        case "file":
            payload["count"] = chance.choice((10, 300_000, 2_000_000))
        case "sql":
            task = "sql.execute"
            payload = {"connection": "effects", "statements": [{"sql": INSERT, "params": [key]}]}
        case "delayed":
            task, options["delay"] = "chaos.quick", f"{chance.randrange(100, 5000)}ms"
        case "cancelled":
            task, payload["seconds"] = "chaos.slow", 1.0
    return {"task": task, "payload": payload, "options": options}


class Clients:
    """Everybody who submits, by one seed; `told` is their log."""

    def __init__(self, url: str, seed: int, *, weights: dict[str, int] | None = None) -> None:
        self.told: list[Told] = []
        self.requests = 0
        self.repeats = 0  # requests that had to be made again
        self._url, self._seed = url, seed
        self._weights = WEIGHTS | (weights or {})
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None

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
        if self._session is not None:
            await self._session.close()

    async def _client(self, number: int) -> None:
        chance = random.Random(f"{self._seed}-{number}")
        turn = 0
        while not self._stop.is_set():
            turn += 1
            kind = chance.choices(list(self._weights), list(self._weights.values()))[0]
            await self._work(kind, f"{self._seed}-{number}-{turn}", chance)

    async def _work(self, kind: str, key: str, chance: random.Random) -> None:
        if kind == "bulk":
            await self._bulk(key, chance.randrange(20, 100))
            return
        body = job(kind, key, chance)
        told = Told(key, body["task"], count=body["payload"].get("count", 0))
        self.told.append(told)
        id = await self._submit(told, body)
        if kind == "cancelled":
            await asyncio.sleep(chance.uniform(0, 0.6))
            await self._cancel(told, id)
        elif kind == "stream":
            await self._follow(told, id)
        elif kind == "file":
            await self._fetch(told, id)
        elif chance.random() < 0.4:
            await self._wait(told, id)

    # ------------------------------------------------------------------------------------------------ single requests

    async def ask(
        self, method: str, path: str, *, expect: tuple[int, ...], told: Told | None = None, **given: Any
    ) -> tuple[int, bytes, Any]:
        """Status, body and headers: the request is made until its answer leaves no doubt."""
        assert self._session is not None
        while True:
            self.requests += 1
            try:
                async with self._session.request(method, path, **given) as answer:
                    body = await answer.read()
                    if answer.status in expect:
                        return answer.status, body, answer.headers
                    if answer.status != 503 and told is not None:
                        told.wrong.append(f"{method} {path}: {answer.status} {body[:200]!r}")
                        if answer.status < 500:
                            return answer.status, body, answer.headers
            except FAULTS:
                pass
            self.repeats += 1
            await asyncio.sleep(random.uniform(0.05, 0.4))

    async def _submit(self, told: Told, body: dict[str, Any]) -> str:
        _, answer, _ = await self.ask(
            "POST", "/v1/jobs", expect=(202,), told=told, json=body, headers={"Idempotency-Key": told.key}
        )
        id = str(msgspec.json.decode(answer).get("id", ""))
        told.ids.append(id)
        if random.random() < 0.02:  # somebody who did not hear the answer asks once more
            _, answer, _ = await self.ask(
                "POST", "/v1/jobs", expect=(202,), told=told, json=body, headers={"Idempotency-Key": told.key}
            )
            told.ids.append(str(msgspec.json.decode(answer).get("id", "")))
        return id

    async def _bulk(self, key: str, count: int) -> None:
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
        while True:
            _, answer, _ = await self.ask("POST", "/v1/jobs/bulk", expect=(200,), told=many[0], json=items)
            found = msgspec.json.decode(answer)
            for one, told in zip(found, many, strict=True):
                if "id" in one:
                    told.ids.append(one["id"])
                elif one["error"]["status"] != 503:
                    told.wrong.append(str(one))
            if all(told.ids for told in many):
                return
            await asyncio.sleep(0.1)

    async def _cancel(self, told: Told, id: str) -> None:
        told.cancelled = True
        await self.ask("POST", f"/v1/jobs/{id}/cancel", expect=(202,), told=told)
        await self._wait(told, id)

    async def _wait(self, told: Told, id: str) -> dict[str, Any]:
        while True:
            _, body, headers = await self.ask("GET", f"/v1/jobs/{id}?wait=5s", expect=(200,), told=told)
            job: dict[str, Any] = msgspec.json.decode(body)
            if job.get("done", True):
                told.finals.append((job.get("state", ""), headers.get("ETag", "")))
                return job

    async def _fetch(self, told: Told, id: str) -> None:
        job = await self._wait(told, id)
        if job["state"] == "succeeded":
            url = job["files"][0]["url"]
            _, body, _ = await self.ask("GET", url, expect=(200,), told=told)
            if sha256(body).digest() != sha256(made(told.key, told.count)).digest():
                told.wrong.append(f"{url}: other bytes than were made")

    async def _follow(self, told: Told, id: str) -> None:
        """The whole stream, however often it breaks off."""
        assert self._session is not None
        while not told.ended:
            after = {"Last-Event-ID": told.places[-1]} if told.places else {}
            headers = {"Accept": "application/x-ndjson", **after}
            self.requests += 1
            try:
                async with self._session.get(f"/v1/jobs/{id}/stream", headers=headers) as answer:
                    if answer.status == 200:
                        async for line in answer.content:
                            self._heard(told, line)
                    elif answer.status != 503:
                        told.wrong.append(f"stream of {id}: {answer.status} {(await answer.read())[:200]!r}")
                        return
            except FAULTS:
                pass
            if not told.ended:
                self.repeats += 1
                await asyncio.sleep(random.uniform(0.02, 0.2))

    def _heard(self, told: Told, line: bytes) -> None:
        if not line.endswith(b"\n") or not line.strip():
            return  # cut off, or a sign of life
        entry = msgspec.json.decode(line)
        told.places.append(entry["id"])
        if entry["type"] == "output":
            told.output.append((entry["attempt"], entry["data"]["number"]))
        elif entry["type"] == "end":
            told.ended = True
            told.finals.append((entry["data"]["state"], ""))
