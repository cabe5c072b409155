"""Request bodies: read as they come, up to a limit and within a time, and never inflated."""

import asyncio
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from tandem_api.http.extensions import WHOLE
from tandem_shared.errors import Invalid, Malformed, TooLarge

DEPTH = 64  # of JSON
TOTAL = 60.0  # seconds for the body of one job
IDLE = 30.0  # seconds without a byte after which a body is given up
_JSON = "application/json"
_NDJSON = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"}
)

_any = msgspec.json.Decoder()


def content_type(request: Request, *, lines: bool = False) -> str:
    """`json` or, where `lines` are expected too, `ndjson`. Raises HTTPException 415 for anything else."""
    headers = request.headers
    if headers.get("content-type") == _JSON and "content-encoding" not in headers:
        return "json"  # as most send it
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(415, "send the body without a Content-Encoding")
    media_type, *parameters = headers.get("content-type", _JSON).lower().split(";")
    charsets = {
        value.strip(' "')
        for name, _, value in (one.partition("=") for one in parameters)
        if "charset" in name
    }
    if charsets <= {"utf-8", "utf8"}:
        if media_type.strip() == _JSON:
            return "json"
        if lines and media_type.strip() in _NDJSON:
            return "ndjson"
    wanted = f"{_JSON} or application/x-ndjson" if lines else _JSON
    raise HTTPException(415, f"send Content-Type: {wanted}, in UTF-8")


def refuse_length(request: Request, limit: int, what: str = "the body") -> None:
    """Raises TooLarge before anything is read if the client says that it sends more than `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(what, limit)


async def read_body(request: Request, limit: int, *, total: float = TOTAL) -> bytes:
    """The whole body. Raises TooLarge above `limit` bytes and HTTPException 408 after `total` seconds or IDLE ones."""
    refuse_length(request, limit)
    if WHOLE in request.scope.get("extensions", ()):
        body, _ = await _received(request)
        if len(body) > limit:
            raise TooLarge("the body", limit)
        return body
    loop = asyncio.get_running_loop()
    end = loop.time() + total
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout_at(min(end, loop.time() + IDLE)) as timeout:
            while True:
                chunk, more = await _received(request)
                size += len(chunk)
                if size > limit:
                    raise TooLarge("the body", limit)
                chunks.append(chunk)
                if not more:
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
                timeout.reschedule(min(end, loop.time() + IDLE))
    except TimeoutError:
        raise HTTPException(
            408, f"the body did not come within {total:g} s, or paused for {IDLE:g} s"
        ) from None


async def _received(request: Request) -> tuple[bytes, bool]:
    """The next bytes of the body, and whether there are more. Raises ClientDisconnect."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


def decode(body: bytes | msgspec.Raw, decoder: Any = _any) -> Any:
    """The JSON value. Raises Malformed for what is none, and Invalid for what is nested too deeply."""
    try:
        return decoder.decode(body)
    except RecursionError:
        raise Invalid([("", f"is nested more than {DEPTH} levels deep")]) from None
    except UnicodeDecodeError:
        raise Malformed("the JSON is malformed: it is not UTF-8") from None
    except msgspec.DecodeError as error:
        if not body:
            raise Malformed("there is no body: send a JSON value") from None
        raise Malformed(f"the JSON is malformed: {_reason(error)}") from None


def _reason(error: msgspec.DecodeError) -> str:
    text = str(error).removeprefix("JSON is malformed: ").partition(" - at")[0]
    return text[:1].lower() + text[1:]


def refuse_depth(value: Any, body: bytes) -> None:
    """Raises Invalid for JSON that is nested more than DEPTH levels deep."""
    if body.count(b"{") + body.count(b"[") <= DEPTH:
        return  # not enough brackets in it
    level: list[Any] = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise Invalid([("", f"is nested more than {DEPTH} levels deep")])
