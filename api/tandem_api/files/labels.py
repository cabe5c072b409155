"""An upload's file name and media type, from what its client sends."""

import mimetypes
import re
from email.message import Message
from email.utils import collapse_rfc2231_value

from tandem_shared.files.names import OCTET_STREAM

MAX_LABEL_CHARS = 255
_MEDIA_TYPE = re.compile(
    r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}( *;[\x20-\x7e]{0,200})?", re.ASCII
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def label(name: str | None) -> str | None:
    """The last part of a file name, on one line; None if nothing is left of it."""
    last = _CONTROL.sub("", re.split(r"[/\\]", name or "")[-1]).strip()
    return last[:MAX_LABEL_CHARS] or None


def disposition_name(header: str | None) -> str | None:
    """The file name of a Content-Disposition (RFC 6266), `filename*` before `filename`."""
    message = Message()
    message["content-disposition"] = header or "attachment"
    plain = extended = None
    for key, value in message.get_params([], header="content-disposition"):
        if key.lower() == "filename":
            if isinstance(value, tuple):
                extended = collapse_rfc2231_value(value)
            else:
                plain = value
    if extended is not None or plain is None:
        return extended
    try:
        # Many clients send plain UTF-8, which HTTP reads as Latin-1.
        return plain.encode("latin-1").decode()
    except ValueError:
        return plain


def media_type(given: str | None, name: str | None) -> str:
    """The type that the client sends, or else that of the name's extension."""
    if (
        given is not None
        and _MEDIA_TYPE.fullmatch(given)
        # curl --data-binary sends this type by default, and no file has it.
        and not given.startswith("application/x-www-form-urlencoded")
    ):
        return given
    return mimetypes.guess_type(name or "")[0] or OCTET_STREAM
