"""The file store, by URL over obstore: what clients upload and what jobs produce.

    uploads/<id>/data, uploads/<id>/meta.json    an upload; its meta.json is written last and
    publishes it uploads/<id>/begun.json, uploads/<id>/parts/<offset>    one that comes in parts and
    is not finished, see parts.py
    jobs/<job id>/<stamp>/<name>                 a file of the attempt that was claimed at `stamp`
                                                 (µs); the names that
                                                 the accepted finish puts into the record are
                                                 published, no others

An object appears whole or not at all: a local one is written to a temporary name beside it and then
renamed, a remote one is a multipart upload that ends with one call. A process that dies leaves a
temporary behind, which `sweep` removes (of remote stores the bucket's own rule for unfinished
uploads does it). A local store does not call fsync, so what a loss of power takes is up to the file
system; readers then meet Unavailable or NotFound, since sizes are compared.
"""

import asyncio
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store, from_url

from tandem_shared.errors import Misconfigured, NotFound, TooLarge, Unavailable
from tandem_shared.files.names import content_disposition

if TYPE_CHECKING:
    from obstore import Attributes  # types of its stubs alone
    from obstore.store import ClientConfig

CALL_TIMEOUT_SECONDS = 30.0  # seconds, of each call to the store
CLOSE_TIMEOUT_SECONDS = (
    120.0  # of the call that makes a written object appear: a remote store joins its parts in it
)
CHUNK_BYTES = 1 << 20  # bytes that are read, hashed and written at once
MAX_PARTS_IN_FLIGHT = 4  # of one object: a write holds at most these and the one being filled
_OS_ERROR = re.compile(r"(?:\(os error |\[Errno )([0-9]{1,4})[)\]]")
_TEMPORARY = re.compile(r".*#[0-9]+")  # as the local store names what it has not yet renamed


class WriteResult(NamedTuple):
    """What a finished write stored."""

    size: int  # bytes
    sha256: str  # hexadecimal


class StoredObject(NamedTuple):
    """One object of a listing."""

    path: str
    size: int  # bytes
    modified: float  # seconds since the epoch


