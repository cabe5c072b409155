"""The decorator: what it reads from a function, and what it rejects."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError
from typing_extensions import TypedDict

from tandem_shared.retry_policy import RetryPolicy
from tandem_worker import task
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.task import task_of
from tandem_worker.testing import run

if TYPE_CHECKING:
    from tandem_worker import NotThere  # type: ignore[attr-defined] # a name that only an annotation has
    from tandem_worker.jobs.job import Job as HiddenJob


class Point(BaseModel):
    x: float
    label: str = Field("", alias="the label")


@dataclass
class Pair:
    left: int
    right: int = 2


class Options(TypedDict, total=False):
    deep: bool


def test_a_decorated_function_stays_a_function() -> None:
    @task(
        "sum.two",
        timeout="1m",
        queue="heavy",
        priority="low",
        version=3,
        summary="Adds.",
        example=[1, 2],
    )
    def add(payload: list[int]) -> int:
        return sum(payload)

    assert add([1, 2]) == 3
    entry = task_of(add).entry
    assert (entry.name, entry.summary, entry.queue, entry.version, entry.example) == (
        "sum.two", "Adds.", "heavy", 3, [1, 2],
    )  # fmt: skip
    assert entry.defaults == {"timeout": 60, "priority": "low", "retry": RetryPolicy().model_dump()}
    assert entry.payload_schema == {"type": "array", "items": {"type": "integer"}}
    assert entry.result_schema == {"type": "integer"}


def test_only_the_name_is_required() -> None:
    @task("nothing")
    async def nothing():  # type: ignore[no-untyped-def] # noqa: ANN202 - what people write
        pass

    entry = task_of(nothing).entry
    assert entry.defaults["timeout"] == 30
    assert (entry.queue, entry.summary, entry.version, entry.example, entry.result_schema) == (
        "default",
        "",
        1,
        None,
        {},
    )
    assert entry.payload_schema == {"type": "object", "additionalProperties": True}


def test_the_summary_is_the_first_paragraph() -> None:
    @task("documented")
    async def documented() -> None:
        """What it does,
        in two lines.

        And more.
        """  # noqa: D205 - what people write

    assert task_of(documented).entry.summary == "What it does, in two lines."


async def test_parameters_are_recognized_by_type_or_name() -> None:
    class Local(BaseModel):
        n: int

    @task("a")
    async def both(job: Job, payload: Point) -> list[Any]:
        return [job.id, payload.x]

    @task("b")
    async def other_order(payload: Point, context: Job) -> list[Any]:
        return [context.id, payload.x]

    @task("c")
    async def written(job: "Job", payload: "Local") -> list[Any]:
        return [job.id, payload.n]

    @task("d")
    async def hidden(job: "HiddenJob", payload: "Local") -> "NotThere":
        return [job.id, payload.n]

    @task("e")
    async def bare(job, payload):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202 - what people write
        return [job.id, payload["x"]]

    @task("f")
    def threaded(job: SyncJob, payload: Point) -> list[Any]:
        return [job.id, payload.x]

    @task("g")
    def threaded_with_a_job(payload: Point, job: Job) -> list[Any]:
        return [job.id, payload.x]

    for function in (both, other_order, written, hidden, bare, threaded, threaded_with_a_job):
        payload = {"n": 5} if function in (written, hidden) else {"x": 5}
        assert await run(function, payload, job_id="one") == ["one", 5], function.__name__
    assert task_of(hidden).entry.result_schema == {}


async def test_payloads_of_many_types() -> None:
    @task("a")
    async def pair(payload: Pair) -> int:
        return payload.left + payload.right

    @task("b")
    async def typed(payload: Options) -> bool:
        return payload.get("deep", False)

    @task("c")
    async def word(payload: Literal["on", "off"]) -> str:
        return payload

    @task("d")
    async def optional(payload: int | None) -> int:
        return payload or 0

    assert await run(pair, {"left": 1}) == 3
    assert await run(typed, {"deep": True}) is True
    assert await run(word, "on") == "on"
    assert task_of(optional).decode(b"null") is None
    for function, wrong in ((pair, {}), (typed, {"deep": []}), (word, "maybe"), (optional, "x")):
        with pytest.raises(ValidationError):
            await run(function, wrong)


def test_schemas_contain_the_definitions_of_nested_models() -> None:
    class Path(BaseModel):
        points: list[Point]

    @task("path")
    async def path(payload: Path) -> Path:
        return payload

    schema = task_of(path).entry.payload_schema
    assert schema["properties"]["points"]["items"] == {"$ref": "#/$defs/Point"}
    assert "the label" in schema["$defs"]["Point"]["properties"]


def test_the_kind_of_function_decides_where_it_runs() -> None:
    async def coroutine() -> None: ...
    async def stream() -> AsyncIterator[int]:
        yield 1

    def generator() -> Iterator[int]:
        yield 1

    kinds = [
        task_of(task("some.name")(function)).kind
        for function in (coroutine, stream, plain, generator)
    ]
    assert kinds == ["async", "stream", "thread", "thread"]
    assert task_of(task("some.name", cpu=True)(plain)).kind == "process"


def test_the_result_of_a_generator_is_null() -> None:
    @task("a")
    async def stream(payload: int) -> AsyncIterator[int]:
        yield payload

    @task("b")
    def threaded(payload: int) -> Iterator[int]:
        yield payload

    assert task_of(stream).kind == "stream"
    assert task_of(threaded).kind == "thread"
    assert (
        task_of(stream).entry.result_schema
        == task_of(threaded).entry.result_schema
        == {"type": "null"}
    )


def plain(payload: int) -> int:
    return payload


async def on_the_loop(job: Job) -> None: ...


def two_jobs(job: Job, other: SyncJob) -> None: ...


def two_payloads(a: int, b: int) -> None: ...


def many(*payloads: int) -> None: ...


def by_name(*, payload: int) -> None: ...


def unknown(payload: "NotThere") -> None: ...


def callback(payload: Callable[[], int]) -> None: ...


async def wants_a_sync_job(job: SyncJob) -> None: ...


def local() -> Callable[..., Any]:
    def inside() -> None: ...

    return inside


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (plain, {"name": "Image Thumbnail"}, "is named 'Image Thumbnail'"),
        (plain, {"name": "a..b"}, "is named"),
        (plain, {"timeout": "soon"}, "timeout: 'soon' is not a duration"),
        (plain, {"timeout": 0}, "above 0 and at most 24h"),
        (plain, {"timeout": "25h"}, "above 0 and at most 24h"),
        (plain, {"retry": 3}, "retry=RetryPolicy"),
        (plain, {"queue": "my queue"}, "queue='my queue'"),
        (plain, {"priority": "urgent"}, "high, normal or low"),
        (plain, {"version": 0}, "version=0"),
        (plain, {"example": "three"}, "an example that its payload rejects"),
        # Pydantic would accept it, the API does not.
        (plain, {"example": "3"}, "an example that its payload rejects"),
        (on_the_loop, {"cpu": True}, "cpu=True, which is for plain def"),
        (two_jobs, {}, "takes a second job, 'other'"),
        (two_payloads, {}, "takes a second payload, 'b'"),
        (many, {}, "cannot take *payloads"),
        (by_name, {}, "cannot take payload"),
        (unknown, {}, "annotates 'payload' with 'NotThere'"),
        (callback, {}, "no JSON Schema"),
        (wants_a_sync_job, {}, "takes a SyncJob; use Job"),
        (local(), {"cpu": True}, "move it to the top level of its module"),
    ],
)
def test_wrong_use_raises_at_the_decorator(
    function: Callable[..., Any], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        task(**{"name": "some.name", **arguments})(function)
    assert words in str(caught.value)
    assert function.__qualname__ in str(caught.value)


def test_a_missing_name_raises_at_the_decorator() -> None:
    with pytest.raises(TypeError, match=r"plain has no name; write @task"):
        task(plain)  # type: ignore[arg-type] # the mistake itself
    with pytest.raises(TypeError, match="decorates functions"):
        task("some.name")(Point)

    def undecorated() -> None: ...

    with pytest.raises(TypeError, match="is not a task"):
        task_of(undecorated)


@given(st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True), min_size=1, max_size=5))
def test_dotted_words_are_names(words: list[str]) -> None:
    name = ".".join(words)
    assert task_of(task(name)(lambda: None)).name == name


def test_limits_are_published_where_set() -> None:
    @task("both", concurrency=10, rate="100/m")
    async def both() -> None: ...

    @task("one", rate="5/10s")
    async def one() -> None: ...

    assert {name: task_of(both).entry.defaults[name] for name in ("concurrency", "rate")} == {
        "concurrency": 10,
        "rate": "100/m",
    }
    assert task_of(one).entry.defaults["rate"] == "5/10s"
    assert "concurrency" not in task_of(one).entry.defaults


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"concurrency": 0}, ValueError, "has concurrency=0: use a number between 1 and 1,000,000"),
        ({"concurrency": -1}, ValueError, "has concurrency=-1"),
        (
            {"concurrency": True},
            TypeError,
            "has concurrency=True; use the number of attempts that may run",
        ),
        ({"concurrency": "2"}, TypeError, "has concurrency='2'"),
        ({"rate": 10}, TypeError, "has rate=10; use a string such as"),
        ({"rate": "10"}, ValueError, "has rate='10': not a rate; use starts per period"),
        ({"rate": "0/s"}, ValueError, "has rate='0/s'"),
        ({"rate": "5/0s"}, ValueError, "has rate='5/0s'"),
        ({"rate": "1.5/s"}, ValueError, "has rate='1.5/s'"),
        ({"rate": "-1/s"}, ValueError, "has rate='-1/s'"),
        ({"rate": "5/fortnight"}, ValueError, "has rate='5/fortnight'"),
        (
            {"rate": "20/ms"},
            ValueError,
            "has rate='20/ms': use a rate between 1 per day and 10,000 per second",
        ),
        ({"rate": "1/2d"}, ValueError, "has rate='1/2d'"),
    ],
)
def test_wrong_limits_raise_at_the_decorator(
    given: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:

        @task("wrong", **given)
        async def wrong() -> None: ...

    assert text in str(caught.value)
    assert "wrong" in str(caught.value)
