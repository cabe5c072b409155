"""Tasks, queues and workers, and the OpenAPI document generated from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from jsonschema_rs import Draft202012Validator

from tandem_shared import catalogue
from tests.api.fake_worker import ANY, STRICT, FakeWorker
from tests.api.serving import problem, serving, upload


async def test_the_catalogue_is_shown(client: httpx2.AsyncClient) -> None:
    items = (await client.get("/v1/tasks")).json()["items"]
    assert [item["name"] for item in items] == ["t.any", "t.strict"]
    assert items[1] == {
        "name": "t.strict",
        "summary": "Takes a URL.",
        "queue": "slow",
        "payload_schema": STRICT.payload_schema,
        "result_schema": {"type": "object"},
        "defaults": STRICT.defaults,
        "example": {"url": "https://example.org/"},
        "workers": 1,
    }
    assert (await client.get("/v1/tasks/t.strict")).json() == items[1]


async def test_a_new_task_appears_everywhere_at_once(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    new = msgspec.structs.replace(ANY, name="t.new", example={"x": 1})
    assert problem(await client.get("/v1/tasks/t.new"))[0] == 404
    assert problem(await client.post("/v1/jobs", json={"task": "t.new"}))[0] == 422
    await worker.publish(new)
    assert (await client.post("/v1/jobs", json={"task": "t.new"})).status_code == 202
    assert (await client.get("/v1/tasks/t.new")).json()["example"] == {"x": 1}
    assert "t.new" in [item["name"] for item in (await client.get("/v1/tasks")).json()["items"]]
    assert "t.new.job" in (await client.get("/openapi.json")).json()["components"]["schemas"]


async def test_a_changed_schema_applies_at_once(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    job = {"task": "t.any", "payload": {"a": 1}}
    assert (await client.post("/v1/jobs", json=job)).status_code == 202
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    await worker.publish(msgspec.structs.replace(ANY, payload_schema=schema, version=2))
    await client.get("/v1/tasks")  # makes the API read the new catalogue
    assert problem(await client.post("/v1/jobs", json=job))[0] == 422


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://elsewhere.invalid/schema"},
        {"type": "nonsense"},
        {"$ref": "#/$defs/Missing"},
    ],
)
async def test_a_schema_that_cannot_be_used_leaves_the_check_to_the_worker(
    client: httpx2.AsyncClient, worker: FakeWorker, schema: dict[str, Any]
) -> None:
    await worker.publish(msgspec.structs.replace(ANY, name="t.odd", payload_schema=schema))
    assert (
        await client.post("/v1/jobs", json={"task": "t.odd", "payload": {"a": 1}})
    ).status_code == 202
    assert problem(await client.post("/v1/jobs", json={"task": "t.odd", "foo": 1}))[0] == 422
    assert (await client.post("/v1/jobs", json={"task": "t.odd"})).status_code == 202
    shown = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert shown["t.odd.job"]["required"] == ["task"]


async def test_a_payload_schema_may_refer_to_itself(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    schema = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}},
        "additionalProperties": False,
    }
    await worker.publish(msgspec.structs.replace(ANY, name="t.loop", payload_schema=schema))
    assert (
        await client.post("/v1/jobs", json={"task": "t.loop", "payload": {"next": {"next": {}}}})
    ).status_code == 202
    answer = await client.post(
        "/v1/jobs", json={"task": "t.loop", "payload": {"next": {"nxt": {}}}}
    )
    assert answer.json()["errors"][0]["pointer"] == "/payload/next/nxt"
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert schemas["t.loop.payload"]["properties"]["next"] == {
        "$ref": "#/components/schemas/t.loop.payload"
    }


async def test_queues_and_workers_are_shown(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    idle = (await client.get("/v1/queues")).json()["items"]
    assert [(one["name"], one["workers"]) for one in idle] == [("default", 1), ("slow", 1)]
    for job in (
        {"task": "t.any"},
        {"task": "t.any"},
        {"task": "t.any", "options": {"delay": "1h"}},
    ):
        assert (await client.post("/v1/jobs", json=job)).status_code == 202
    queue, _ = (await client.get("/v1/queues")).json()["items"]
    assert queue.pop("oldest_age") >= 0
    counts = {"waiting": 0, "scheduled": 1, "queued": 2, "running": 0, "retrying": 0}
    assert queue == {"name": "default", "paused": False, "workers": 1, **counts}
    (shown,) = (await client.get("/v1/workers")).json()["items"]
    assert list(shown) == (
        "id host pid queues concurrency running zombies"
        " started_at last_seen version draining".split()
    )
    assert (shown["id"], shown["pid"], shown["queues"]) == ("hand-1", 4711, ["default", "slow"])
    assert shown["started_at"] == "2001-09-09T01:46:40.000Z"


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


async def test_every_reference_in_the_document_resolves(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    for reference in set(references(document)):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found
    ids = [
        operation["operationId"]
        for path in document["paths"].values()
        for operation in path.values()
    ]
    assert len(ids) == len(set(ids))
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


async def test_every_task_has_its_schema_and_example_in_the_document(
    client: httpx2.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert schemas["JobRequest"]["oneOf"] == [
        {"$ref": f"#/components/schemas/{name}.job"} for name in ("t.any", "t.strict")
    ]
    assert schemas["t.strict.job"]["properties"]["task"] == {"const": "t.strict", "type": "string"}
    content = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    example = content["examples"]["t.strict"]["value"]
    assert example == {"task": "t.strict", "payload": {"url": "https://example.org/"}}
    # The published schema is the one that validation uses.
    shown = Draft202012Validator(
        {"$ref": "#/components/schemas/JobRequest", "components": document["components"]}
    )
    for job, status in (
        (example, 202),
        ({"task": "t.strict", "payload": {}}, 422),
        ({"task": "t.strict", "payload": {"url": "abc", "node": {"next": {"value": "x"}}}}, 422),
        ({"task": "t.nope", "payload": {}}, 422),
        ({"task": "t.any", "payload": {}, "options": {"timeout": "5m", "priority": "low"}}, 202),
        ({"task": "t.any", "payload": {}, "options": {"timeout": "soon"}}, 422),
        ({"task": "t.any"}, 202),
        ({"task": "t.strict"}, 422),
        ({"task": "t.any", "options": {"priority": None, "queue": None}}, 202),
        ({"task": "t.any", "options": {"callback": {"url": "https://example.org/"}}}, 422),
    ):
        assert (await client.post("/v1/jobs", json=job)).status_code == status
        assert shown.is_valid(job) is (status == 202)


async def test_answers_match_the_document(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    document = (await client.get("/openapi.json")).json()

    def check(name: str, value: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        Draft202012Validator(schema).validate(value)

    job = (await client.post("/v1/jobs", json={"task": "t.any"})).json()
    check("Job", job)
    claimed = await worker.claim()
    await worker.report(claimed, "output", 1)
    await worker.fail(claimed)
    check("Job", (await client.get(f"/v1/jobs/{job['id']}?payload=true")).json())
    check("Problem", (await client.get("/v1/jobs/nope")).json())
    check("Problem", (await client.post("/v1/jobs", json={"task": 1})).json())
    for entry in (
        await client.get(f"/v1/jobs/{job['id']}/stream", headers={"Accept": "application/jsonl"})
    ).text.split():
        check("Entry", msgspec.json.decode(entry))
    for answer in (await client.post("/v1/jobs/bulk", json=[{"task": "t.any"}, {}])).json():
        check("BulkAnswer", answer)
    for path, name in (("/v1/tasks", "Task"), ("/v1/queues", "Queue"), ("/v1/workers", "Worker")):
        for item in (await client.get(path)).json()["items"]:
            check(name, item)
    check("Health", (await client.get("/readyz")).json())
    check("Uploaded", (await client.post("/v1/files", content=b"x")).json())


async def test_the_document_names_every_route(client: httpx2.AsyncClient) -> None:
    documented = (await client.get("/openapi.json")).json()["paths"]
    for path, operations in documented.items():
        given = path.replace("{id}", "x").replace("{name}", "x").replace("{task}", "x")
        answer = await client.request("TRACE", given)
        allowed = set(answer.headers["allow"].split(", ")) - {"HEAD"}
        assert allowed == {method.upper() for method in operations} - {"HEAD"}, path


UPLOAD = {"method": "POST", "url": "/v1/files", "content": b"x"}
PART: dict[str, Any] = {
    "method": "PATCH",
    "headers": {
        "content-type": "application/partial-upload",
        "upload-offset": "0",
        "upload-complete": "?1",
    },
}


@pytest.mark.parametrize(
    ("path", "request_", "status"),
    [
        ("/v1/jobs/{id}", {"method": "GET", "url": "/v1/jobs/x?wait=soon"}, 400),
        ("/v1/files", UPLOAD, 201),
        ("/v1/files", {**UPLOAD, "headers": {"content-type": "multipart/form-data"}}, 400),
        ("/v1/files", {**UPLOAD, "content": b"x" * 1025}, 413),
        ("/v1/files", {**UPLOAD, "headers": {"content-encoding": "gzip"}}, 415),
        ("/v1/files", {**UPLOAD, "params": {"name": "x" * 2000}}, 422),
        ("/v1/files/{id}", {"method": "GET"}, 200),
        ("/v1/files/{id}", {"method": "GET", "headers": {"range": "bytes=0-0"}}, 206),
        ("/v1/files/{id}", {"method": "GET", "headers": {"if-none-match": "*"}}, 304),
        ("/v1/files/{id}", {"method": "GET", "url": "/v1/files/nothing"}, 404),
        ("/v1/files/{id}", {"method": "GET", "headers": {"if-match": '"other"'}}, 412),
        ("/v1/files/{id}", {"method": "GET", "headers": {"range": "bytes=9-"}}, 416),
        ("/v1/files/{id}", {"method": "HEAD"}, 200),
        ("/v1/files/{id}", {"method": "HEAD", "headers": {"if-none-match": "*"}}, 304),
        ("/v1/files/{id}", {"method": "HEAD", "headers": {"if-match": '"other"'}}, 412),
        ("/v1/files/{id}", {"method": "DELETE"}, 204),
        ("/v1/files/{id}", {**PART, "headers": {**PART["headers"], "upload-offset": "1"}}, 201),
        ("/v1/files/{id}", PART, 409),
        ("/v1/files/{id}", {**PART, "headers": {}}, 415),
        (
            "/v1/files/{id}",
            {**PART, "headers": {"content-type": "application/partial-upload"}},
            400,
        ),
        ("/v1/files/{id}", {**PART, "url": "/v1/files/nothing"}, 404),
        ("/v1/files", {"method": "OPTIONS", "url": "/v1/files"}, 204),
        ("/v1/files/{id}", {"method": "DELETE", "url": "/v1/files/nothing"}, 404),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_the_document_lists_every_status_that_occurs(
    redis_url: str, tmp_path: Path, path: str, request_: dict[str, Any], status: int
) -> None:
    async with serving(redis_url, tmp_path, max_upload=1024) as client:
        id = (await upload(client, b"x"))["id"]
        answer = await client.request(**{"url": f"/v1/files/{id}", **request_})
        assert answer.status_code == status, answer.text
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert str(status) in paths[path][request_["method"].lower()]["responses"]


async def test_the_document_omits_statuses_that_cannot_occur(client: httpx2.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert "404" not in paths["/v1/files"]["post"]["responses"]
    assert "422" not in paths["/v1/files/{id}"]["get"]["responses"]
    reading = {
        path for path, one in paths.items() if "408" in one.get("post", {}).get("responses", {})
    }
    assert reading == {"/v1/jobs", "/v1/jobs/bulk", "/v1/jobs/replay", "/v1/files"}
    for path in ("/v1/files/{id}", "/v1/jobs/{id}/files/{name}"):
        assert {"412", "416"} <= paths[path]["get"]["responses"].keys()
        assert "416" not in paths[path]["head"]["responses"]  # ranges are for GET


def test_the_fake_tasks_accept_their_examples() -> None:
    assert Draft202012Validator(STRICT.payload_schema).is_valid(STRICT.example)
    assert catalogue.decode_all({b"strict": catalogue.encode(STRICT)}) == [STRICT]
