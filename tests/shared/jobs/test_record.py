"""Ids, the transition table, and what clients see of a record."""

import re
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import settings

from tandem_shared.jobs import record as jobs
from tandem_shared.jobs.ids import id_time, new_id
from tandem_shared.jobs.record import (
    RECORD_FIELDS,
    Attempt,
    JobOptions,
    Record,
    parse,
    plain_number,
    state_history,
)
from tandem_shared.jobs.states import FINAL, TRANSITIONS, State
from tandem_shared.queue.messages import Report
from tests.shared.queue.model.shard import Shard

laws = settings(derandomize=True, database=None, deadline=None)


def test_ids_are_unique_sort_by_time_and_end_with_the_shard() -> None:
    before = time.time()
    ids = [new_id(shard="c") for _ in range(5000)]
    after = time.time()
    assert len(set(ids)) == 5000
    assert all(re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{21}c", id) for id in ids)
    times = [id_time(id) for id in ids]
    assert all(
        moment is not None and int(before * 1000) / 1000 <= moment <= after for moment in times
    )
    assert [id[:10] for id in ids] == sorted(id[:10] for id in ids)


def test_a_forked_child_makes_different_ids() -> None:
    program = (
        "import os\nfrom tandem_shared.jobs.ids import new_id\nnew_id()\npid = os.fork()\n"
        "os.write(1, b''.join(new_id()[10:].encode() + b'\\n' for _ in range(100)))\n"
        "os._exit(0) if pid == 0 else os.waitpid(pid, 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.split()
    assert len(set(lines)) == len(lines) == 200


@pytest.mark.parametrize(
    "id", ["", "short", "nobody-at-all", "01jc8xw3t4z5", "ILOU000000aaaaaaaaaaaa"]
)
def test_foreign_ids_have_no_time(id: str) -> None:
    assert id_time(id) is None


def test_the_transition_table_is_complete() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {state for state, after in TRANSITIONS.items() if not after} == FINAL
    assert all(
        State.CANCELLED in after for state, after in TRANSITIONS.items() if state not in FINAL
    )
    # Every unfinished job can at least expire.
    assert all(State.FAILED in after for state, after in TRANSITIONS.items() if state not in FINAL)
    reached, todo = {State.QUEUED, State.SCHEDULED}, [State.QUEUED, State.SCHEDULED]
    while todo:
        new = TRANSITIONS[todo.pop()] - reached
        reached |= new
        todo += new
    assert reached == set(State)


NOON = 1_800_000_000_000_000


def record(**given: Any) -> Record:
    fields: dict[str, Any] = {
        "id": "j1", "task": "t", "tenant": "default", "queue": "mail", "priority": "high",
        "state": State.QUEUED, "stamp": NOON, "max_attempts": 3, "submitted": NOON,
        "scheduled_for": None, "due": NOON // 1000,
        "options": JobOptions(timeout=30.0, tags={"a": "1"}),
    }  # fmt: skip
    return Record(**fields | given)


def shown(one: Record, **given: Any) -> dict[str, Any]:
    job: dict[str, Any] = msgspec.json.decode(jobs.job_json(one, **given))
    return job


def test_a_queued_job_as_clients_see_it() -> None:
    assert shown(record()) == {
        "id": "j1", "task": "t", "state": "queued", "done": False, "waiting_for": None,
        "queue": "mail",
        "priority": "high", "attempt": 0, "max_attempts": 3,
        "submitted_at": "2027-01-15T08:00:00.000Z", "scheduled_for": None, "started_at": None,
        "finished_at": None, "timeout": 30, "progress": None, "result": None, "error": None,
        "cancel_requested": False, "tags": {"a": "1"}, "files": [], "attempts": [],
        "links": {
            "self": "/v1/jobs/j1", "stream": "/v1/jobs/j1/stream", "result": "/v1/jobs/j1/result",
        },
    }  # fmt: skip


def test_a_job_that_is_done_as_clients_see_it() -> None:
    job = shown(
        record(
            state=State.SUCCEEDED, stamp=NOON + 9, ended=NOON + 2_500_000,
            began=NOON + 1_000_000, attempt=1,
            attempts=(Attempt(1, NOON + 1_000_000, NOON + 2_500_000, "succeeded", "w1"),),
            result=b'{"big": 123456789012345678901}', files=b'[{"name":"a"}]',
            progress=b'{"current":1}',
            options=JobOptions(timeout=0.25, replay_of="j0"),
        ),
        payload=b"[1, 2]",
    )  # fmt: skip
    assert (job["done"], job["result"], job["payload"]) == (
        True,
        {"big": 123456789012345678901},
        [1, 2],
    )
    assert (job["started_at"], job["finished_at"]) == (
        "2027-01-15T08:00:01.000Z",
        "2027-01-15T08:00:02.500Z",
    )
    assert (job["files"], job["progress"], job["timeout"]) == (
        [{"name": "a"}],
        {"current": 1},
        0.25,
    )
    assert job["replay_of"] == "j0"
    assert job["attempts"] == [
        {
            "attempt": 1, "started_at": "2027-01-15T08:00:01.000Z",
            "finished_at": "2027-01-15T08:00:02.500Z", "outcome": "succeeded", "worker": "w1",
        }
    ]  # fmt: skip


def test_urls_begin_with_the_path_of_the_proxy() -> None:
    file = {"name": "a", "size": 1, "sha256": "ab", "content_type": "text/csv"}
    url = "/v1/jobs/j1/files/a"
    one = record(files=msgspec.json.encode([{**file, "url": url}]))
    job = shown(one, root="/tandem")
    assert job["files"] == [{**file, "url": f"/tandem{url}"}]
    assert set(job["links"].values()) == {
        f"/tandem/v1/jobs/j1{end}" for end in ("", "/stream", "/result")
    }
    (_, _, entry), *_ = one.state_entries("/tandem")
    assert b'"/tandem/v1/jobs/j1/stream"' in entry
    assert b"/tandem" not in one.state_entries()[0][2]


ERROR = b'{"type":"timeout","message":"too slow","retryable":true,"attempt":1}'


@pytest.mark.parametrize("state", list(State))
def test_an_error_is_shown_only_where_it_explains_something(state: State) -> None:
    error = shown(record(state=state, error=ERROR, result=b"1"))["error"]
    if state in (State.FAILED, State.RETRYING, State.QUEUED, State.WAITING):
        expected = {"type": "timeout", "message": "too slow", "retryable": True, "attempt": 1}
        assert error == expected | {
            "next_attempt_at": None if state is State.FAILED else "2027-01-15T08:00:00.000Z"
        }
    else:
        assert error is None


@pytest.mark.parametrize("state", list(State))
def test_a_result_is_shown_only_for_succeeded_jobs(state: State) -> None:
    assert shown(record(state=state, result=b"1"))["result"] == (
        1 if state is State.SUCCEEDED else None
    )


def test_fifty_attempts_are_shown() -> None:
    attempts = tuple(Attempt(n, NOON + n, NOON + n, "failed", "w") for n in range(1, 61))
    assert [one["attempt"] for one in shown(record(attempts=attempts))["attempts"]] == list(
        range(11, 61)
    )


def test_the_entity_tag_is_the_stamp() -> None:
    assert record(stamp=7).etag == '"7"'


def test_a_missing_record_is_none() -> None:
    assert parse("j1", [None] * len(RECORD_FIELDS)) is None


def test_whole_seconds_become_integers() -> None:
    assert (plain_number(30.0), plain_number(0.25)) == (30, 0.25)
    assert isinstance(plain_number(30.0), int)


async def published(shard: Shard, id: str) -> list[tuple[int, str]]:
    """(stamp, state) of the job's events."""
    lines = [
        line.split() for _, text in (await shard.snapshot()).events for line in text.splitlines()
    ]
    return [(int(words[2]), words[1]) for words in lines if words[0] == id]


async def test_the_history_matches_the_events(shard: Shard) -> None:
    id = await shard.add(delay=1, max_attempts=9)
    worker = await shard.worker()
    readings: list[list[tuple[int, Record]]] = []

    async def read() -> None:
        readings.append(state_history(await shard.get(id)))

    await read()
    await shard.wait(1)
    for to in (State.RETRYING, State.QUEUED, None, State.SUCCEEDED):
        await read()
        claimed = await worker.take()
        await shard.queue.report([Report(id, claimed.token, 1, "progress", b"1")], limit=999)
        await read()
        if to is State.SUCCEEDED:
            await shard.queue.cancel(id)
            await read()
        await (shard.silence() if to is None else worker.end(claimed, to, body=ERROR))
    await read()
    events = await published(shard, id)
    for reading in readings:
        entries = [(stamp, one.state.value) for stamp, one in reading]
        assert entries == sorted(entries)
        assert set(entries) <= set(events)
        assert all(stamp == one.stamp for stamp, one in reading)
    # Entries that a reader has seen stay, except the current state of a job that was queued again.
    for before, after in pairwise(readings):
        kept = [(stamp, one.state) for stamp, one in after]
        gone = [one.state for stamp, one in before if (stamp, one.state) not in kept]
        assert gone in ([], [State.QUEUED])
    final = [(one.state.value, one.attempt, one.cancel is not None) for _, one in readings[-1]]
    assert final == [
        ("scheduled", 0, False), ("running", 1, False), ("retrying", 1, False),
        ("running", 2, False), ("queued", 2, False), ("running", 2, False), ("queued", 2, False),
        ("running", 3, False),
        ("running", 3, True), ("cancelled", 3, True),
    ]  # fmt: skip
