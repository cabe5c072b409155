"""Reading SQL just far enough: where its placeholders are, and whether it is one statement.

Quotes, quoted names, dollar quotes and comments are passed over as PostgreSQL and SQLite read them.
Values are never written into the text: a misread text is one that the database refuses.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from tandem_worker.errors import TaskError

Dialect = Literal["postgresql", "sqlite"]

_SPACE = r"(?P<space>\s+|--[^\n]*)"
_COMMENT = r"(?P<comment>/\*)"
_QUOTED = r"""'(?:[^']|'')*'|"(?:[^"]|"")*\""""
_WORD = r"[^\W\d][\w$]*"
# `a[1:n]`, `x::text` and `:=` have colons too: a placeholder's stands after a space or an operator.
_NAMED = r"(?<![\w\])\"':]):(?P<named>[^\W\d]\w*)"
_REST = r"(?P<end>;)|::|."
_NUMBER = r"\$(?P<number>[0-9]+)"
_DOLLAR = r"\$(?P<tag>(?:[^\W\d]\w*)?)\$(?s:.*?)\$(?P=tag)\$"
_TOKENS: dict[Dialect, re.Pattern[str]] = {
    "postgresql": re.compile(
        rf"{_SPACE}|{_COMMENT}|[eE]'(?:[^'\\]|''|\\.)*'|{_QUOTED}|{_WORD}|{_NUMBER}|{_DOLLAR}|{_NAMED}|{_REST}",
        re.DOTALL,
    ),
    "sqlite": re.compile(
        rf"{_SPACE}|{_COMMENT}|{_QUOTED}|`(?:[^`]|``)*`|\[[^\]]*\]|{_WORD}|{_NAMED}|{_REST}",
        re.DOTALL,
    ),
}
_IN_COMMENT = re.compile(r"/\*|\*/")


def bind(
    sql: str, params: Sequence[Any] | Mapping[str, Any] | None, dialect: Dialect
) -> tuple[str, list[Any]]:
    """The text as the database takes it, with the values in its order.

    Values in a list belong to the database's own placeholders (`$1`, `?`) and leave the text as it
    is; in an object they belong to `:name`. Raises TaskError `sql_error` for several statements,
    none, a name without a value or a value without its name.
    """
    parts: list[str] = []
    order: dict[str, int] = {}
    named = isinstance(params, Mapping)
    ended = found = False
    done = 0
    for match in _significant(sql, dialect):
        if match["end"] is not None:
            ended = True
            continue
        if ended:
            raise _wrong("one statement in each call, this is more")
        found = True
        name = match["named"]
        if name is not None and named:
            number = order.setdefault(name, len(order) + 1)
            parts += [
                sql[done : match.start()],
                f"{'$' if dialect == 'postgresql' else '?'}{number}",
            ]
            done = match.end()
    if not found:
        raise _wrong("there is no statement in it")
    if not isinstance(params, Mapping):
        return sql, list(params or ())
    missing = [name for name in order if name not in params]
    unused = [name for name in params if name not in order]
    if missing:
        raise _wrong(f"no value in params for :{missing[0]}")
    if unused:
        raise _wrong(f"params has {unused[0]!r}, but the statement has no :{unused[0]}")
    return "".join([*parts, sql[done:]]), [params[name] for name in order]


def numbered(sql: str, texts: Sequence[str]) -> str:
    """One statement of PostgreSQL, without what ends it, with `texts[0]` in place of `$1` and so on."""
    parts: list[str] = []
    done = 0
    for match in _significant(sql, "postgresql"):
        if match["end"] is not None:
            return "".join([*parts, sql[done : match.start()]])
        if match["number"] is not None:
            parts += [sql[done : match.start()], texts[int(match["number"]) - 1]]
            done = match.end()
    return "".join([*parts, sql[done:]])


def first_word(sql: str, dialect: Dialect) -> str:
    """The statement's first token in lower case: its command, for what begins with one."""
    return next((match[0].lower() for match in _significant(sql, dialect)), "")


def _significant(sql: str, dialect: Dialect) -> Iterator[re.Match[str]]:
    """The tokens that are neither space nor comment."""
    position = 0
    tokens = _TOKENS[dialect]
    while match := tokens.match(sql, position):
        position = match.end()
        if match["comment"] is not None:
            position = _after_comment(sql, position, nested=dialect == "postgresql")
        elif match["space"] is None:
            yield match


def _after_comment(sql: str, position: int, *, nested: bool) -> int:
    depth = 1
    while depth and (mark := _IN_COMMENT.search(sql, position)):
        position = mark.end()
        if mark[0] == "*/":
            depth -= 1
        elif nested:
            depth += 1
    return position if depth == 0 else len(sql)


def _wrong(what: str) -> TaskError:
    return TaskError("sql_error", what, retryable=False)
