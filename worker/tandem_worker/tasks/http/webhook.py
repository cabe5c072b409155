"""`http.webhook`: a CloudEvents 1.0 event, signed as in Standard Webhooks."""

import base64
import binascii
import hashlib
import hmac
from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, ConfigDict, Field, SecretStr, WithJsonSchema
from typing_extensions import TypedDict

from tandem_shared.jobs.ids import id_time
from tandem_shared.retry_policy import RetryPolicy
from tandem_shared.times import rfc3339
from tandem_worker.errors import Permanent, TaskError
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.http.payloads import Url, sent_headers
from tandem_worker.tasks.http.responses import unexpected_status
from tandem_worker.tasks.payload import Payload

SECRET_PREFIX = "whsec_"  # noqa: S105 - not a secret
SECRET_PATTERN = r"^whsec_[A-Za-z0-9+/]{32,86}={0,2}$"  # noqa: S105 - the form of a secret
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
_WORDS = r"^[^\u0000-\u001f\u007f]+$"


def signing_key(secret: str) -> bytes:
    """The bytes of `whsec_<base64>`. Raises ValueError, which does not quote the secret."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError("a webhook's secret is whsec_ and the base64 of 24 to 64 bytes")
    return key


def _check_secret(value: SecretStr) -> SecretStr:
    signing_key(value.get_secret_value())
    return value


Secret = Annotated[
    SecretStr,
    AfterValidator(_check_secret),
    WithJsonSchema({"type": "string", "pattern": SECRET_PATTERN, "writeOnly": True}),
]


class HttpWebhook(Payload):
    """The payload of `http.webhook`."""

    model_config = ConfigDict(hide_input_in_errors=True)

    url: Url
    type: Annotated[
        str, Field(pattern=_WORDS, max_length=256, description="of the event, such as order.paid")
    ]
    data: Annotated[Any, Field(description="of the event")]
    secret: Secret | None = Field(
        None,
        description="whsec_ and the base64 of 24 to 64 bytes; without it the event is not signed",
    )
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=128)] | None = Field(
        None,
        description="of the event and its webhook-id, the same in every attempt;"
        " default: the job's id and the type",
    )
    subject: Annotated[str, Field(pattern=_WORDS, max_length=256)] | None = Field(
        None, description="of the event; default: the job's id"
    )


class HttpDelivered(TypedDict):
    """The result of `http.webhook`."""

    status: int


@task(
    "http.webhook",
    retry=RetryPolicy(max_attempts=10),
    example={"url": "https://example.org/hook", "type": "order.paid", "data": {"order": 4711}},
)
async def webhook(job: Job, payload: HttpWebhook) -> HttpDelivered:
    """Deliver an event: CloudEvents 1.0, signed as in Standard Webhooks.

    Any 2xx counts as delivered. A redirect fails at once, and so does 410, as `gone`; everything
    else is retried.
    """
    now = job.stamp / 1e6  # by Redis' clock: receivers reject a timestamp that is far off
    id = payload.id or _default_id(job, payload)
    body = cloud_event(
        id=id,
        type=payload.type,
        source=f"/v1/jobs/{job.id}",
        subject=payload.subject or job.id,
        time=id_time(job.id) or now,
        data=payload.data,
    )
    secret = None if payload.secret is None else signing_key(payload.secret.get_secret_value())
    async with job.http.request(
        "POST",
        payload.url,
        headers=sent_headers(job, delivery_headers(id, int(now), body, secret)),
        body=body,
        follow_redirects=False,
        timeout=call_timeout(job),
        retry_unsafe=True,  # receivers recognize a repeated event by its id
    ) as response:
        status = response.status
        if 200 <= status < 300:
            return {"status": status}
        refused = unexpected_status("POST", response, repeatable=True)
        if status == 410:
            raise Permanent("gone", refused.message)
        raise TaskError(refused.type, refused.message, retryable=status >= 400, after=refused.after)


def _default_id(job: Job, payload: HttpWebhook) -> str:
    id = f"{job.id}-{payload.type}"
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in id)[:128]


def cloud_event(*, id: str, type: str, source: str, subject: str, time: float, data: Any) -> bytes:
    """The event as JSON; `time` is in seconds since the epoch."""
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
    """The headers of one delivery, signed if there is a secret; `timestamp` is in whole seconds."""
    sent = {"Content-Type": CONTENT_TYPE, "webhook-id": id, "webhook-timestamp": str(timestamp)}
    if secret is not None:
        digest = hmac.digest(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
        sent["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return sent
