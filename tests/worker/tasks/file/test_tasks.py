"""`file.hash`, compared with system programs."""

import hashlib
import random
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import psutil
import pytest
from pydantic import ValidationError

from tandem_shared.files.store import FileStore
from tandem_shared.files.uploads import save_upload
from tandem_shared.settings import load_settings
from tandem_worker.errors import TaskError
from tandem_worker.executors.execute import execute
from tandem_worker.executors.pools import open_pools
from tandem_worker.jobs.files import FileRef
from tandem_worker.resources import Resources, open_resources
from tandem_worker.task import task_of
from tandem_worker.tasks.file.hash import hash_file
from tests.worker.bench import local_job

MIB = 1 << 20
TASK = task_of(hash_file)


@pytest.fixture
async def resources(tmp_path: Path) -> AsyncIterator[Resources]:
    async with open_resources(load_settings(store_url=f"file://{tmp_path}/store")) as resources:
        yield resources


@pytest.fixture
async def store(resources: Resources) -> FileStore:
    return resources.files


def failure(error: pytest.ExceptionInfo[TaskError]) -> tuple[str, bool]:
    return error.value.type, error.value.retryable


class ProgressRecorder:
    """A sink that keeps progress reports."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    async def progress(self, body: bytes) -> None:
        self.reports.append(msgspec.json.decode(body))

    async def output(self, item: bytes) -> None:
        raise AssertionError(item)

    def log(self, body: bytes) -> None:
        raise AssertionError(body)


async def run(
    resources: Resources, payload: dict[str, Any], tenant: str = "a"
) -> tuple[dict[str, Any], ProgressRecorder]:
    """file.hash as a worker runs it: JSON in, JSON out."""
    recorder = ProgressRecorder()
    async with open_pools(load_settings()) as pools:
        facts = {"id": "J", "task": TASK.name, "deadline": time.time() + 60, "tenant": tenant}
        job = local_job(resources, recorder, pools, **facts)
        result = await execute(TASK, job, TASK.decode(msgspec.json.encode(payload)), pools)
    return msgspec.json.decode(TASK.encode(result)), recorder


PROGRAMS = {
    "md5": "md5sum",
    "sha1": "sha1sum",
    "sha224": "sha224sum",
    "sha256": "sha256sum",
    "sha384": "sha384sum",
    "sha512": "sha512sum",
    "blake2b": "b2sum",
}


async def test_digests_equal_those_of_system_programs(resources: Resources, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(random.Random(2).randbytes(5 * MIB + 17))
    known = {name: program for name, program in PROGRAMS.items() if shutil.which(program)}
    assert known, "no program to compare with is installed"
    expected = {
        name: subprocess.run(
            [program, path], check=True, capture_output=True, text=True
        ).stdout.split()[0]
        for name, program in known.items()
    }
    saved = await save_upload(
        resources.files, path.read_bytes(), tenant="a", keep=60, now=time.time
    )
    result, recorder = await run(
        resources, {"source": {"file": saved.id}, "algorithms": [*known, "sha256"]}
    )
    assert result == {"size": 5 * MIB + 17, **expected}
    assert recorder.reports[0] == {"current": 0, "total": 5 * MIB + 17, "message": None}
    assert recorder.reports[-1]["current"] == 5 * MIB + 17
    assert [one["current"] for one in recorder.reports] == sorted(
        one["current"] for one in recorder.reports
    )
    assert len(recorder.reports) > 3


async def test_sha256_is_the_default_and_an_empty_file_has_a_hash(resources: Resources) -> None:
    saved = await save_upload(resources.files, b"", tenant="a", keep=60, now=time.time)
    result, _ = await run(resources, {"source": saved.view() | {"file": saved.id}})
    assert result == {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}


async def test_a_missing_source_fails_permanently(resources: Resources) -> None:
    with pytest.raises(TaskError) as error:
        await run(resources, {"source": {"file": "J/none"}})
    assert failure(error) == ("file_not_found", False)


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"source": "id"},
        {"source": {"file": "x"}, "algorithms": []},
        {"source": {"file": "x"}, "algorithms": ["crc32"]},
        {"source": {"file": "x"}, "algorithm": "md5"},
    ],
)
def test_wrong_payloads_are_refused_by_model_and_schema_alike(payload: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TASK.decode(msgspec.json.encode(payload))
    assert not jsonschema_rs.is_valid(TASK.entry.payload_schema, payload)


def test_the_schema_accepts_its_example_and_a_full_reference() -> None:
    full = FileRef(
        file="J/a", name="a", size=1, sha256="0", content_type="text/plain", url="/v1/x"
    ).model_dump()
    for payload in (
        TASK.entry.example,
        {"source": full},
        {"source": full | {"more": 1}},
        {"source": {"file": "x"}},
    ):
        assert jsonschema_rs.is_valid(TASK.entry.payload_schema, payload)
    assert set(PROGRAMS) <= set(TASK.entry.result_schema["properties"])


async def test_a_large_file_is_hashed_in_bounded_memory(resources: Resources) -> None:
    size = 192 * MIB

    async def zeros() -> AsyncIterator[bytes]:
        for _ in range(size // MIB):
            yield bytes(MIB)

    saved = await save_upload(resources.files, zeros(), tenant="a", keep=60, now=time.time)
    before = psutil.Process().memory_info().rss
    result, _ = await run(resources, {"source": {"file": saved.id}, "algorithms": ["md5"]})
    assert result["size"] == size
    assert psutil.Process().memory_info().rss - before < size / 3
