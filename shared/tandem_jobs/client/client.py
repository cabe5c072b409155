"""A Python client of the API, blocking and for asyncio; see `docs/client.md`.

    with Client() as client:
        job = client.submit("http.request", {"url": "https://example.org/"})
        print(client.result(job))

`shared/tandem_jobs/client/protocol.py` has the calls, `shared/tandem_jobs/client/http.py` the two
transports below them.
"""

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlsplit

from tandem_jobs.client.http import AsyncTransport, BlockingTransport, T
from tandem_jobs.client.models import Entry, File, Job
from tandem_jobs.client.protocol import ApiCalls, Downloadable, JobOrId
from tandem_shared.errors import Misconfigured

URL, API_KEY = "TANDEM_URL", "TANDEM_API_KEY"  # environment variables
DEFAULT_URL = "http://127.0.0.1:8000"  # of `tandem dev` and `tandem api`


class AsyncClient(ApiCalls):
    """A client for asyncio: every call is a coroutine, every stream an asynchronous generator.

    `url` and `api_key` default to TANDEM_URL (http://127.0.0.1:8000) and TANDEM_API_KEY. Raises
    Misconfigured for an invalid URL or key.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience: float = 60.0,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(AsyncTransport(*_address(url, api_key)), patience, on_retry)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Client:
    """A client that blocks; threads may share one. Its methods are documented at AsyncClient."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience: float = 60.0,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        self._calls = ApiCalls(BlockingTransport(*_address(url, api_key)), patience, on_retry)

    def submit(
        self,
        task: str,
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        wait: float | None = None,
        **options: Any,
    ) -> Job:
        """Submit a job, once however often the connection breaks."""
        return _finish(
            self._calls.submit(task, payload, idempotency_key=idempotency_key, wait=wait, **options)
        )

    def get(self, job: JobOrId) -> Job:
        """The job as it is now."""
        return _finish(self._calls.get(job))

    def wait(self, job: JobOrId, timeout: float | None = None) -> Job:
        """The final job. Raises TimeoutError."""
        return _finish(self._calls.wait(job, timeout))

    def result(self, job: JobOrId, timeout: float | None = None) -> Any:
        """What the job returned. Raises JobFailed, JobCancelled, TimeoutError."""
        return _finish(self._calls.result(job, timeout))

    def cancel(self, job: JobOrId) -> Job:
        """Request the job's cancellation; a final job stays as it is."""
        return _finish(self._calls.cancel(job))

    def replay(self, job: JobOrId, *, idempotency_key: str | None = None) -> Job:
        """Run a failed or cancelled job again as a new job."""
        return _finish(self._calls.replay(job, idempotency_key=idempotency_key))

    def stream(
        self, job: JobOrId, types: str | Iterable[str] = (), after: str | None = None
    ) -> Generator[Entry]:
        """Each entry once and in order, the last one of type `end`."""
        for entries in self.stream_chunks(job, types, after):
            yield from entries

    def stream_chunks(
        self, job: JobOrId, types: str | Iterable[str] = (), after: str | None = None
    ) -> Generator[list[Entry]]:
        """The entries of `stream`, in lists of those that arrived together."""
        chunks = self._calls.stream_chunks(job, types, after)
        try:
            while (entries := _finish(_next(chunks))) is not None:
                yield entries
        finally:
            _finish(chunks.aclose())

    def upload(
        self,
        source: str | Path | IO[bytes],
        *,
        name: str | None = None,
        content_type: str | None = None,
    ) -> File:
        """Upload a file."""
        return _finish(self._calls.upload(source, name=name, content_type=content_type))

    def download(self, file: Downloadable, to: str | Path | IO[bytes]) -> int:
        """Write a file to a path or an open file; its size in bytes."""
        return _finish(self._calls.download(file, to))

    def close(self) -> None:
        """Close the connections."""
        _finish(self._calls.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _address(url: str | None, api_key: str | None) -> tuple[str, str]:
    """The URL and the key to use."""
    url = url or os.environ.get(URL) or DEFAULT_URL
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or "?" in url or "#" in url:
        raise Misconfigured(f"{URL}: not the URL of an API; use http://host:port or https://host")
    key = api_key or os.environ.get(API_KEY) or ""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise Misconfigured(f"{API_KEY}: not a valid key; a key is printable ASCII without spaces")
    return url.rstrip("/"), key


def _finish(call: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine over the blocking transport, which never suspends."""
    try:
        call.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        call.close()
    raise RuntimeError("a call over the blocking transport was suspended")


async def _next(items: AsyncIterator[T]) -> T | None:
    return await anext(items, None)
