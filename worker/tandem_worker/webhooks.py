"""What a webhook sends: a CloudEvents 1.0 event, signed as Standard Webhooks says."""

import base64
import binascii
import hashlib
import hmac
from typing import Any

import msgspec

from tandem_shared.times import rfc3339

PREFIX = "whsec_"
SECRET = r"^whsec_[A-Za-z0-9+/]{32,86}={0,2}$"  # noqa: S105 - the form of one
SHORTEST, LONGEST = 24, 64  # bytes of a secret
CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"


def key(secret: str) -> bytes:
    """The bytes of `whsec_<base64>`. Raises ValueError, without the secret."""
    try:
        made = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        made = b""
    if not secret.startswith(PREFIX) or not SHORTEST <= len(made) <= LONGEST:
        raise ValueError("a webhook's secret is whsec_ and the base64 of 24 to 64 bytes")
    return made


def event(*, id: str, type: str, source: str, subject: str, time: float, data: Any) -> bytes:
    """The event as JSON; `time` in seconds since the epoch."""
    return msgspec.json.encode(
        {
            "specversion": "1.0",
            "id": id,
            "type": type,
            "source": source,
            "subject": subject,
            "time": rfc3339(time),
            "datacontenttype": "application/json",
            "data": data,
        }
    )


def headers(id: str, timestamp: int, body: bytes, secret: bytes | None) -> dict[str, str]:
    """The headers of one delivery, `timestamp` in whole seconds since the epoch; unsigned without a secret."""
    sent = {"Content-Type": CONTENT_TYPE, "webhook-id": id, "webhook-timestamp": str(timestamp)}
    if secret is not None:
        digest = hmac.digest(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
        sent["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return sent