class FileStore:
    """Objects by path. Its methods raise Unavailable for a store that fails or does not answer in time.

    Paths are made by this house (`upload_path`, `job_path`), never taken from a caller as they are.
    """

    def __init__(
        self, store: obstore.store.ObjectStore, *, root: Path | None = None, remote: bool = False
    ) -> None:
        self._store = store
        self._root = root  # of a local store
        self._remote = remote
        self.part_bytes = 8 << 20 if remote else CHUNK_BYTES  # bytes, what is worth a call
        self._span = 4 << 20 if remote else CHUNK_BYTES

    async def write(
        self,
        path: str,
        data: bytes | AsyncIterable[bytes],
        *,
        limit: int | None = None,
        name: str | None = None,
        content_type: str | None = None,
    ) -> WriteResult:
        """Store the bytes under `path` in place of what was there; nothing appears unless all of it came.

        `name` and `content_type` are what a remote store says to whoever comes with a signed URL.
        Raises TooLarge as soon as there are more than `limit` bytes, and whatever `data` raises.
        """
        attributes = _attributes(name, content_type) if self._remote else {}
        digest, size = hashlib.sha256(), 0
        async with AsyncExitStack() as undo:
            writer = obstore.open_writer_async(
                self._store,
                path,
                attributes=attributes,
                buffer_size=self.part_bytes,
                max_concurrency=MAX_PARTS_IN_FLIGHT,
            )
            undo.push_async_exit(writer)
            async for piece in _pieces(data, limit):
                size += len(piece)
                await _digest(digest, piece)
                async with _asking(path):
                    await writer.write(piece)
            undo.pop_all()
        async with _asking(path, CLOSE_TIMEOUT_SECONDS):
            await writer.close()
        return WriteResult(size, digest.hexdigest())

    async def put(self, path: str, data: bytes) -> None:
        """Store a few MiB that are in memory, in place of what was there: one call, and nobody learns their hash."""
        async with _asking(path):
            await obstore.put_async(self._store, path, data, use_multipart=False)

    async def create(self, path: str, data: bytes) -> bool:
        """Store an object unless there is one: of several at once one alone is first, and True."""
        async with _asking(path):
            try:
                await obstore.put_async(self._store, path, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    async def size(self, path: str) -> int:
        """Bytes of the object. Raises NotFound."""
        async with _asking(path):
            return int((await obstore.head_async(self._store, path))["size"])

    async def read(
        self, path: str, start: int = 0, end: int | None = None
    ) -> AsyncGenerator[bytes]:
        """The bytes from `start` up to `end` (exclusive; None: all) in pieces, each fetched when it is asked for.

        Raises NotFound; of a remote store also between two pieces, if the object is removed
        meanwhile.
        """
        if end is None:
            end = await self.size(path)
        descriptor = None
        try:
            if self._root is not None:
                async with _asking(path):
                    # Opened once, and without a copy between two libraries: half the work of asking
                    # obstore.
                    descriptor = await asyncio.to_thread(
                        os.open, self._root / path, os.O_RDONLY | os.O_CLOEXEC
                    )
            while start < end:
                async with _asking(path):
                    stop = min(start + self._span, end)
                    if descriptor is None:
                        piece = bytes(
                            await obstore.get_range_async(self._store, path, start=start, end=stop)
                        )
                    else:
                        piece = await asyncio.to_thread(os.pread, descriptor, stop - start, start)
                if not piece:
                    raise Unavailable("a stored file is shorter than it was when it was written")
                start += len(piece)
                yield piece
        finally:
            if descriptor is not None:
                os.close(descriptor)

    async def load(self, path: str, limit: int) -> bytes:
        """The whole object, by one call: it may be replaced meanwhile. Raises NotFound, and TooLarge above `limit`."""
        async with _asking(path):
            found = await obstore.get_async(self._store, path)
            if found.meta["size"] > limit:
                raise TooLarge("the file", limit)
            return bytes(await found.bytes_async())

    async def delete(self, path: str) -> None:
        """Remove the object if it is there."""
        with suppress(NotFound):
            async with _asking(path):
                await obstore.delete_async(self._store, path)

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        """The objects under a prefix of whole path segments, in no order."""
        pages = aiter(obstore.list(self._store, prefix, chunk_size=500))
        while True:
            try:
                async with _asking(prefix):
                    page = await anext(pages)
            except StopAsyncIteration:
                return
            for meta in page:
                yield StoredObject(meta["path"], meta["size"], meta["last_modified"].timestamp())

    async def delete_tree(self, prefix: str) -> None:
        """Remove every object under a prefix of whole path segments."""
        async for stat in self.list(prefix):
            await self.delete(stat.path)

    async def presign(self, path: str, seconds: float) -> str | None:
        """A URL by which anybody may GET the object for so long, None where the store has no such thing."""
        if not isinstance(self._store, S3Store | GCSStore | AzureStore):
            return None
        async with _asking(path):
            return await obstore.sign_async(self._store, "GET", path, timedelta(seconds=seconds))

    async def ping(self) -> None:
        """Raises Unavailable unless the store answers."""
        with suppress(NotFound):
            await self.size("uploads/ping")

    async def drop_temporaries(self, before: float, limit: int) -> int:
        """Remove up to `limit` temporaries of dead writers, and empty directories, not touched since `before`."""
        if self._root is None:
            return 0
        try:
            return await asyncio.to_thread(_drop_temporaries, self._root, before, limit)
        except OSError as error:
            raise Unavailable(f"the file store failed ({_reason(error)})") from error


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[FileStore]:
    """The store at `file:///path` (made if missing), `memory://`, `s3://bucket/prefix`, `gs://…` or `az://…`.

    Credentials and endpoints of remote stores come from their usual environment variables (`AWS_…`,
    `GOOGLE_…`, `AZURE_…`). An endpoint without TLS needs `AWS_ALLOW_HTTP=true`. Raises
    Misconfigured.
    """
    scheme = urlsplit(url).scheme
    if scheme == "file":
        root = await asyncio.to_thread(_local_root, url)
        yield FileStore(LocalStore(root, automatic_cleanup=True), root=root)
        return
    try:
        if scheme == "memory":
            store = from_url("memory:///")
        else:
            store = from_url(
                url,
                client_options=_client_options(),
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=20)},
            )
    except (BaseError, ValueError, OSError) as error:
        # Only the sentence: what follows it shows the URL in all its parts, with any password.
        reason = str(error).partition("\n")[0].replace(url, "the URL")
        raise Misconfigured(f"TANDEM_STORE_URL: {reason}") from None
    yield FileStore(store, remote=scheme != "memory")


