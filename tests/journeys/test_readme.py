"""The shell sessions of README.md and docs/ do what the pages show, against a `tandem dev`."""

import asyncio
import os
import re
import select
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tandem_shared.settings import API_KEY
from tests.journeys.test_dev import Dev, dev

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 30.0  # for one command
ADDRESS = "127.0.0.1:8000"  # the API's on the pages

# What differs from one run to the next, as it looks on the pages, and what matches it.
ID = re.compile(r"\b01[0-9A-Za-z]{20,}\b")
VOLATILE = {
    r" ?… ?": r".*",  # spaced for the reader, where the API prints none
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
    r"\d{16}-\d{5}": r"\d{16}-\d{5}",
    r"^date: .*": r"date: .* GMT",
    r"max-age=\d+": r"max-age=\d+",
    r"after \d+\.\d s": r"after \d+\.\d s",
    ID.pattern: ID.pattern,
}
TOKEN = re.compile("|".join(f"({shown})" for shown in VOLATILE))
PATTERNS = list(VOLATILE.values())


# One of these is in the output of each command of docs/operating.md.
OPERATED = (
    *('"items":[', '"replay_of":', '"matched":', "tk_", "nothing found", '"healthy":'),
    *("TANDEM_LEASE=", '"tenant":'),
)


class Step(NamedTuple):
    """A command of a page, and the lines that the page shows as its output."""

    command: str
    output: list[str]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def steps(page: str) -> Iterator[Step]:
    """The steps of all console blocks of a page, in order."""
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *output = re.sub(r"\\\n\s*", "", part).splitlines()
            yield Step(command, [line for line in output if line])


def commands(page: str) -> list[str]:
    """The lines of all sh blocks of a page; continued lines are joined."""
    joined = "".join(blocks(page, "sh")).replace("\\\n", "")
    return [line for line in joined.splitlines() if line]


class Shell:
    """One bash, in which a reader pastes the commands of the pages."""

    def __init__(self, running: Dev, url: str, folder: Path) -> None:
        (worker,) = (psutil.Process(pid) for pid in running.pids("worker"))
        self.address = url.removeprefix("http://")
        self.ids: dict[str, str] = {}  # on the page → in this run
        self.folder = folder
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / ".curlrc").write_text("no-progress-meter")  # terminals show none for short bodies
        settings = {k: v for k, v in worker.environ().items() if k.startswith("TANDEM_")}
        self._bash = subprocess.Popen(
            ["bash", "--norc"],  # noqa: S607 - the tester's own bash
            cwd=folder,
            env={**os.environ, **settings, "TANDEM_URL": url, "CURL_HOME": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.run(f"export PATH={sys.prefix}/bin:$PATH")

    def run(self, command: str) -> tuple[int, str]:
        """The exit code, and the output of both kinds, of a command as a page shows it."""
        assert self._bash.stdin is not None
        for shown, real in self.ids.items():
            command = command.replace(shown, real)
        command = command.replace(ADDRESS, self.address)
        self._bash.stdin.write(f"{command}\nprintf '\\036%s\\037' $?\n".encode())
        self._bash.stdin.flush()
        output, _, code = self._read(command).partition("\x1e")
        return int(code), output

    def _read(self, command: str) -> str:
        assert self._bash.stdout is not None
        data = b""
        deadline = time.monotonic() + WAIT_SECONDS
        while not data.endswith(b"\x1f"):
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self._bash.stdout], [], [], left)[0], (command, data)
            data += os.read(self._bash.stdout.fileno(), 65536)
        return data.decode().removesuffix("\x1f")

    def follow(self, step: Step) -> None:
        """Run a step, which prints the lines of the page, in order, among possible others.

        A command that only reads is repeated until it does.
        """
        repeatable = not re.search(r" -[dFTX] |^tandem submit", step.command)
        deadline = time.monotonic() + (WAIT_SECONDS if repeatable else 0.0)
        while True:
            code, output = self.run(step.command)
            assert code == 0, (step.command, output)
            missing = self._missing(step.output, output.splitlines())
            if missing is None:
                return
            assert time.monotonic() < deadline, f"{step.command}\n{output}\nlacks: {missing}"

    def _missing(self, shown: list[str], lines: list[str]) -> str | None:
        """The first line of the page that is not printed; learns the ids that stand for its ids."""
        rest = iter(lines)
        for expected in shown:
            unknown = list(dict.fromkeys(set(ID.findall(expected)) - set(self.ids)))
            pattern = self._pattern(expected, unknown)
            match = next(filter(None, (re.fullmatch(pattern, line) for line in rest)), None)
            if match is None:
                return expected
            self.ids |= {id: match[f"id{number}"] for number, id in enumerate(unknown)}
        return None

    def _pattern(self, line: str, unknown: list[str]) -> str:
        """The regular expression of a page's line; `unknown` ids become the groups id0, id1, …."""
        line = line.replace(ADDRESS, self.address)
        pattern, end, named = "", 0, set[str]()
        for token in TOKEN.finditer(line):
            pattern += re.escape(line[end : token.start()])
            end = token.end()
            if token[0] in self.ids:
                pattern += re.escape(self.ids[token[0]])
            elif token[0] not in unknown:
                pattern += PATTERNS[(token.lastindex or 1) - 1]
            else:
                name = f"id{unknown.index(token[0])}"
                pattern += f"(?P={name})" if name in named else f"(?P<{name}>{ID.pattern})"
                named.add(name)
        return pattern + re.escape(line[end:])

    def close(self) -> None:
        self._bash.kill()
        self._bash.communicate()


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Dev, str]]:
    """A `tandem dev` that also has README's own task, and its URL."""
    folder = tmp_path_factory.mktemp("readme")
    (greetings,) = blocks("README.md", "python")
    (folder / "greetings.py").write_text(greetings)
    shop = folder / "shop.db"
    with closing(sqlite3.connect(shop)) as connection, connection:
        connection.execute("CREATE TABLE sale AS SELECT 'Oslo' AS city, 42 AS amount")
    environment = {
        "TANDEM_TASKS": "greetings",
        "PYTHONPATH": str(folder),
        "TANDEM_SQL__SHOP": f"sqlite://{shop}",
    }
    with dev(folder / "data", "--no-demo", **environment) as running:
        yield running, asyncio.run(running.url())


