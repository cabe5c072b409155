"""What a webhook sends: a CloudEvents 1.0 event, signed as Standard Webhooks says."""

import base64
import binascii
import hashlib
import hmac
import time
from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, WithJsonSchema
from typing_extensions import TypedDict

from tandem_shared.jobs.ids import id_time
from tandem_shared.retry import RetryPolicy
from tandem_shared.times import rfc3339
from tandem_worker.errors import Permanent, TaskError
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.http.request import Url, sent_headers, unexpected

PREFIX = "whsec_"
SECRET = r"^whsec_[A-Za-z0-9+/]{32,86}={0,2}$"  # noqa: S105 - the form of one
SHORTEST, LONGEST = 24, 64  # bytes of a secret
CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"


def signing_key(secret: str) -> bytes:
    """The bytes of `whsec_<base64>`. Raises ValueError, without the secret."""
    try:
        made = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        made = b""
    if not secret.startswith(PREFIX) or not SHORTEST <= len(made) <= LONGEST:
        raise ValueError("a webhook's secret is whsec_ and the base64 of 24 to 64 bytes")
    return made


def cloud_event(*, id: str, type: str, source: str, subject: str, time: float, data: Any) -> bytes:
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


def delivery_headers(id: str, timestamp: int, body: bytes, secret: bytes | None) -> dict[str, str]:
    """The headers of one delivery, `timestamp` in whole seconds since the epoch; unsigned without a secret."""
    sent = {"Content-Type": CONTENT_TYPE, "webhook-id": id, "webhook-timestamp": str(timestamp)}
    if secret is not None:
        digest = hmac.digest(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
        sent["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return sent


def _secret(value: SecretStr) -> SecretStr:
    signing_key(value.get_secret_value())
    return value


Secret = Annotated[
    SecretStr,
    AfterValidator(_secret),
    WithJsonSchema({"type": "string", "pattern": SECRET, "writeOnly": True}),
]


_WORD = r"^[^\u0000-\u001f\u007f]+$"


class HttpWebhook(BaseModel):
    """What `http.webhook` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: Url
    type: Annotated[
        str, Field(pattern=_WORD, max_length=256, description="of the event, such as order.paid")
    ]
    data: Annotated[Any, Field(description="of the event")]
    secret: Secret | None = Field(
        None,
        description="whsec_ and the base64 of 24 to 64 bytes; without it the event is not signed",
    )
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=128)] | None = Field(
        None,
        description="of the event and its webhook-id, the same in every attempt; else the job's id and the type",
    )
    subject: Annotated[str, Field(pattern=_WORD, max_length=256)] | None = Field(
        None, description="of the event; else the job's id"
    )


class HttpDelivered(TypedDict):
    """What `http.webhook` gives."""

    status: int


@task(
    "http.webhook",
    retry=RetryPolicy(max_attempts=10),
    example={"url": "https://example.org/hook", "type": "order.paid", "data": {"order": 4711}},
)
async def webhook(job: Job, payload: HttpWebhook) -> HttpDelivered:
    """Deliver an event: CloudEvents 1.0, signed as Standard Webhooks says.

    Any 2xx is a delivery. A redirect fails at once, 410 as `gone`; everything else is tried again.
    """
    now = time.time()
    event = (
        payload.id
        or "".join(c if c.isascii() and c.isalnum() else "-" for c in f"{job.id}-{payload.type}")[
            :128
        ]
    )
    body = cloud_event(
        id=event,
        type=payload.type,
        source=f"/v1/jobs/{job.id}",
        subject=payload.subject or job.id,
        time=id_time(job.id) or now,
        data=payload.data,
    )
    secret = None if payload.secret is None else signing_key(payload.secret.get_secret_value())
    headers = sent_headers(job, delivery_headers(event, int(now), body, secret))
    async with job.http.request(
        "POST",
        payload.url,
        headers=headers,
        body=body,
        follow_redirects=False,
        timeout=call_timeout(job),
        retry_unsafe=True,  # its id tells the receiver what is a repeat
    ) as response:
        status = response.status
        if 200 <= status < 300:
            return {"status": status}
        refused = unexpected("POST", response, repeatable=True)
        if status == 410:
            raise Permanent("gone", refused.message)
        raise TaskError(refused.type, refused.message, retryable=status >= 400, after=refused.after)
