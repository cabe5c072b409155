"""Just enough SQL parsing to find the placeholders, and to tell whether a text is one statement.

Quotes, quoted names, dollar quotes and comments are skipped as PostgreSQL and SQLite read them.
Values are never written into the text, so the worst result of a misreading is an error.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from tandem_worker.errors import Permanent

Dialect = Literal["postgresql", "sqlite"]
# A list for the database's own placeholders (`?`, `$1`), or an object for `:name`.
StatementParams = Sequence[Any] | Mapping[str, Any] | None

# PostgreSQL ends such a comment at a carriage return, too; SQLite does not.
_SPACE: dict[Dialect, str] = {
    "postgresql": r"(?P<space>\s+|--[^\r\n]*)",
    "sqlite": r"(?P<space>\s+|--[^\n]*)",
}
_COMMENT = r"(?P<comment>/\*)"
_QUOTED = r"""'(?:[^']|'')*'|"(?:[^"]|"")*\""""
_WORD = r"[^\W\d][\w$]*"
# `a[1:n]`, `x::text` and `:=` have colons, too: a placeholder's follows a space or an operator.
_NAMED = r"(?<![\w\])\"':]):(?P<named>[^\W\d]\w*)"
_REST = r"(?P<end>;)|::|."
_NUMBER = r"\$(?P<number>[0-9]+)"
_DOLLAR = r"\$(?P<tag>(?:[^\W\d]\w*)?)\$(?s:.*?)\$(?P=tag)\$"
_TOKENS: dict[Dialect, re.Pattern[str]] = {
    "postgresql": re.compile(
        rf"{_SPACE['postgresql']}|{_COMMENT}|[eE]'(?:[^'\\]|''|\\.)*'|{_QUOTED}|{_WORD}|{_NUMBER}|{_DOLLAR}|{_NAMED}|{_REST}",
        re.DOTALL,
    ),
    "sqlite": re.compile(
        rf"{_SPACE['sqlite']}|{_COMMENT}|{_QUOTED}|`(?:[^`]|``)*`|\[[^\]]*\]|{_WORD}|{_NAMED}|{_REST}",
        re.DOTALL,
    ),
}
_IN_COMMENT = re.compile(r"/\*|\*/")


def bind(sql: str, params: StatementParams, dialect: Dialect) -> tuple[str, list[Any]]:
    """The SQL for the database, and the values in the order of its placeholders.

    A list has the values of the database's own placeholders (`$1`, `?`), and the text stays as it
    is; an object has those of `:name`. Raises Permanent `sql_error` unless the text is one
    statement and has exactly the names of the object.
    """
    parts: list[str] = []
    order: dict[str, int] = {}
    named = isinstance(params, Mapping)
    mark = "$" if dialect == "postgresql" else "?"
    ended = found = False
    done = 0
    for match in _significant(sql, dialect):
        if match["end"] is not None:
            ended = True
            continue
        if ended:
            raise Permanent("sql_error", "the text has more than one statement")
        found = True
        name = match["named"]
        if name is not None and named:
            number = order.setdefault(name, len(order) + 1)
            parts += [sql[done : match.start()], f"{mark}{number}"]
            done = match.end()
    if not found:
        raise Permanent("sql_error", "the text has no statement")
    if not isinstance(params, Mapping):
        return sql, list(params or ())
    missing = [name for name in order if name not in params]
    unused = [name for name in params if name not in order]
    if missing:
        raise Permanent("sql_error", f"params has no value for :{missing[0]}")
    if unused:
        message = f"params has {unused[0]!r}, but the statement has no :{unused[0]}"
        raise Permanent("sql_error", message)
    return "".join([*parts, sql[done:]]), [params[name] for name in order]


def replace_numbered(sql: str, texts: Sequence[str]) -> str:
    """The PostgreSQL statement without its semicolon; `texts[0]` replaces `$1`, and so on."""
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
    """The statement's first token in lower case, usually its command."""
    return next((match[0].lower() for match in _significant(sql, dialect)), "")


def _significant(sql: str, dialect: Dialect) -> Iterator[re.Match[str]]:
    """The tokens that are neither spaces nor comments."""
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
