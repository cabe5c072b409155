"""What may stand where: the rules of the house that no linter knows, read from the files themselves."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PARTS = ("api", "worker", "shared")
# Package → what it may import of ours. `tandem dev` runs its demo through the client.
MAY_IMPORT = {
    "tandem_api": {"tandem_shared"},
    "tandem_worker": {"tandem_shared"},
    "tandem_shared": set[str](),
    "tandem_shared.dev": {"tandem_jobs"},
    "tandem_jobs": {"tandem_shared"},
}
PACKAGES = {name for name in MAY_IMPORT if "." not in name}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}

# Words of Redis that no other library's methods share: who says them touches keys.
REDIS_COMMANDS = {
    *(
        "blmove",
        "blpop",
        "brpop",
        "bzpopmin",
        "eval",
        "evalsha",
        "hdel",
        "hget",
        "hgetall",
        "hincrby",
        "hkeys",
    ),
    *(
        "hlen",
        "hmget",
        "hscan",
        "hset",
        "hsetnx",
        "hvals",
        "incrby",
        "lpop",
        "lpush",
        "lrange",
        "lrem",
        "ltrim",
    ),
    *(
        "pexpire",
        "psetex",
        "pubsub",
        "rpop",
        "rpush",
        "sadd",
        "scan_iter",
        "script_load",
        "setex",
        "setnx",
        "sismember",
    ),
    *(
        "smembers",
        "srem",
        "xack",
        "xadd",
        "xautoclaim",
        "xclaim",
        "xdel",
        "xgroup_create",
        "xlen",
        "xrange",
        "xread",
    ),
    *(
        "xreadgroup",
        "xrevrange",
        "xtrim",
        "zadd",
        "zcard",
        "zcount",
        "zincrby",
        "zpopmin",
        "zrange",
        "zrangebyscore",
    ),
    *("zrem", "zremrangebyscore", "zscore", "register_script", "execute_command", "pipeline"),
}
QUEUE = Path("shared/tandem_shared/queue")

MAX_FILES_PER_FOLDER = 20  # Python files
LONGEST = 400
LONGER: dict[str, str] = {}  # path → why it is better as one file

VAGUE = {
    "utils",
    "util",
    "core",
    "common",
    "helpers",
    "helper",
    "base",
    "manager",
    "managers",
    "misc",
}

# In parts, so that this file may be read by its own test.
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
# The codes, then a word at least that says why: see the table of test_what_counts_as_a_reason.
REASONED = re.compile(
    r"#\s*(?:(?:ruff:\s*)?noqa:\s*[A-Z]+[0-9]+(?:\s*,\s*[A-Z]+[0-9]+)*+|type:\s*ignore\[[a-z, -]+\])"
    r"\W++(?!noqa|type:).*?[^\W\d_]{3}"
)


def tracked() -> list[Path]:
    """Every file of the project, relative to its root; without git, those of the project's own folders."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607 - git of whoever tests
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0 and listing.stdout:
        names = [Path(name) for name in listing.stdout.decode().split("\0") if name]
    else:
        folders = (*PARTS, "tests", "bench", "docs", ".ci")
        found = [
            path
            for folder in folders
            for path in (ROOT / folder).rglob("*")
            if "__pycache__" not in path.parts
        ]
        names = [
            path.relative_to(ROOT)
            for path in [*found, *ROOT.glob("*.*"), ROOT / "Makefile", ROOT / "Dockerfile"]
        ]
    return sorted(name for name in names if (ROOT / name).is_file())


def modules(*parts: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.parts[0] in parts]


def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), filename=str(path))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a module imports, also late, for typing only, or through importlib."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = (
                ".".join(path.parent.parts[: len(path.parent.parts) - node.level + 1])
                if node.level
                else ""
            )
            yield node.lineno, ".".join(part for part in (above, node.module) if part)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if name in ("import_module", "__import__", "run_module") and isinstance(
                node.args[0].value, str
            ):
                yield node.lineno, node.args[0].value


def text(path: Path) -> str:
    """The file as text; empty for bytes that are none."""
    try:
        return (ROOT / path).read_text()
    except UnicodeDecodeError:
        return ""


def module_name(path: Path) -> str:
    """The dotted name of a module of the three parts."""
    return ".".join(path.with_suffix("").parts[1:]).removesuffix(".__init__")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_each_package_imports_only_what_it_may(package: str) -> None:
    paths = [path for path in modules(*PARTS) if f"{module_name(path)}.".startswith(f"{package}.")]
    assert paths, f"{package} has no modules: this test looks at the wrong place"
    inner = [name for name in MAY_IMPORT if name.startswith(f"{package}.")]
    allowed = {package.partition(".")[0]} | MAY_IMPORT[package]
    wrong = [
        f"{path}:{line} imports {name}"
        for path in paths
        if not any(f"{module_name(path)}.".startswith(f"{one}.") for one in inner)
        for line, name in imported(path)
        if name.partition(".")[0] in {*PACKAGES, "tests", "bench"} - allowed
    ]
    assert not wrong, "\n".join(wrong)


def rooms(path: Path) -> str:
    """What a module counts as among the folders: its folder, or itself where it lies flat in its package."""
    name = module_name(path)
    return name if len(path.parts) == 3 else name.rpartition(".")[0]


def known_module(name: str, known: set[str]) -> str | None:
    """The module that an import of `name` loads: the name itself, or the module that has it."""
    return next((one for one in (name, name.rpartition(".")[0]) if one in known), None)


