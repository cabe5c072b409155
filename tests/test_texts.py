"""What the files say: names, widths, reasons for exceptions, and paths in the documentation."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import FOLDERS, PARTS, ROOT, modules, text, tracked

MAX_LINE_CHARS = 100  # ruff holds Python to the same

VAGUE = {
    *("base", "common", "core", "helper", "helpers"),
    *("manager", "managers", "misc", "util", "utils"),
}

# Joined here, so that this file passes its own test.
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("debian", "org"),
        ("ubuntu", "com"),
        ("crates", "io"),
        ("golang", "org"),
    )
)
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|Users|work)/\w")

SUPPRESSION = re.compile(
    r"#\s*(?:ruff:\s*noqa|noqa|type:\s*ignore|mypy:|pragma:|pyright:)", re.IGNORECASE
)
# The codes, then at least one word of explanation: test_what_counts_as_a_reason has examples.
REASONED = re.compile(
    r"#\s*(?:(?:ruff:\s*)?noqa:\s*[A-Z]+[0-9]+(?:\s*,\s*[A-Z]+[0-9]+)*+"
    r"|type:\s*ignore\[[a-z, -]+\])\W++(?!noqa|type:).*?[^\W\d_]{3}"
)

ARCHITECTURE = Path("docs/architecture.md")
PAGES = [path for path in tracked() if path.suffix == ".md"]
PACKAGES = {path.parts[1] for path in modules(*PARTS)}
SUFFIXES = "py|lua|md|toml|yml|json|lock|txt"
# `tests/chaos/`, `tandem_api/edge.py`, `Makefile`: a folder, or a file with a known suffix.
PATH = re.compile(
    rf"(?:[\w.*-]+/)+|(?:[\w.*-]+/)*[\w*-]+\.(?:{SUFFIXES})|Makefile|Dockerfile|\.ci/run"
)


def test_names_are_specific() -> None:
    wrong = [
        str(path)
        for path in tracked()
        if VAGUE & {part.partition(".")[0].lower() for part in path.parts}
    ]
    assert not wrong, "\n".join(wrong)


def test_lines_of_lua_are_short() -> None:
    scripts = [path for path in tracked() if path.suffix == ".lua"]
    assert scripts
    wrong = [
        f"{path}:{number} has {len(line)} characters"
        for path in scripts
        for number, line in enumerate(text(path).splitlines(), 1)
        if len(line) > MAX_LINE_CHARS
    ]
    assert not wrong, "\n".join(wrong)


def test_the_project_names_no_registry_and_no_path_of_one_machine() -> None:
    wrong: list[str] = []
    for path in tracked():
        for number, line in enumerate(text(path).splitlines(), 1):
            wrong += [
                f"{path}:{number} names {host}" for host in REGISTRIES if host in line.lower()
            ]
            if MACHINE_PATH.search(line):
                wrong.append(f"{path}:{number} has a path of one machine")
    assert not wrong, "\n".join(wrong)


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text(path)).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_every_suppression_has_a_reason() -> None:
    wrong = [
        f"{path}:{number} {comment}"
        for path in modules(*PARTS, "tests", "bench", "docs")
        for number, comment in _comments(path)
        if SUPPRESSION.search(comment) and not REASONED.search(comment)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("comment", "reasoned"),
    [
        ("# noqa: S608 - identifiers are checked", True),
        ("# noqa: S608, BLE001: a task may raise anything", True),
        ("# noqa: S608  # identifiers are checked", True),
        ("# type: ignore[no-untyped-call]  # asyncpg has no types", True),
        ("# type: ignore[attr-defined]  # `task` takes functions only", True),
        ("# noqa: S608 - see above", True),
        ("# noqa: S608", False),
        ("# type: ignore[arg-type]  # noqa: S608", False),
        ("# noqa", False),
        ("# type: ignore[no-untyped-call]", False),
        ("# type: ignore  # asyncpg has no types", False),
        ("# noqa: S608, BLE001", False),
        ("# ruff: noqa: S608", False),
    ],
)
def test_what_counts_as_a_reason(comment: str, *, reasoned: bool) -> None:
    assert SUPPRESSION.search(comment)
    assert bool(REASONED.search(comment)) is reasoned


def _missing(page: Path) -> Iterator[str]:
    """The paths in backticks that lead nowhere, from the root, the page or a package's folder."""
    prose = re.sub(r"^```.*?^```", "", text(page), flags=re.MULTILINE | re.DOTALL)
    starts = (ROOT, ROOT / page.parent, *(ROOT / part for part in PARTS))
    for span in re.findall(r"`([^`\n]+)`", prose):
        named = _named(span)
        if named and not any(any(start.glob(named)) for start in starts):
            yield named


def _named(span: str) -> str:
    """The path that a code span names; empty for other code, and for files of the reader's own."""
    if not PATH.fullmatch(span):
        return ""
    top = span.partition("/")[0]
    return span if top in (*FOLDERS, *PACKAGES) or (ROOT / top).exists() else ""


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_pages_name_only_files_that_exist(page: Path) -> None:
    missing = sorted(set(_missing(page)))
    assert not missing, f"{page} names {', '.join(missing)}"


def test_the_architecture_page_names_only_files_that_exist() -> None:
    """Also in its picture, and without their folders."""
    named = set(re.findall(r"(?<![\w/*])[\w/]+\.(?:py|lua)\b", text(ARCHITECTURE)))
    assert len(named) > 20
    files = [f"/{path}" for path in tracked()]
    missing = [name for name in named if not any(file.endswith(f"/{name}") for file in files)]
    assert not missing, f"{ARCHITECTURE} names {', '.join(sorted(missing))}"


def test_every_folder_of_the_packages_is_described() -> None:
    described = text(ARCHITECTURE)
    folders = {path.relative_to(path.parts[0]).parent for path in modules(*PARTS)}
    shown = {folder for folder in folders if len(folder.parts) < 3 and folder.name != "tandem_jobs"}
    missing = sorted(str(folder) for folder in shown if f"`{folder}/`" not in described)
    assert not missing, f"{ARCHITECTURE} leaves out {', '.join(missing)}"


def test_what_counts_as_a_path() -> None:
    assert _named("tandem_api/nowhere.py") == "tandem_api/nowhere.py"
    assert _named("tests/chaos/") == "tests/chaos/"
    assert _named("GET /v1/jobs") == ""
    assert _named("greetings.py") == ""
