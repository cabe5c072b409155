"""The file store, by URL over obstore: what clients upload and what jobs produce.

    uploads/<id>/…                  a client's file, see uploads.py
    jobs/<job id>/<stamp>/<name>    a file of the attempt that was claimed at `stamp` (µs); only the
                                    names that the accepted finish puts into the record are
                                    published
    jobs/<job id>/output/…          older parts of the job's output, see streams/segments.py

An object appears whole or not at all: a local one is renamed from a temporary name beside it, a
remote one is a multipart upload that a single call completes. A process that dies leaves its
temporary behind, which `sweep` removes (in a remote store, the bucket's rule for incomplete uploads
does). A local store does not call fsync, so after a power loss files may be missing or short;
readers notice, since sizes are compared, and get NotFound or Unavailable.
"""

import asyncio
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store, from_url

from tandem_shared.errors import Misconfigured, NotFound, TooLarge, Unavailable
from tandem_shared.files.names import content_disposition

if TYPE_CHECKING:
    from obstore import Attributes  # exists in obstore's stubs only
    from obstore.store import ClientConfig

CALL_TIMEOUT_SECONDS = 30.0
# The call that completes a written object may take longer: a remote store joins its parts in it.
CLOSE_TIMEOUT_SECONDS = 120.0
CHUNK_BYTES = 1 << 20  # read, hashed and written at once
REMOTE_PART_BYTES = 8 << 20
REMOTE_READ_BYTES = 4 << 20
MAX_PARTS_IN_FLIGHT = 4  # of one object: a write buffers these and the one being filled
MIN_THREAD_BYTES = 64 << 10  # fewer bytes are hashed faster than handed to a thread
_OS_ERROR = re.compile(r"(?:\(os error |\[Errno )([0-9]{1,4})[)\]]")
# Parts of a store's error, and what to look at.
_REASONS = {
    "NoSuchBucket": "the bucket does not exist",
    "InvalidAccessKeyId": "it does not know the access key",
    "SignatureDoesNotMatch": "it refuses the secret key",
    "AccessDenied": "it denies access to the bucket",
    "dns error": "the host name is unknown",
    "169.254.169.254": "no credentials are set, such as AWS_ACCESS_KEY_ID",
}
_TEMPORARY = re.compile(r".*#[0-9]+")  # a file that the local store has not renamed yet


class WriteResult(NamedTuple):
    """What a completed write stored."""

    size: int  # bytes
    sha256: str  # hexadecimal


class StoredObject(NamedTuple):
    """One object of a listing."""

    path: str
    size: int  # bytes
    modified: float  # seconds since the epoch


