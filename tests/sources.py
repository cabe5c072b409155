"""The project's own files, as the tests of its architecture and its texts read them."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = ("api", "worker", "shared")
FOLDERS = (*PARTS, "tests", "bench", "docs", ".ci")


@cache
def tracked() -> tuple[Path, ...]:
    """Every file of the project, relative to its root; without git, those of the known folders."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607 - the tester's own git
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    names = [Path(name) for name in listing.stdout.decode().split("\0") if name]
    if listing.returncode != 0 or not names:
        names = [
            path.relative_to(ROOT)
            for folder in FOLDERS
            for path in (ROOT / folder).rglob("*")
            if "__pycache__" not in path.parts
        ]
        names += [Path(path.name) for path in (*ROOT.glob("*.*"), ROOT / "Makefile")]
    return tuple(sorted(name for name in names if (ROOT / name).is_file()))


def modules(*folders: str) -> list[Path]:
    """The Python files below these top-level folders."""
    return [path for path in tracked() if path.suffix == ".py" and path.parts[0] in folders]


def text(path: Path) -> str:
    """The file's text; empty for a binary file."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(text(path), filename=str(path))


def module_name(path: Path) -> str:
    """The dotted import name of a module below api/, worker/ or shared/."""
    return ".".join(path.with_suffix("").parts[1:]).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, including lazy, typing-only and dynamic ones."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, _source(path, node)
        elif isinstance(node, ast.Call) and (name := _dynamic(node)) is not None:
            yield node.lineno, name


def _source(path: Path, node: ast.ImportFrom) -> str:
    """The module that a `from … import` names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    parents = path.parent.parts[: len(path.parent.parts) - node.level + 1]
    return ".".join((*parents, *filter(None, [node.module])))


def _dynamic(call: ast.Call) -> str | None:
    """The module that a call such as `import_module("x")` imports."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in ("import_module", "__import__", "run_module") or not call.args:
        return None
    first = call.args[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
