"""docs/errors.md lists the types of errors that the code raises: all of them, and no others."""

import ast
import re

from tests.error_types import documented
from tests.sources import modules, tree

RAISERS = {"Permanent", "TaskError", "Fault"}
# Made in Lua or by the API, or composed: `retry` is the type of Retry.
ELSEWHERE = {"exception:<Class>", "worker_lost", "record_lost", "expired", "retry"}
EXAMPLE = "card_declined"  # in docstrings


def raised() -> set[str]:
    found = set()
    for path in modules("worker"):
        for node in ast.walk(tree(path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in RAISERS
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value))
    return found


def test_every_type_is_documented_and_every_documented_type_exists() -> None:
    types = {re.sub(r"^exception:.*", "exception:<Class>", type_) for type_ in raised()}
    assert len(types) > 30, "the search finds nearly nothing: correct it"
    assert types | ELSEWHERE == set(documented())


def test_each_type_says_whether_it_is_retried() -> None:
    assert set(documented().values()) == {"never", "yes", "repeatable", "transient"}