class FileStore:
    """Objects by path. All methods raise Unavailable if the store fails or does not answer in time.

    Paths come from `job_path` and `upload_folder`, never from a client as they are.
    """

    def __init__(
        self, store: obstore.store.ObjectStore, *, root: Path | None = None, remote: bool = False
    ) -> None:
        self._store = store
        self._root = root  # of a local store
        self._remote = remote
        self.part_bytes = REMOTE_PART_BYTES if remote else CHUNK_BYTES  # per call
        self.read_bytes = REMOTE_READ_BYTES if remote else CHUNK_BYTES

    async def write(
        self,
        path: str,
        data: bytes | AsyncIterable[bytes],
        *,
        limit: int | None = None,
        name: str | None = None,
        content_type: str | None = None,
    ) -> WriteResult:
        """Store the bytes under `path`, replacing an older object, once all of them have come.

        A remote store serves them under signed URLs with `name` and `content_type`. Raises TooLarge
        as soon as there are more than `limit` bytes, and whatever `data` raises.
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
            async for chunk in _chunks(data, limit):
                size += len(chunk)
                if len(chunk) < MIN_THREAD_BYTES:
                    digest.update(chunk)
                else:
                    await asyncio.to_thread(digest.update, chunk)
                async with _store_call(path, writes=True):
                    await writer.write(chunk)
            undo.pop_all()
        async with _store_call(path, CLOSE_TIMEOUT_SECONDS, writes=True):
            await writer.close()
        return WriteResult(size, digest.hexdigest())

    async def put(self, path: str, data: bytes, *, replace: bool = True) -> bool:
        """Store up to a few MiB in one call, which is cheaper than `write`.

        Without `replace` it returns False if there is an object already, and of several concurrent
        calls one returns True.
        """
        mode: Literal["overwrite", "create"] = "overwrite" if replace else "create"
        async with _store_call(path, writes=True):
            try:
                await obstore.put_async(self._store, path, data, mode=mode, use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

    async def size(self, path: str) -> int | None:
        """The object's size in bytes; None if it does not exist."""
        with suppress(NotFound):
            async with _store_call(path):
                return int((await obstore.head_async(self._store, path))["size"])
        return None

    async def read(
        self, path: str, start: int = 0, end: int | None = None, piece: int | None = None
    ) -> AsyncGenerator[bytes]:
        """Yield the bytes from `start` to `end` (exclusive; None: to the end), fetched as needed.

        At most `piece` bytes at a time, else `read_bytes`.

        Raises NotFound; in a remote store also between two chunks, if the object is removed then.
        """
        if end is None:
            end = await self.size(path)
        if end is None:
            raise NotFound("file", path)
        descriptor = None
        try:
            if self._root is not None:
                async with _store_call(path):
                    # Read the file directly: half the work of asking obstore for each chunk.
                    descriptor = await asyncio.to_thread(
                        os.open, self._root / path, os.O_RDONLY | os.O_CLOEXEC
                    )
            while start < end:
                stop = min(start + (piece or self.read_bytes), end)
                async with _store_call(path):
                    if descriptor is not None:
                        chunk = await asyncio.to_thread(os.pread, descriptor, stop - start, start)
                    else:
                        chunk = bytes(
                            await obstore.get_range_async(self._store, path, start=start, end=stop)
                        )
                if not chunk:
                    raise Unavailable("a stored file is shorter than it was when it was written")
                start += len(chunk)
                yield chunk
        finally:
            if descriptor is not None:
                os.close(descriptor)

    async def load(self, path: str, limit: int) -> bytes:
        """The whole object, consistent even if it is replaced meanwhile.

        Raises NotFound, and TooLarge above `limit` bytes.
        """
        async with _store_call(path):
            found = await obstore.get_async(self._store, path)
            if found.meta["size"] > limit:
                raise TooLarge("the file", limit)
            return bytes(await found.bytes_async())

    async def delete(self, path: str) -> None:
        """Remove the object if it exists."""
        with suppress(NotFound):
            async with _store_call(path):
                await obstore.delete_async(self._store, path)

    async def probe(self) -> None:
        """Write, read and remove a small object. Raises Unavailable if jobs could not do the same.

        It lies in no folder of jobs or uploads, and a concurrent probe does not disturb it.
        """
        path = f"probe/{secrets.token_hex(8)}"
        await self.put(path, b"tandem")
        async with _store_call(path):
            await obstore.get_async(self._store, path)
        await self.delete(path)

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        """Yield the objects under a prefix of whole path segments, unordered."""
        pages = aiter(obstore.list(self._store, prefix, chunk_size=500))
        while True:
            try:
                async with _store_call(prefix):
                    page = await anext(pages)
            except StopAsyncIteration:
                return
            for meta in page:
                yield StoredObject(meta["path"], meta["size"], meta["last_modified"].timestamp())

    async def delete_tree(self, prefix: str) -> None:
        """Remove all objects under a prefix of whole path segments."""
        async for stored in self.list(prefix):
            await self.delete(stored.path)

    async def presign(self, path: str, seconds: float) -> str | None:
        """A URL that serves the object for this long; None if the store has no signed URLs."""
        if not isinstance(self._store, S3Store | GCSStore | AzureStore):
            return None
        async with _store_call(path):
            return await obstore.sign_async(self._store, "GET", path, timedelta(seconds=seconds))

    async def ping(self) -> None:
        """Raise Unavailable unless the store answers."""
        await self.size("uploads/ping")

    async def drop_temporaries(self, before: float, limit: int) -> int:
        """Remove up to `limit` temporaries of dead writers, and empty folders, older than `before`.

        Returns the number of temporaries. Remote stores have none.
        """
        if self._root is None:
            return 0
        try:
            return await asyncio.to_thread(_drop_temporaries, self._root, before, limit)
        except OSError as error:
            raise Unavailable(f"the file store failed ({_reason(error)})") from error


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[FileStore]:
    """The store at `file:///path`, `memory://`, `s3://bucket/prefix`, `gs://…` or `az://…`.

    A missing local folder is created. Credentials and endpoints of remote stores come from their
    usual environment variables (`AWS_…`, `GOOGLE_…`, `AZURE_…`); an endpoint without TLS needs
    `AWS_ALLOW_HTTP=true`. Raises Misconfigured.
    """
    scheme = urlsplit(url).scheme
    if scheme == "file":
        root = await asyncio.to_thread(_local_root, url)
        yield FileStore(LocalStore(root, automatic_cleanup=True), root=root)
        return
    try:
        store = from_url(
            "memory:///" if scheme == "memory" else url,
            client_options=_client_options(),
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=20)},
        )
    except (BaseError, ValueError, OSError) as error:
        # Keep the first line only: the others show all parts of the URL, the password included.
        reason = str(error).partition("\n")[0].replace(url, "the URL")
        raise Misconfigured(f"TANDEM_STORE_URL: {reason}") from None
    yield FileStore(store, remote=scheme != "memory")


