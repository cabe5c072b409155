"""Which code may be where: layers, imports, and the size of folders, files and functions."""

import ast
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.distributions import required
from tests.sources import PARTS, imports, module_name, modules, text, tracked, tree

# Package → which of our other packages it may import. `tandem dev` runs its demo with the client.
MAY_IMPORT = {
    "tandem_api": {"tandem_shared"},
    "tandem_worker": {"tandem_shared"},
    "tandem_shared": set[str](),
    "tandem_shared.dev": {"tandem_jobs"},
    "tandem_jobs": {"tandem_shared"},
}
PACKAGES = {name for name in MAY_IMPORT if "." not in name}
# Package → the extras that install what it imports; the client and the command need none.
EXTRAS = {
    "tandem_jobs": set[str](),
    "tandem_shared": {"shared"},
    "tandem_api": {"api"},
    "tandem_worker": {"worker"},
}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}

# Redis commands whose names no other library uses for its methods: calling one touches keys.
REDIS_COMMANDS = set(
    """
    blmove blpop brpop bzpopmin eval evalsha execute_command hdel hget hgetall hincrby hkeys hlen
    hmget hscan hset hsetnx hvals incrby lpop lpush lrange lrem ltrim pexpire pipeline psetex pubsub
    register_script rpop rpush sadd scan_iter script_load setex setnx sismember smembers srem xack
    xadd xautoclaim xclaim xdel xgroup_create xlen xrange xread xreadgroup xrevrange xtrim zadd
    zcard zcount zincrby zpopmin zrange zrangebyscore zrem zremrangebyscore zscore
    """.split()
)
QUEUE = Path("shared/tandem_shared/queue")
# Where the clock of a host is read, and why a wrong one does no harm there. Everything else that
# decides over data asks `RedisClock`, or counts with a monotonic clock.
HOST_CLOCKS = {
    "shared/tandem_shared/queue/clock.py": "it can only put a deletion off",
    "shared/tandem_shared/jobs/ids.py": "ids of tests and tools; services give the time",
    "shared/tandem_shared/dev/demo.py": "a year to print",
    "worker/tandem_worker/testing.py": "a task that is tested has no Redis",
    "worker/tandem_worker/tasks/http/responses.py": "a server that sends no Date",
    "worker/tandem_worker/connectors/http/cookies.py": "how long a cookie lives within one call",
    "worker/tandem_worker/connectors/mongo/connection.py": "for people who read tandem_applied",
}

MAX_FILES_PER_FOLDER = 20  # Python files
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_FUNCTION_LINES = 8
# Functions that may stand in an __init__.py: the lazy loading of a package's names.
LAZY = {"tandem_jobs": {"__getattr__"}}
# Class names with two definitions, and why both are right.
DEFINED_TWICE = {
    "Attempt": "the record's attempt, and the same attempt in the client's view of a job",
    "Job": "the author's job while it runs, and the client's view of it",
    "Problem": "RFC 9457 as the API writes it, and as the client raises it",
    "Queue": "the queue in Redis, and its schema in /openapi.json",
    "Task": "a task's function with its options, and its schema in /openapi.json",
    "Worker": "the worker's process, and its schema in /openapi.json",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_each_package_imports_only_what_it_may(package: str) -> None:
    paths = [path for path in modules(*PARTS) if _belongs(path, package)]
    assert paths, f"{package} has no modules: correct MAY_IMPORT"
    inner = [name for name in MAY_IMPORT if name.startswith(f"{package}.")]
    allowed = {package.partition(".")[0]} | MAY_IMPORT[package]
    forbidden = {*PACKAGES, "tests", "bench"} - allowed
    wrong = [
        f"{path}:{line} imports {name}"
        for path in paths
        if not any(_belongs(path, name) for name in inner)
        for line, name in imports(path)
        if name.partition(".")[0] in forbidden
    ]
    assert not wrong, "\n".join(wrong)


def _belongs(path: Path, package: str) -> bool:
    return f"{module_name(path)}.".startswith(f"{package}.")


@pytest.mark.parametrize("folders", [False, True], ids=["files", "folders"])
def test_imports_are_free_of_circles(*, folders: bool) -> None:
    graph = _import_graph(folders=folders)
    assert len(graph) > 20, "the graph is nearly empty: correct _import_graph"
    circle = find_circle(graph)
    assert not circle, " → ".join(circle)


def test_a_circle_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}}) == []


def _import_graph(*, folders: bool) -> dict[str, set[str]]:
    """Which of our modules, or which of their folders, imports which."""
    paths = {module_name(path): path for path in modules(*PARTS)}
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        source = _folder(path) if folders else name
        for imported in _our_imports(path, set(paths)):
            target = _folder(paths[imported]) if folders else imported
            if target != source:
                graph.setdefault(source, set()).add(target)
    return graph


def _folder(path: Path) -> str:
    """The module's package, or the module itself if it lies directly in a top-level package."""
    name = module_name(path)
    return name if len(path.parts) == 3 else name.rpartition(".")[0]


def _our_imports(path: Path, known: set[str]) -> Iterator[str]:
    """Our modules that this one imports, including lazy and typing-only imports."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                # `from package import module` loads the module, `from module import name` does not.
                candidates = (f"{node.module}.{alias.name}", node.module)
                yield from [name for name in candidates if name in known][:1]


def find_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The nodes of one circle, in order; empty if the graph has none."""
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if circle := walk(target, [*trail, node]):
                return circle
        done.add(node)
        return []

    return next(filter(None, (walk(node, []) for node in sorted(graph))), [])


