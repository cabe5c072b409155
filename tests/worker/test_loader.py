"""Loading the tasks of modules, and the errors that stop a worker's start."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tandem_shared.errors import Misconfigured
from tandem_worker.loader import load_tasks


@pytest.fixture
def write_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], None]]:
    """Write modules that can be imported during one test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


ONE = "from tandem_worker import task\n@task({name!r})\ndef work(): ...\n"


def test_modules_are_loaded_with_the_built_in_tasks(
    write_module: Callable[[str, str], None],
) -> None:
    write_module("orders_a", ONE.format(name="orders.pay"))
    write_module(
        "orders_b/__init__", "from orders_b.inner import work\nfrom orders_a import work as other\n"
    )
    write_module("orders_b/inner", ONE.format(name="orders.ship"))
    tasks = load_tasks(["orders_a", "orders_b", "orders_b.inner", "orders_a"])
    assert tasks.keys() - load_tasks([]).keys() == {"orders.pay", "orders.ship"}
    assert {"http.request", "sql.query", "file.hash", "mongo.find"} <= tasks.keys()
    assert tasks["orders.ship"].module == "orders_b.inner"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "import not_installed_anywhere",
            "ModuleNotFoundError: No module named 'not_installed_anywhere'",
        ),
        ("raise RuntimeError('first line\\nsecond line')", "RuntimeError: first line"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        ("from tandem_worker import task\n@task('Wrong')\ndef work(): ...", "is named 'Wrong'"),
        ("from tandem_worker import task", "it defines no task"),
        (
            ONE.format(name="http.request"),
            (
                "broken.work and tandem_worker.tasks.http.request.request"
                " are both named 'http.request'"
            ),
        ),
    ],
)
def test_an_unusable_module_stops_the_start(
    write_module: Callable[[str, str], None], text: str, reason: str
) -> None:
    write_module("broken", text)
    with pytest.raises(Misconfigured) as caught:
        load_tasks(["broken"])
    assert str(caught.value).startswith("TANDEM_TASKS: broken: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_module_stops_the_start() -> None:
    with pytest.raises(Misconfigured, match="TANDEM_TASKS: nowhere: ModuleNotFoundError"):
        load_tasks(["nowhere"])
