"""The types of errors that docs/errors.md lists."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs" / "errors.md"
_ROW = re.compile(r"^\| (`[^|]+`) \|[^|]+\| (\w+) \|$", re.MULTILINE)


def documented() -> dict[str, str]:
    """Each type, and whether it is retried: never, yes, repeatable or transient."""
    return {
        type_: retried
        for types, retried in _ROW.findall(DOCS.read_text(encoding="utf-8"))
        for type_ in re.findall(r"`([^`]+)`", types)
    }