@pytest.fixture
def shell(services: tuple[Dev, str], tmp_path: Path) -> Iterator[Shell]:
    opened = Shell(*services, tmp_path)
    yield opened
    opened.close()


def test_the_session_of_the_readme(shell: Shell) -> None:
    for step in steps("README.md"):
        shell.follow(step)
    assert len(shell.ids) == 4


def test_the_first_task(shell: Shell) -> None:
    start, curl = commands("docs/writing-tasks.md")
    assert start == "TANDEM_TASKS=greetings PYTHONPATH=. tandem dev"
    assert '"result":"Hello, Ada"' in shell.run(curl)[1]


def test_the_command_line(shell: Shell) -> None:
    submit, watch, query, *_ = steps("docs/client.md")
    shell.follow(submit)
    shell.follow(watch)
    payload = '{"connection": "shop", "sql": "SELECT city, amount FROM sale"}'
    (shell.folder / "query.json").write_text(payload)
    assert shell.run(query.command)[0] == 0
    assert (shell.folder / "rows.ndjson").read_text() == '{"city":"Oslo","amount":42}\n'


def test_uploads(shell: Shell) -> None:
    (shell.folder / "words.txt").write_text("to be or not to be\n")
    (shell.folder / "big.csv").write_text("n\n" * 2000)
    form, raw, begin, name, broken, head, rest = steps("docs/files.md")
    for step in (form, raw):
        assert '"size":19' in shell.run(step.command)[1]
    shell.follow(begin)
    shell.run(name.command)
    cut = broken.command.replace("Upload-Complete: ?1", "Upload-Complete: ?0")
    shell.run(f"head -c 1000 big.csv > part.csv; {cut.replace('big.csv', 'part.csv')}")
    sizes = {"1310720000": "1000", "1310720001": "1001", "2147483648": "4000"}
    for step in (head, rest):
        shell.follow(replaced(step, sizes))


def replaced(step: Step, words: Mapping[str, str]) -> Step:
    command, output = step.command, "\n".join(step.output)
    for old, new in words.items():
        command, output = command.replace(old, new), output.replace(old, new)
    return Step(command, output.splitlines())


def test_the_commands_of_operators(shell: Shell) -> None:
    failing = 'tandem submit http.request --max-attempts 1 \'{"url": "http://127.0.0.1:1/"}\''
    shell.ids["01M7YSJ9WC0ZSHM90R7TJa"] = shell.run(failing)[1].strip()
    assert shell.run("tandem result --wait 01M7YSJ9WC0ZSHM90R7TJa")[0] == 1
    lines = [line for line in commands("docs/operating.md") if not line.startswith("make ")]
    for line in [*lines, "tandem settings", "tandem export"]:
        code, output = shell.run(line)
        assert code == 0, (line, output)
        assert any(word in output for word in OPERATED), (line, output)


def test_a_key_is_made(shell: Shell) -> None:
    line = commands("docs/deploying.md")[2]
    assert line.startswith("export TANDEM_KEYS=")
    assert shell.run(line)[0] == 0
    assert API_KEY.fullmatch(shell.run("echo $TANDEM_KEYS")[1].strip())
