"""A Python client of the API, blocking and for asyncio: `docs/client.md` shows it.

    with Client() as client:
        job = client.submit("http.request", {"url": "https://example.org/"})
        print(client.result(job))

Nothing here knows the contract: that is `shared/tandem_jobs/client/protocol.py`, spoken over one of
the two wires below.
"""

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlsplit

from tandem_jobs.client.http import T, _Blocking, _Suspending
from tandem_jobs.client.models import Entry, File, Job
from tandem_jobs.client.protocol import Conversation, Downloadable, Named
from tandem_shared.errors import Misconfigured

URL, API_KEY = "TANDEM_URL", "TANDEM_API_KEY"  # the environment's, for what is not given
DEFAULT_URL = "http://127.0.0.1:8000"  # of `tandem dev` and `tandem api`


class AsyncClient(Conversation):
    """A client for asyncio: every call is a coroutine, every stream an asynchronous generator.

    `url` and `api_key` are TANDEM_URL (http://127.0.0.1:8000) and TANDEM_API_KEY if they are not
    given. Raises Misconfigured for a URL that is none.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience: float = 60.0,
        told: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(_Suspending(*_address(url, api_key)), patience, told)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Client:
    """A client that blocks; several threads may share one. Each method is that of AsyncClient."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience: float = 60.0,
        told: Callable[[str], None] | None = None,
    ) -> None:
        self._said = Conversation(_Blocking(*_address(url, api_key)), patience, told)

    def submit(
        self,
        task: str,
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        wait: float | None = None,
        **options: Any,
    ) -> Job:
        """The job, accepted once; see AsyncClient."""
        return _now(
            self._said.submit(task, payload, idempotency_key=idempotency_key, wait=wait, **options)
        )

    def get(self, job: Named) -> Job:
        return _now(self._said.get(job))

    def wait(self, job: Named, timeout: float | None = None) -> Job:
        """The final job. Raises TimeoutError."""
        return _now(self._said.wait(job, timeout))

    def result(self, job: Named, timeout: float | None = None) -> Any:
        """What the job returned. Raises JobFailed, JobCancelled, TimeoutError."""
        return _now(self._said.result(job, timeout))

    def cancel(self, job: Named) -> Job:
        return _now(self._said.cancel(job))

    def replay(self, job: Named, *, idempotency_key: str | None = None) -> Job:
        """A new job like this one; see AsyncClient."""
        return _now(self._said.replay(job, idempotency_key=idempotency_key))

    def stream(
        self, job: Named, types: str | Iterable[str] = (), after: str | None = None
    ) -> Generator[Entry]:
        """Each entry once and in order, `end` last; see AsyncClient."""
        for portion in self.portions(job, types, after):
            yield from portion

    def portions(
        self, job: Named, types: str | Iterable[str] = (), after: str | None = None
    ) -> Generator[list[Entry]]:
        """The same, in lists of what came together."""
        portions = self._said.portions(job, types, after)
        try:
            while (portion := _now(_next(portions))) is not None:
                yield portion
        finally:
            _now(portions.aclose())

    def upload(
        self,
        source: str | Path | IO[bytes],
        *,
        name: str | None = None,
        content_type: str | None = None,
    ) -> File:
        """An upload of a file; see AsyncClient."""
        return _now(self._said.upload(source, name=name, content_type=content_type))

    def download(self, file: Downloadable, to: str | Path | IO[bytes]) -> int:
        """Write a file to a path or an open file; its size in bytes."""
        return _now(self._said.download(file, to))

    def close(self) -> None:
        _now(self._said.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _address(url: str | None, api_key: str | None) -> tuple[str, str]:
    url = url or os.environ.get(URL) or DEFAULT_URL
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or "?" in url or "#" in url:
        raise Misconfigured(f"{URL}: give http://host:port or https://…")
    key = api_key or os.environ.get(API_KEY) or ""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise Misconfigured(f"{API_KEY}: is no key")
    return url.rstrip("/"), key


# -------------------------------------------------------------------------------------------- wires


def _now(call: Coroutine[Any, Any, T]) -> T:
    """What a coroutine over the blocking wire returns: it never waits for an event loop."""
    try:
        call.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        call.close()
    raise RuntimeError("the blocking wire was suspended")


async def _next(items: AsyncIterator[T]) -> T | None:
    return await anext(items, None)