def _client_options() -> "ClientConfig":
    options: ClientConfig = {"connect_timeout": "5s", "timeout": "25s"}
    # obstore does not read this variable once it is given any options.
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
        raise Misconfigured("TANDEM_STORE_URL: a local store needs file:/// and an absolute path")
    root = Path(path)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as probe:
            probe.write(b"x")
    except OSError as error:
        raise Misconfigured(f"TANDEM_STORE_URL: cannot write to {root}: {error.strerror}") from None
    return root


@asynccontextmanager
async def _store_call(
    path: str, seconds: float = CALL_TIMEOUT_SECONDS, *, writes: bool = False
) -> AsyncIterator[None]:
    """Limit a call to the store in time, and translate its errors to NotFound and Unavailable.

    What `writes` needs no object: if something is not found, the bucket or the folder is missing.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except FileNotFoundError as error:
        if writes:
            raise Unavailable(
                "the file store failed (the bucket or the folder does not exist)"
            ) from error
        raise NotFound("file", path) from None
    except TimeoutError:
        raise Unavailable(f"the file store did not answer within {seconds:g} s") from None
    except (BaseError, OSError, ValueError) as error:
        raise Unavailable(f"the file store failed ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    # Clients see this, so leave out the error's text, which may contain paths. obstore reports the
    # system's error number in that text only.
    text = str(error)
    if number := _OS_ERROR.search(text):
        return os.strerror(int(number[1]))
    return next((words for mark, words in _REASONS.items() if mark in text), type(error).__name__)


def _attributes(name: str | None, content_type: str | None) -> "Attributes":
    attributes: Attributes = {}
    if name is not None:
        attributes["Content-Disposition"] = content_disposition(name)
    if content_type is not None and content_type.isascii() and content_type.isprintable():
        attributes["Content-Type"] = content_type
    return attributes


async def _chunks(data: bytes | AsyncIterable[bytes], limit: int | None) -> AsyncIterator[bytes]:
    """Regroup the bytes into chunks of CHUNK_BYTES: a call to the store costs more than joining."""
    size, filled = 0, bytearray()
    async for piece in _once(data) if isinstance(data, bytes) else data:
        size += len(piece)
        if limit is not None and size > limit:
            raise TooLarge("the file", limit)
        rest = memoryview(piece)
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
        # Spare young directories: a writer may be about to put its first file there.
        with suppress(OSError):
            if Path(directory).stat().st_mtime < before:
                Path(directory).rmdir()
    return removed
