"""Parsing placeholders in SQL."""

from typing import Any

import pytest

from tandem_worker.connectors.sql.statements.placeholders import Dialect, bind
from tandem_worker.errors import TaskError

VALUES = {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT :a, :b, :a", "SELECT $1, $2, $1"),
        ("SELECT * FROM t WHERE x=:a AND y>=:b", "SELECT * FROM t WHERE x=$1 AND y>=$2"),
        ("SELECT :a::int, x::text, :b :: text", "SELECT $1::int, x::text, $2 :: text"),
        ("SELECT ':a', '''x'':a', :a, :b", "SELECT ':a', '''x'':a', $1, $2"),
        (r"SELECT e'\':a', E'\\', :a, :b", r"SELECT e'\':a', E'\\', $1, $2"),
        (r"SELECT '\', :a, :b", r"SELECT '\', $1, $2"),
        ('SELECT ":a", "x"":a", :a, :b', 'SELECT ":a", "x"":a", $1, $2'),
        ("SELECT $$:a$$, $tag$ $$ :a $tag$, :a, :b", "SELECT $$:a$$, $tag$ $$ :a $tag$, $1, $2"),
        ("SELECT a$x$ + :a, b$x$ + :b", "SELECT a$x$ + $1, b$x$ + $2"),
        ("SELECT :a -- :c\n, :b", "SELECT $1 -- :c\n, $2"),
        ("SELECT :a /* :c /* :d */ ' */, :b", "SELECT $1 /* :c /* :d */ ' */, $2"),
        ("SELECT arr[1:2], arr[x:y], :a, :b", "SELECT arr[1:2], arr[x:y], $1, $2"),
        ("SELECT (:a), ARRAY[:b, :a]", "SELECT ($1), ARRAY[$2, $1]"),
        ("SELECT :a, :b;  -- the end\n", "SELECT $1, $2;  -- the end\n"),
        ("SELECT ';', :a, \";\", :b /* ; */", "SELECT ';', $1, \";\", $2 /* ; */"),
    ],
)
def test_names_become_numbers_in_postgresql(sql: str, expected: str) -> None:
    assert bind(sql, VALUES, "postgresql") == (expected, [1, 2])


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT :a, :b, :a", "SELECT ?1, ?2, ?1"),
        ("SELECT [:a], `:a`, :a, :b", "SELECT [:a], `:a`, ?1, ?2"),
        ("SELECT :a /* /* */, :b -- */", "SELECT ?1 /* /* */, ?2 -- */"),
        ("SELECT $$, :a, :b, $$", "SELECT $$, ?1, ?2, $$"),
    ],
)
def test_names_become_numbers_in_sqlite(sql: str, expected: str) -> None:
    assert bind(sql, VALUES, "sqlite") == (expected, [1, 2])


def test_values_follow_the_order_of_the_text() -> None:
    assert bind("SELECT :b, :a", VALUES, "postgresql") == ("SELECT $1, $2", [2, 1])


@pytest.mark.parametrize("params", [None, [], [1, 2]])
def test_sql_with_the_databases_own_placeholders_is_unchanged(params: list[Any] | None) -> None:
    sql = "SELECT $1, ':x', :x, ?"
    assert bind(sql, params, "postgresql") == (sql, params or [])


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])
@pytest.mark.parametrize(
    ("sql", "params", "words"),
    [
        ("SELECT 1; SELECT 2", None, "one statement"),
        ("SELECT 1;;", [], None),
        ("SELECT 1; /* */ -- x\n ;", None, None),
        (";SELECT 1", None, "one statement"),
        ("COMMIT; DROP TABLE t", None, "one statement"),
        ("SELECT 1; DROP TABLE t; --", {}, "one statement"),
        ("SELECT '; DROP TABLE t", None, "one statement"),
        ("", None, "no statement"),
        (" -- nothing\n/* at all */ ;", None, "no statement"),
        ("SELECT :a, :c", {"a": 1}, "params has no value for :c"),
        ("SELECT :a", {"a": 1, "z": 2}, "params has 'z'"),
    ],
)
def test_anything_but_one_statement_with_all_its_values_is_refused(
    sql: str, params: Any, words: str | None, dialect: Dialect
) -> None:
    if words is None:
        bind(sql, params, dialect)
        return
    with pytest.raises(TaskError, match=words) as caught:
        bind(sql, params, dialect)
    assert (caught.value.type, caught.value.retryable) == ("sql_error", False)
