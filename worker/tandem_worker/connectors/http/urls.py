"""URLs go out byte for byte: only what a request line cannot hold is percent-encoded, as in curl.

yarl alone would requote them, which breaks signatures. It still reads the scheme, host and port,
so the guard checks exactly the host that is dialled.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from yarl import URL

QueryParams = Mapping[str, Any] | Sequence[tuple[str, str]]

# RFC 3986, appendix B. Scheme, authority, path, query with its "?".
_PARTS = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL)
_BEYOND_TARGET = re.compile(rb"[^\x21-\x7e]")


def parse_url(text: str, params: QueryParams | None = None) -> URL:
    """The absolute URL without its fragment, `params` added. Raises ValueError if it is invalid."""
    scheme, authority, path, query = _split(text)
    return _build(scheme or "", authority or "", path, query, params)


def join_url(base: URL, location: str) -> URL:
    """The URL that a Location header means (RFC 3986, 5.2.2). Raises ValueError if it is invalid.

    `location` may hold surrogate escapes for bytes that are not UTF-8.
    """
    scheme, authority, path, query = _split(location.strip(" \t"))
    if scheme is not None and scheme.lower() in ("http", "https") and authority is None:
        raise ValueError("the URL has no host")
    if scheme is not None or authority is not None:
        return _build(scheme or base.scheme, authority or "", _without_dots(path), query)
    if not path:
        path = base.raw_path
        query = query or (f"?{base.raw_query_string}" if base.raw_query_string else None)
    elif path.startswith("/"):
        path = _without_dots(path)
    else:
        path = _without_dots(base.raw_path.partition("?")[0].rpartition("/")[0] + "/" + path)
    return _build(base.scheme, base.raw_authority, path, query)


def _split(text: str) -> tuple[str | None, str | None, str, str | None]:
    match = _PARTS.fullmatch(text)
    if match is None:
        raise ValueError("this is not a URL")
    return match[1], match[2], match[3], match[4]


def _build(
    scheme: str,
    authority: str,
    path: str,
    query: str | None,
    params: QueryParams | None = None,
) -> URL:
    # A browser takes a backslash for a slash, so a host with one means two things.
    if "\\" in authority:
        raise ValueError("the host has a backslash")
    site = URL(f"{scheme}://{authority}")
    path = _escape(path) or "/"
    given = _escape(query[1:]) if query is not None else ""
    added = URL().with_query(_pairs(params)).raw_query_string if params else ""
    joined = "&".join(part for part in (given, added) if part)
    if query == "?" and not joined:
        path += "?"  # yarl has no empty query
    return URL.build(
        scheme=site.scheme,
        authority=site.raw_authority,
        path=path,
        query_string=joined,
        encoded=True,
    )


def _escape(text: str) -> str:
    data = text.encode("utf-8", "surrogateescape")
    return _BEYOND_TARGET.sub(lambda byte: b"%%%02X" % byte[0][0], data).decode("ascii")


def _without_dots(path: str) -> str:
    """The path without `.` and `..` segments (RFC 3986, 5.2.4)."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == "..":
            if len(kept) > 1:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/".join(kept)


def _pairs(params: QueryParams) -> list[tuple[str, str]]:
    """Parameters as pairs: lists repeat the name, null is left out, booleans are true and false."""
    pairs = []
    for name, values in params.items() if isinstance(params, Mapping) else params:
        for value in values if isinstance(values, list | tuple) else [values]:
            if value is not None:
                text = str(value)
                pairs.append((name, text.lower() if isinstance(value, bool) else text))
    return pairs