def _client_options() -> "ClientConfig":
    options: ClientConfig = {"connect_timeout": "5s", "timeout": "25s"}
    # Given any options, obstore does not look for this one in the environment.
    if os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1"):
        options["allow_http"] = True
    return options


def _local_root(url: str) -> Path:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if (
        parts.netloc not in ("", "localhost")
        or not path.startswith("/")
        or "\0" in path
        or parts.query
    ):
        raise Misconfigured("TANDEM_STORE_URL: a local store is file:/// and an absolute path")
    root = Path(path)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as probe:
            probe.write(b"x")
    except OSError as error:
        raise Misconfigured(f"TANDEM_STORE_URL: cannot write to {root}: {error.strerror}") from None
    return root


@asynccontextmanager
async def _asking(path: str, seconds: float = CALL_TIMEOUT_SECONDS) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except FileNotFoundError:
        raise NotFound("file", path) from None
    except TimeoutError:
        raise Unavailable(f"the file store did not answer within {seconds:g} s") from None
    except (BaseError, OSError, ValueError) as error:
        raise Unavailable(f"the file store failed ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    # For clients too: what else an error says names paths. The library tells the system's number in
    # its text alone.
    number = _OS_ERROR.search(str(error))
    return os.strerror(int(number[1])) if number else type(error).__name__


def _attributes(name: str | None, content_type: str | None) -> "Attributes":
    attributes: Attributes = {}
    if name is not None:
        attributes["Content-Disposition"] = content_disposition(name)
    if content_type is not None and content_type.isascii() and content_type.isprintable():
        attributes["Content-Type"] = content_type
    return attributes


async def _pieces(data: bytes | AsyncIterable[bytes], limit: int | None) -> AsyncIterator[bytes]:
    """The same bytes in pieces of PIECE, the last one shorter: a call of the store costs more than joining bytes."""
    size, filled = 0, bytearray()
    async for chunk in _once(data) if isinstance(data, bytes) else data:
        size += len(chunk)
        if limit is not None and size > limit:
            raise TooLarge("the file", limit)
        rest = memoryview(chunk)
        while len(filled) + len(rest) >= CHUNK_BYTES:
            room = CHUNK_BYTES - len(filled)
            yield bytes(filled) + rest[:room]
            filled.clear()
            rest = rest[room:]
        filled += rest
    if filled:
        yield bytes(filled)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _digest(digest: "hashlib._Hash", piece: bytes) -> None:
    if len(piece) < 64 << 10:
        digest.update(piece)  # sooner done than handed to a thread
    else:
        await asyncio.to_thread(digest.update, piece)


def _drop_temporaries(root: Path, before: float, limit: int) -> int:
    removed = 0
    for directory, _, files in os.walk(root, topdown=False):
        if directory == str(root):
            break
        for file in filter(_TEMPORARY.fullmatch, files):
            with suppress(FileNotFoundError):
                path = Path(directory, file)
                if removed < limit and path.stat().st_mtime < before:
                    path.unlink()
                    removed += 1
        # A directory that got its last file just now is not empty, and one that got none yet is
        # young.
        with suppress(OSError):
            if Path(directory).stat().st_mtime < before:
                Path(directory).rmdir()
    return removed


# -------------------------------------------------------------------------------------- jobs' files