def import_graph(*, folders: bool) -> dict[str, set[str]]:
    """Who imports whom while being imported, among our modules or among their folders."""
    paths = {module_name(path): path for path in modules(*PARTS)}
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        source = rooms(path) if folders else name
        for target in loaded(path, set(paths)):
            found = rooms(paths[target]) if folders else target
            if found != source:
                graph.setdefault(source, set()).add(found)
    return graph


def loaded(path: Path, known: set[str]) -> Iterator[str]:
    """Our modules that this one imports, also late or for typing only."""
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        for alias in node.names:
            found = known_module(f"{node.module}.{alias.name}", known)
            if found is not None:
                yield found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of one circle, in order; empty if there is none."""
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        found = next(
            filter(None, (walk(to, [*trail, node]) for to in sorted(graph.get(node, ())))), []
        )
        done.add(node)
        return found

    return next(filter(None, (walk(node, []) for node in sorted(graph))), [])


@pytest.mark.parametrize("folders", [False, True], ids=["files", "folders"])
def test_imports_make_no_circle(*, folders: bool) -> None:
    graph = import_graph(folders=folders)
    assert len(graph) > 20, "hardly anything imports anything: this test looks at the wrong place"
    assert not (found := circle(graph)), " → ".join(found)


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_folders_are_small() -> None:
    counted = Counter(
        path.parent for path in modules(*PARTS, "tests", "bench") if path.name != "__init__.py"
    )
    wrong = [
        f"{folder}: {count} files"
        for folder, count in counted.items()
        if count > MAX_FILES_PER_FOLDER
    ]
    assert not wrong, "\n".join(wrong)


def shipped() -> set[str]:
    """The names of the distributions that come with the project when it is installed without extras."""
    found: set[str] = set()
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    todo = [Requirement(line) for line in dependencies]
    while todo:
        one = todo.pop()
        if canonicalize_name(one.name) in found and not one.extras:
            continue
        found.add(canonicalize_name(one.name))
        needs = [Requirement(line) for line in metadata.requires(one.name) or ()]
        extras = ("", *one.extras)
        todo += [
            need
            for need in needs
            if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras)
        ]
    return found


def test_the_service_needs_nothing_that_only_tests_install() -> None:
    owners = metadata.packages_distributions()
    own = {
        *sys.stdlib_module_names,
        "compression",
    }  # Python's own since 3.14, imported from there on
    allowed = shipped()
    wrong = [
        f"{path}:{line} imports {name}"
        for path in modules(*PARTS)
        for line, name in imported(path)
        for top in [name.partition(".")[0]]
        if top not in own and top not in PACKAGES
        if not allowed & {canonicalize_name(owner) for owner in owners.get(top, ())}
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_pickled() -> None:
    wrong = [
        f"{path}:{line} imports {name}"
        for path in modules(*PARTS, "tests", "bench", "docs")
        for line, name in imported(path)
        if name.partition(".")[0] in PICKLES
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_queue_names_its_keys() -> None:
    wrong = [
        f"{path}:{node.lineno} spells a queue key"
        for path in modules(*PARTS, "bench", "docs")
        if not path.is_relative_to(QUEUE)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and "tandem:{" in node.value
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_queue_speaks_to_redis() -> None:
    calls = [
        (path, node.lineno, node.func.attr)
        for path in modules(*PARTS)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in REDIS_COMMANDS
    ]
    assert any(path.is_relative_to(QUEUE) for path, _, _ in calls), (
        "the queue makes no call: the list is out of date"
    )
    wrong = [
        f"{path}:{line} calls .{name}()"
        for path, line, name in calls
        if not path.is_relative_to(QUEUE)
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_short() -> None:
    sources = [path for path in tracked() if path.suffix in (".py", ".lua")]
    lengths = {str(path): len(text(path).splitlines()) for path in sources}
    wrong = [
        f"{path}: {n} lines, is asking to be two"
        for path, n in lengths.items()
        if n > LONGEST and path not in LONGER
    ]
    assert not wrong, "\n".join(wrong)
    assert all(lengths.get(path, 0) > LONGEST for path in LONGER), (
        "an exception that is no longer needed"
    )


def test_names_say_something() -> None:
    wrong = [
        str(path)
        for path in tracked()
        if VAGUE & {part.partition(".")[0].lower() for part in path.parts}
    ]
    assert not wrong, "\n".join(wrong)


def makers(module: ast.Module) -> set[str]:
    """The names, as this module spells them, that build settings."""
    return {
        alias.asname or alias.name
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and node.module == "tandem_shared.settings"
        for alias in node.names
        if alias.name in ("Settings", "load")
    } | {"settings.load", "settings.Settings"}


def test_settings_are_passed() -> None:
    wrong = [
        f"{path}:{node.lineno} builds settings when it is imported"
        for path in modules(*PARTS)
        for module in [tree(path)]
        for statement in module.body
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.If)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in makers(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_project_speaks_of_itself_alone() -> None:
    wrong: list[str] = []
    for path in tracked():
        for number, line in enumerate(text(path).splitlines(), 1):
            wrong += [
                f"{path}:{number} names {host}" for host in REGISTRIES if host in line.lower()
            ]
            if MACHINE_PATH.search(line):
                wrong.append(f"{path}:{number} has a path of one machine")
    assert not wrong, "\n".join(wrong)


def comments(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text(path)).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_every_suppression_says_why() -> None:
    wrong = [
        f"{path}:{number} {comment}"
        for path in modules(*PARTS, "tests", "bench", "docs")
        for number, comment in comments(path)
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
        ("# noqa: S608 - likewise", True),
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
