"""An upload's file name and media type, from what its client sends."""

import re
from contextlib import suppress

from tandem_shared.files import headers

MAX_LABEL_CHARS = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def label(name: str | None) -> str | None:
    """The last part of a file name, on one line; None if nothing is left of it."""
    last = _CONTROL.sub("", re.split(r"[/\\]", name or "")[-1]).strip()
    return last[:MAX_LABEL_CHARS] or None


def disposition_name(header: str | None) -> str | None:
    """The best file name of a Content-Disposition, which Edge has read as Latin-1."""
    if header is None:
        return None
    with suppress(ValueError):
        header = header.encode("latin-1").decode()  # as many clients send it
    return next(iter(headers.disposition_names(header)), None)


def media_type(given: str | None, name: str | None) -> str:
    """The type that the client sends, or else that of the name's extension."""
    # curl --data-binary sends this type by default, and no file has it.
    if given is not None and given.startswith("application/x-www-form-urlencoded"):
        given = None
    return headers.media_type(given, name)
