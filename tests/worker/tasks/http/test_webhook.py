"""`http.webhook`: the request, its signature, and what a response means."""

import base64
import hashlib
import hmac
import re
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from aiohttp import web
from multidict import CIMultiDictProxy
from pydantic import ValidationError

from tandem_shared.jobs.ids import new_id
from tandem_worker.errors import TaskError
from tandem_worker.failures import invalid_payload
from tandem_worker.task import task_of
from tandem_worker.tasks.http.webhook import delivery_headers, signing_key
from tandem_worker.tasks.http.webhook import webhook as http_webhook
from tests.worker.bench import Bench
from tests.worker.connectors.http.servers import serving

TASK = task_of(http_webhook)
SCHEMA = jsonschema_rs.validator_for(TASK.entry.payload_schema)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver:
    """Keeps deliveries and answers with `status`."""

    def __init__(self, status: int = 204, headers: dict[str, str] | None = None) -> None:
        self.status, self.headers = status, headers
        self.got: list[tuple[str, CIMultiDictProxy[str], bytes]] = []

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        self.got.append((request.method, request.headers, await request.read()))
        return web.Response(status=self.status, headers=self.headers)


def test_the_signature_equals_the_standards_example() -> None:
    body = b'{"test": 2432232314}'
    made = delivery_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body, signing_key(SECRET))
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_a_signed_event_is_delivered(bench: Bench) -> None:
    receiver, id = Receiver(), new_id()
    payload = {
        "type": "tandem.job.succeeded",
        "data": {"n": 2**70, "text": "grüße"},
        "secret": SECRET,
    }
    async with serving(receiver) as port:
        result = await bench.run(
            http_webhook,
            {"url": f"http://127.0.0.1:{port}/hook", **payload},
            id=id,
            traceparent="00-1-2-01",
        )
    assert result == {"status": 204}
    ((method, headers, body),) = receiver.got
    event = msgspec.json.decode(body)
    assert method == "POST"
    assert headers["Content-Type"] == "application/cloudevents+json; charset=utf-8"
    assert headers["traceparent"] == "00-1-2-01"
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    assert event == {
        "specversion": "1.0",
        "id": f"{id}-tandem-job-succeeded",
        "type": "tandem.job.succeeded",
        "source": f"/v1/jobs/{id}",
        "subject": id,
        "datacontenttype": "application/json",
        "data": {"n": 2**70, "text": "grüße"},
    }
    assert headers["webhook-id"] == event["id"]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


async def test_every_attempt_sends_the_same_event(bench: Bench) -> None:
    receiver, id = Receiver(503), new_id()
    async with serving(receiver) as port:
        payload = {"url": f"http://127.0.0.1:{port}/", "type": "a", "data": 1}
        for attempt in (1, 2):
            with pytest.raises(TaskError):
                await bench.run(http_webhook, payload, id=id, attempt=attempt)
    (_, first, body), (_, second, again) = receiver.got
    assert (first["webhook-id"], body) == (second["webhook-id"], again)


async def test_id_and_subject_can_be_given_and_without_a_secret_there_is_no_signature(
    bench: Bench,
) -> None:
    receiver = Receiver()
    async with serving(receiver) as port:
        payload = {
            "type": "tandem.job.failed",
            "data": None,
            "id": "job1-failed",
            "subject": "job1",
        }
        await bench.run(http_webhook, {"url": f"http://127.0.0.1:{port}/", **payload})
    ((_, headers, body),) = receiver.got
    event = msgspec.json.decode(body)
    assert (event["id"], headers["webhook-id"], event["subject"]) == (
        "job1-failed",
        "job1-failed",
        "job1",
    )
    assert event["data"] is None
    assert "webhook-signature" not in headers


@pytest.mark.parametrize(
    ("status", "type_", "retryable"),
    [
        (301, "http_status", False),
        (307, "http_status", False),
        (400, "http_status", True),
        (404, "http_status", True),
        (410, "gone", False),
        (429, "http_status", True),
        (500, "http_status", True),
        (504, "http_status", True),
    ],
)
async def test_what_an_answer_means(bench: Bench, status: int, type_: str, retryable: bool) -> None:
    receiver = Receiver(status, {"Location": "/elsewhere", "Retry-After": "7"})
    async with serving(receiver) as port:
        payload = {
            "url": f"http://127.0.0.1:{port}/hook?key=abc",
            "type": "a",
            "data": {},
            "secret": SECRET,
        }
        with pytest.raises(TaskError) as caught:
            await bench.run(http_webhook, payload)
    error = caught.value
    assert (error.type, error.retryable) == (type_, retryable)
    assert error.message == f"POST http://127.0.0.1:{port}/hook answered {status}"
    assert error.after == (7 if status in (429, 500, 504) else None)
    assert len(receiver.got) == 1


async def test_a_connection_fault_is_tried_again(bench: Bench) -> None:
    with pytest.raises(TaskError) as caught:
        await bench.run(
            http_webhook, {"url": "http://127.0.0.1:1/", "type": "a", "data": {}, "secret": SECRET}
        )
    assert (caught.value.type, caught.value.retryable) == ("connection_failed", True)
    assert "whsec" not in str(caught.value)


URL = "https://example.org/"
WRONG_SECRETS = [
    "",
    "whsec_",
    "whsec_c2hvcnQ=",
    SECRET.removeprefix("whsec_"),
    "whsec_" + "!" * 40,
    "whsec_" + "A" * 200,
]
REFUSED: list[dict[str, Any]] = [
    {},
    {"url": URL, "type": "a"},
    {"url": URL, "data": 1},
    {"url": URL, "type": "", "data": 1},
    {"url": URL, "type": "a\n", "data": 1},
    {"url": URL, "type": "a", "data": 1, "unknown": 1},
    {"url": URL, "type": "a", "data": 1, "id": "a.b"},
    {"url": "https://user:pw@example.org/", "type": "a", "data": 1},
    *({"url": URL, "type": "a", "data": 1, "secret": secret} for secret in WRONG_SECRETS),
]


@pytest.mark.parametrize("payload", REFUSED)
def test_the_schema_and_the_worker_refuse_the_same(payload: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid(payload)
    with pytest.raises(ValidationError):
        TASK.signature.payload.validate_python(payload)


def test_a_secret_shows_nowhere() -> None:
    payload = TASK.signature.payload.validate_python(
        {"url": URL, "type": "a", "data": 1, "secret": SECRET}
    )
    assert SECRET not in f"{payload!r} {payload} {payload.model_dump()} {payload.model_dump_json()}"
    # Valid in the schema but not as bytes: the worker's error must not quote it.
    wrong = f"whsec_{'A' * 33}"
    SCHEMA.validate({"url": URL, "type": "a", "data": 1, "secret": wrong})
    with pytest.raises(ValidationError) as caught:
        TASK.signature.payload.validate_python(
            {"url": URL, "type": "a", "data": 1, "secret": wrong}
        )
    assert wrong not in str(caught.value) + invalid_payload(caught.value).message


def test_null_fields_are_accepted() -> None:
    payload = {"url": URL, "type": "a", "data": None, "secret": None, "id": None, "subject": None}
    SCHEMA.validate(payload)
    TASK.signature.payload.validate_python(payload)
