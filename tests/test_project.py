"""The lock, the Makefile, the image, the compose file, and the names that the pages use."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_origin

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tandem_jobs.client.client import API_KEY, URL, Client
from tandem_shared.settings import Settings
from tandem_shared.times import parse_duration

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
COMPOSE = ROOT / "docker-compose.yml"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("bench/README.md")])


def pins() -> dict[str, tuple[Requirement, str]]:
    """Name → (its requirement with version and marker, the block with its hashes)."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    return {
        canonicalize_name(requirement.name): (requirement, block)
        for block in blocks
        for requirement in [Requirement(block.partition("\\")[0].partition(" #")[0].strip())]
    }


def declared() -> list[Requirement]:
    """Everything that pyproject.toml asks for, with all extras and for the build."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    lists = [PROJECT["project"]["dependencies"], *extras, PROJECT["build-system"]["requires"]]
    found = [Requirement(text) for texts in lists for text in texts]
    return [requirement for requirement in found if requirement.name != PROJECT["project"]["name"]]


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: requirement.name)
def test_the_lock_has_every_requirement(requirement: Requirement) -> None:
    pin, _ = pins()[canonicalize_name(requirement.name)]
    (exact,) = pin.specifier
    assert exact.operator == "=="
    assert requirement.specifier.contains(Version(exact.version)), (
        "requirements.lock is outdated: run make lock"
    )


def test_the_lock_has_hashes_for_every_requirement() -> None:
    for name, (_, block) in pins().items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), name


def test_the_lock_does_not_reveal_where_it_was_made() -> None:
    lines = [line for line in LOCK.splitlines() if not line.startswith("    --hash=sha256:")]
    wrong = [line for line in lines if re.search(r"://|^-|\bindex|\bfile:|@ |/\w+/", line)]
    assert not wrong, "\n".join(wrong)


def test_every_exception_to_the_linter_has_a_reason() -> None:
    section = (
        (ROOT / "pyproject.toml")
        .read_text()
        .partition("[tool.ruff.lint]")[2]
        .partition("\n[tool.mypy]")[0]
    )
    codes = [line for line in section.splitlines() if re.match(r'\s+"[A-Z]+[0-9]*",', line)]
    assert codes
    assert not [line for line in codes if not re.search(r"# \W?\w+", line)]


@pytest.mark.parametrize(
    ("interpreter", "message"),
    [("exit 1", "Tandem needs Python 3.11 or newer"), ('test "$1" = -c', "Error")],
    ids=["too old", "without venv"],
)
def test_a_failed_install_leaves_no_stamp(tmp_path: Path, interpreter: str, message: str) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{interpreter}\n")
    python.chmod(0o755)
    command = ["make", "install", f"PYTHON={python}"]
    # Without the variables of a make that runs this test.
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / ".venv" / "installed").exists()


def steps() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    joined = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_runs_either_service_without_root() -> None:
    final = steps()[[word for word, _ in steps()].index("FROM", 1) :]
    instructions = dict(final)
    assert instructions["ENTRYPOINT"] == '["tandem"]'
    assert instructions["CMD"] == '["api"]'
    assert instructions["STOPSIGNAL"] == "SIGTERM"
    assert "PYTHONUNBUFFERED=1" in instructions["ENV"]
    user, _, group = instructions["USER"].partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_the_image_takes_its_tools_from_the_lock() -> None:
    (command,) = [
        rest.partition(" > ")[0]
        for word, rest in steps()
        if word == "RUN" and rest.startswith("sed ")
    ]
    argv = ["sh", "-c", command]
    chosen = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^([a-z-]+)==", chosen, re.MULTILINE) == ["setuptools", "uv"]
    assert chosen.count("--hash=sha256:") == sum(
        pins()[name][1].count("--hash") for name in ("setuptools", "uv")
    )


def test_the_build_context_is_what_the_image_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied = [
        name
        for word, rest in steps()
        if word == "COPY" and "--from" not in rest
        for name in rest.split()[:-1]
    ]
    assert {f"!{name}" for name in copied} == {line for line in ignored if line.startswith("!")}
    assert not [name for name in copied if not (ROOT / name).exists()]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def test_the_compose_file_is_valid(tmp_path: Path) -> None:
    def exit_code(path: Path) -> int:
        command = [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            str(path),
        ]
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode

    broken = tmp_path / "docker-compose.yml"
    broken.write_text(COMPOSE.read_text().replace("stop_grace_period: 45s", "stop_grace: 45s"))
    assert exit_code(COMPOSE) == 0
    assert exit_code(broken) == 1


def test_redis_in_compose_loses_nothing() -> None:
    words = compose()["services"]["redis"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "everysec"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--hash-max-listpack-value"] == "1024"
    assert "redis:/data" in compose()["services"]["redis"]["volumes"]


def test_the_api_in_compose_requires_keys() -> None:
    environment = compose()["services"]["api"]["environment"]
    assert environment["TANDEM_HOST"] == "0.0.0.0"
    assert environment["TANDEM_KEYS"].startswith("${TANDEM_KEYS:?")


def test_workers_in_compose_scale_and_drain() -> None:
    worker = compose()["services"]["worker"]
    assert "container_name" not in worker
    assert "ports" not in worker
    assert parse_duration(worker["stop_grace_period"]) > parse_duration(
        worker["environment"]["TANDEM_DRAIN"]
    )


def test_services_in_compose_wait_for_healthy_stores() -> None:
    services = compose()["services"]
    for name in ("api", "worker"):
        assert services[name]["depends_on"]
        for store, how in services[name]["depends_on"].items():
            assert how == {"condition": "service_healthy"}
            assert services[store]["healthcheck"]["test"]
            assert services[store]["volumes"]
    volumes = compose()["volumes"]
    used = {
        volume.partition(":")[0] for service in services.values() for volume in service["volumes"]
    }
    assert used == set(volumes)
    assert set(services["api"]["volumes"]) == set(services["worker"]["volumes"]), (
        "API and workers share the file store"
    )


def test_compose_publishes_only_the_api() -> None:
    services = compose()["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["api"]
    assert compose()["networks"]["stores"]["internal"] is True
    for store in ("redis", "postgres", "mongo"):
        assert services[store]["networks"] == ["stores"]


def test_every_password_in_compose_can_be_changed() -> None:
    written = COMPOSE.read_text()
    given = re.findall(r"(?:PASSWORD:|PASSWORD '|pwd: \"|://\w+:(?=\S+@))\s*([^\s@'\"]+)", written)
    assert len(given) >= 6
    assert [value for value in given if not re.fullmatch(r"\$\{[A-Z_]+:-[a-z]+\}", value)] == []


def test_compose_uses_settings_that_exist() -> None:
    for service in compose()["services"].values():
        unknown = [
            name
            for name in service.get("environment", {})
            if name.startswith("TANDEM_") and not known(name)
        ]
        assert not unknown


def known(variable: str) -> bool:
    """Whether a TANDEM_ variable is a setting of the services or of the client."""
    # The last is Kubernetes' for a service named tandem, which pages say is ignored.
    if variable in (URL, API_KEY, "TANDEM_SERVICE_HOST"):
        return True
    bare = variable.removeprefix("TANDEM_").removesuffix("_FILE")  # a secret in a file
    name, _, connection = bare.lower().partition("__")
    field = Settings.model_fields.get(name)
    return field is not None and (not connection or get_origin(field.annotation) is dict)


def commands(page: Path) -> Iterator[str]:
    """Every line of a shell block and every code span of a page; continued lines are joined."""
    text = page.read_text().replace("\\\n", " ")
    for block in re.findall(
        r"^```(?:sh|bash|console|shell)\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    ):
        yield from (line.removeprefix("$ ").strip() for line in block.splitlines())
    yield from re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    )


TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def help_text(*words: str) -> str | None:
    """The output of `tandem … --help`; None if the command does not exist."""
    call = "import sys; from tandem_jobs.cli.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", call, *words, "--help"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout if done.returncode == 0 else None


def wrong_in(line: str) -> Iterator[str]:
    """The targets, commands and options of a command line that do not exist."""
    words = line.split("#", maxsplit=1)[0].replace('"', " ").replace("'", " ").split()
    for place, word in enumerate(words):
        rest = words[place + 1 :]
        if word == "make" and place == 0:
            target = rest[0] if rest else ""
            if re.fullmatch(r"[a-z]+", target) and target not in TARGETS:
                yield f"make {target}"
            if target == "run":
                yield from unknown_options("dev", [one.removeprefix("ARGS=") for one in rest])
        elif word.rpartition("/")[2] == "tandem" and rest and re.fullmatch(r"[a-z]+", rest[0]):
            if place and words[0] in ("docker", "from", "import"):
                continue
            if help_text(rest[0]) is None:
                yield f"tandem {rest[0]}"
            else:
                yield from unknown_options(rest[0], rest[1:])


def unknown_options(command: str, words: list[str]) -> Iterator[str]:
    text = help_text(command) or ""
    for word in words:
        option = word.partition("=")[0]
        if re.fullmatch(r"--[a-z][a-z-]*", option) and not re.search(
            rf"(?<![\w-]){option}(?![\w-])", text
        ):
            yield f"tandem {command} {option}"


def test_the_pages_are_found() -> None:
    assert {page.name for page in PAGES} >= {"README.md", "operating.md", "deploying.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_commands_that_exist(page: Path) -> None:
    wrong = sorted({problem for line in commands(page) for problem in wrong_in(line)})
    assert not wrong, f"{page.name} names what does not exist: {', '.join(wrong)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_settings_that_exist(page: Path) -> None:
    named = set(re.findall(r"\bTANDEM_[A-Z]+(?:_[A-Z]+)*(?:__[A-Z]+)?\b", page.read_text()))
    assert not sorted(name for name in named if not known(name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_link_to_files_that_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize(
    ("line", "problems"),
    [
        ("make run", []),
        ('make run ARGS="--port 9000 --no-demo"', []),
        ('make run ARGS="--nowhere"', ["tandem dev --nowhere"]),
        ("make everything", ["make everything"]),
        ("tandem worker --queues slow", []),
        ("TANDEM_LOG=json .venv/bin/tandem api --processes 2", []),
        ("tandem api --burst", ["tandem api --burst"]),
        ("tandem fly", ["tandem fly"]),
        ("tandem submit http.request --wait --nowhere", ["tandem submit --nowhere"]),
    ],
)
def test_which_problems_are_found_in_a_command(line: str, problems: list[str]) -> None:
    assert list(wrong_in(line)) == problems


def test_the_page_of_the_client_names_its_methods() -> None:
    page = (ROOT / "docs" / "client.md").read_text()
    rows = re.findall(r"^\| (`.+?) \|", page, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)\(", row)}
    public = {name for name in vars(Client) if not name.startswith("_")} - {"close"}
    assert named == public


def test_every_make_target_is_documented() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    assert not [target for target in TARGETS if f"make {target}" not in page]
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert set(phony[1].split()) >= TARGETS