@pytest.mark.parametrize(("package", "extras"), EXTRAS.items())
def test_each_package_imports_only_what_its_extra_installs(package: str, extras: set[str]) -> None:
    owners = metadata.packages_distributions()
    # `compression` joined the standard library in Python 3.14 and is imported only from then on.
    ours = {*sys.stdlib_module_names, "compression", *PACKAGES}
    allowed = required(*extras)
    wrong = [
        f"{path}:{line} imports {name}"
        for path in modules(*PARTS)
        if _belongs(path, package)
        for line, name in imports(path)
        for top in [name.partition(".")[0]]
        if top not in ours
        if not allowed & {canonicalize_name(owner) for owner in owners.get(top, ())}
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_pickled() -> None:
    wrong = [
        f"{path}:{line} imports {name}"
        for path in modules(*PARTS, "tests", "bench", "docs")
        for line, name in imports(path)
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


def test_only_the_queue_talks_to_redis() -> None:
    calls = [
        (path, node.lineno, node.func.attr)
        for path in modules(*PARTS)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in REDIS_COMMANDS
    ]
    assert any(path.is_relative_to(QUEUE) for path, _, _ in calls), "correct REDIS_COMMANDS"
    wrong = [
        f"{path}:{line} calls .{name}()"
        for path, line, name in calls
        if not path.is_relative_to(QUEUE)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_clock_of_a_host_decides_over_data() -> None:
    clocks = {
        (str(path), ast.unparse(node))
        for path in modules(*PARTS)
        for node in ast.walk(tree(path))
        if _reads_host_clock(node)
    }
    assert {path for path, _ in clocks} == set(HOST_CLOCKS), clocks


def _reads_host_clock(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "time" and bool({"time", "time_ns"} & {it.name for it in node.names})
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "new_id":
        return not node.args  # then it takes the host's time
    return isinstance(node, ast.Attribute) and ast.unparse(node) in (
        "time.time", "time.time_ns", "time.gmtime", "time.localtime",
        "datetime.now", "datetime.utcnow", "datetime.today", "date.today",
    )  # fmt: skip


def test_settings_are_passed() -> None:
    wrong = [
        f"{path}:{node.lineno} builds settings when it is imported"
        for path in modules(*PARTS)
        for statement in tree(path).body
        if not isinstance(statement, Function | ast.ClassDef | ast.If)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in _settings_makers(tree(path))
    ]
    assert not wrong, "\n".join(wrong)


def _settings_makers(module: ast.Module) -> set[str]:
    """The names by which this module can build settings."""
    makers = {"Settings", "load_settings"}
    return {
        alias.asname or alias.name
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and node.module == "tandem_shared.settings"
        for alias in node.names
        if alias.name in makers
    } | {f"settings.{name}" for name in makers}


def test_folders_are_small() -> None:
    sizes = Counter(
        path.parent for path in modules(*PARTS, "tests", "bench") if path.name != "__init__.py"
    )
    wrong = [
        f"{folder} has {count} Python files: group some of them in a folder"
        for folder, count in sizes.items()
        if count > MAX_FILES_PER_FOLDER
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_short() -> None:
    sources = [path for path in tracked() if path.suffix in (".py", ".lua")]
    lengths = {path: len(text(path).splitlines()) for path in sources}
    wrong = [
        f"{path} has {length} lines: split it"
        for path, length in lengths.items()
        if length > MAX_FILE_LINES
    ]
    assert not wrong, "\n".join(wrong)


def _functions(*folders: str) -> Iterator[tuple[str, int]]:
    """(where it is, its length in lines without decorators) of every function."""
    for path in modules(*folders):
        for node in ast.walk(tree(path)):
            if isinstance(node, Function):
                yield f"{path}:{node.lineno} {node.name}", _length(node)


def _length(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def test_functions_are_short() -> None:
    wrong = [
        f"{place} has {length} lines: split it"
        for place, length in _functions(*PARTS, "tests", "bench", "docs")
        if length > MAX_FUNCTION_LINES
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", PARTS)
def test_most_functions_are_tiny(part: str) -> None:
    median = statistics.median(length for _, length in _functions(part))
    assert median <= MAX_MEDIAN_FUNCTION_LINES


def test_init_files_define_nothing() -> None:
    """They only import and list names: every definition is in a file whose name one can guess."""
    wrong = [
        f"{path}:{node.lineno} defines {node.name}"
        for path in modules(*PARTS, "tests", "bench")
        if path.name == "__init__.py"
        for node in ast.walk(tree(path))
        if isinstance(node, Function | ast.ClassDef)
        if node.name not in LAZY.get(module_name(path), ())
    ]
    assert not wrong, "\n".join(wrong)


def test_a_class_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for path in modules(*PARTS):
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{path}:{node.lineno}")
    wrong = [
        f"{name} is defined in {' and in '.join(found)}: rename one"
        for name, found in sorted(places.items())
        if len(found) > 1 + (name in DEFINED_TWICE)
    ]
    assert not wrong, "\n".join(wrong)
    outdated = [name for name in DEFINED_TWICE if len(places.get(name, ())) < 2]
    assert not outdated, f"no longer defined twice: {', '.join(outdated)}"
