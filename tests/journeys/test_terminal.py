"""The commands for jobs, piped and on a terminal, against a real API and worker."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil
import pytest

from tandem_jobs.client.client import Client
from tests.conftest import eventually
from tests.journeys.pair import KEY, ROOT, START_SECONDS, Pair

CLEAR = "\r\x1b[2K"  # removes the live line


@pytest.fixture
def client(pair: Pair) -> Iterator[Client]:
    with Client(pair.url, KEY) as client:
        yield client


def environment(pair: Pair, **more: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    env.pop("NO_COLOR", None)
    return {**env, "TANDEM_URL": pair.url, "TANDEM_API_KEY": KEY, "TERM": "xterm", **more}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tandem_jobs.cli", *arguments]


def tandem(
    pair: Pair, *arguments: str, stdin: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=environment(pair, **more),
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def rows(text: str) -> list[object]:
    return [json.loads(line) for line in text.splitlines()]


def test_submit_prints_the_id_and_result_prints_the_result(pair: Pair, client: Client) -> None:
    done = tandem(
        pair,
        "submit",
        "client.ends",
        '{"result": {"n": 1.50, "big": 12345678901234567890123}}',
        "--tag",
        "a=b",
    )
    assert (done.returncode, done.stderr) == (0, "")
    id = done.stdout.strip()
    assert client.get(id).tags == {"a": "b"}
    done = tandem(pair, "result", id, "--wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["n"] == 1.5
    done = tandem(pair, "cancel", id)
    assert (done.returncode, done.stdout) == (0, "")
    assert "succeeded" in done.stderr


def test_watch_writes_only_items_to_stdout(pair: Pair, tmp_path: Path) -> None:
    payload = tmp_path / "payload.json"
    payload.write_text('{"count": 500}')
    done = tandem(pair, "submit", "--watch", "client.counts", f"@{payload}")
    assert done.returncode == 0
    assert [row["number"] for row in rows(done.stdout) if isinstance(row, dict)] == list(range(500))
    assert re.fullmatch(
        r"job \S+\n(queued(: .+)?\n)?running, attempt 1\nsucceeded after \d+\.\d s\n",
        done.stderr,
    )


def test_watch_reports_logs_and_retries_on_stderr(pair: Pair, client: Client) -> None:
    id = client.submit("client.ends", {"result": 7, "retries": 1}).id
    done = tandem(pair, "watch", id)
    assert done.returncode == 0
    assert rows(done.stdout) == [{"attempt": number, "text": "\x9b31m"} for number in (1, 2)]
    assert re.search(
        r"^\d\d:\d\d:\d\d info +half \\x1b\[31mdone page=3$", done.stderr, re.MULTILINE
    )
    assert "attempt 2 starts over: discard the items above" in done.stderr
    assert done.stderr.endswith(": 7\n")
    last = list(client.stream(id))[-1].id
    again = tandem(pair, "watch", id, "--after", last)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_replay_prints_the_new_jobs_id(pair: Pair, client: Client) -> None:
    failed = client.submit("client.ends", {"error": "card_declined"}, wait=20).id
    done = [tandem(pair, "replay", failed, "--key", f"again {failed}") for _ in range(2)]
    assert [(run.returncode, run.stderr) for run in done] == [(0, "")] * 2
    assert done[0].stdout == done[1].stdout
    new = client.wait(done[0].stdout.strip(), timeout=30)
    assert (new.state, new.id != failed) == ("failed", True)
    fine = client.submit("client.ends", wait=20).id
    done = [tandem(pair, "replay", fine)]
    assert (done[0].returncode, done[0].stdout) == (2, "")
    assert "only failed and cancelled jobs" in done[0].stderr


@pytest.mark.parametrize("how", [["watch"], ["result"], ["result", "--wait"]])
def test_the_exit_code_is_that_of_the_final_state(
    pair: Pair, client: Client, how: list[str]
) -> None:
    failed = client.submit("client.ends", {"error": "card_declined"}, wait=20).id
    done = tandem(pair, *how, failed)
    assert done.returncode == 1
    assert done.stderr.endswith("failed (card_declined): no more cards\n")
    cancelled = client.cancel(client.submit("client.ends", delay=60)).id
    assert tandem(pair, *how, cancelled).returncode == 3


def test_a_job_that_is_not_final_has_no_result_yet(pair: Pair, client: Client) -> None:
    job = client.submit("client.ends", delay=60)
    done = tandem(pair, "result", job.id)
    assert (done.returncode, done.stdout) == (5, "")
    assert "is scheduled" in done.stderr
    assert tandem(pair, "cancel", job.id).returncode == 0
    assert client.get(job).state == "cancelled"


def test_a_result_that_became_a_file_is_printed_and_so_is_any_file(pair: Pair) -> None:
    done = tandem(pair, "submit", "client.ends", "--wait", '{"size": 300000}')
    assert done.returncode == 0
    assert json.loads(done.stdout) == "x" * 300_000
    id = done.stderr.split()[1]
    file = tandem(pair, "result", id, "--file", "result.json")
    assert file.stdout + "\n" == done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["submit", "client.counts", "{}"],
            "tandem: The request is not valid: /payload/count is required",
        ),
        (["submit", "no.such", "{}"], "tandem: The task is not known: "),
        (["submit", "client.ends", "{"], "tandem: invalid JSON payload: "),
        (["submit", "client.ends", "@/no/such"], "tandem: @/no/such: No such file or directory"),
        (
            ["submit", "client.ends", "--timeout", "soon"],
            "tandem: The request is not valid: /options/timeout ",
        ),
        (["watch", "nothing"], "tandem: Not found: "),
        (["watch", "nothing", "--url", "here"], "tandem: TANDEM_URL: "),
        (
            ["result", "nothing", "--api-key", "tk_abcd_wrongwrongwrongwrong"],
            "tandem: The API key is not valid",
        ),
    ],
)
def test_a_refusal_is_one_line(pair: Pair, arguments: list[str], expected: str) -> None:
    done = tandem(pair, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1
    assert "wrong" not in done.stderr


def test_an_api_that_does_not_answer_has_its_own_exit_code(pair: Pair) -> None:
    done = tandem(pair, "watch", "x", "--url", "http://127.0.0.1:1", "--patience", "0.2")
    assert done.returncode == 4
    assert done.stderr.splitlines() == [
        "no answer (Connection refused); retrying",
        "tandem: http://127.0.0.1:1 does not answer: Connection refused",
    ]


def test_a_key_submits_once_and_stdin_is_read(pair: Pair) -> None:
    key = os.urandom(4).hex()
    first, again = (
        tandem(pair, "submit", "client.ends", "-", "--key", key, stdin='{"result": 1}')
        for _ in range(2)
    )
    assert first.stdout == again.stdout


def test_a_closed_pipe_ends_a_command_quietly(pair: Pair, client: Client) -> None:
    id = client.submit("client.counts", {"count": 5000}, wait=20).id
    with subprocess.Popen(
        command("watch", id),
        env=environment(pair),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        expected = process.stderr.read().decode()
        assert process.wait(START_SECONDS) == 141
    assert "Traceback" not in expected


class Terminal:
    """A command on a pseudo-terminal, and everything that it shows."""

    def __init__(self, pair: Pair, *arguments: str, piped: bool = False, **more: str) -> None:
        self._main, other = pty.openpty()
        termios.tcsetwinsize(other, (24, 60))
        self.process = subprocess.Popen(
            command(*arguments),
            env=environment(pair, **more),
            cwd=ROOT,
            stdin=other,
            stdout=subprocess.PIPE if piped else other,
            stderr=other,
            start_new_session=True,
        )
        os.close(other)
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._main, 4096):
                self._parts.append(data)
        except OSError:  # EIO: the other side is closed
            pass

    @property
    def shown(self) -> str:
        return b"".join(self._parts).decode()

    def exit_code(self) -> int:
        """The exit code, once the command has ended."""
        code = self.process.wait(START_SECONDS)
        self._reader.join(10)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        os.close(self._main)
        if self.process.stdout:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def test_a_terminal_has_a_live_line_below_the_lines_that_stay(
    pair: Pair, client: Client, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    id = client.submit("client.ends", {"result": {"n": 1}, "go": str(go)}).id
    with Terminal(pair, "watch", id) as terminal:
        await eventually(lambda: f"{CLEAR}running" in terminal.shown, START_SECONDS)
        go.touch()
        assert terminal.exit_code() == 0
    kept = re.sub(r"[^\n]*\r\x1b\[2K", "", terminal.shown).replace("\r\n", "\n")
    lines = kept.splitlines()
    assert len(lines) == 3
    assert "half \\x1b[31mdone page=3" in lines[0]
    assert rows(lines[1]) == [{"attempt": 1, "text": "\x9b31m"}]
    assert "\x9b" not in terminal.shown
    assert lines[2].startswith("\x1b[32msucceeded after ")
    assert lines[2].endswith(': {"n":1}\x1b[0m')


async def test_progress_is_a_bar(pair: Pair, client: Client, tmp_path: Path) -> None:
    upto = tmp_path / "upto"
    upto.write_text("0")
    id = client.submit("client.bars", {"count": 4, "upto": str(upto)}).id
    with Terminal(pair, "watch", id, PYTHONUTF8="1") as terminal:
        for number, bar in enumerate(
            ("█" * 6 + "░" * 18, "█" * 12 + "░" * 12, "█" * 18 + "░" * 6), 1
        ):
            upto.write_text(str(number))
            line = f"{CLEAR}running · {bar} {number}/4 · step"

            def shown(line: str = line) -> bool:
                return line in terminal.shown

            await eventually(shown, START_SECONDS)
        upto.write_text("4")
        assert terminal.exit_code() == 0
    assert not [
        line
        for line in re.split(r"[\r\n]", terminal.shown)
        if len(line.replace("\x1b[2K", "")) >= 60
    ]


async def test_with_stdout_piped_the_live_line_is_on_stderr(
    pair: Pair, client: Client, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    id = client.submit("client.ends", {"retries": 1, "go": str(go)}).id
    with Terminal(pair, "watch", id, piped=True, NO_COLOR="1") as terminal:
        await eventually(lambda: f"{CLEAR}running" in terminal.shown, START_SECONDS)
        go.touch()
        assert terminal.process.stdout
        items = terminal.process.stdout.read().decode()
        assert terminal.exit_code() == 0
    assert rows(items) == [{"attempt": number, "text": "\x9b31m"} for number in (1, 2)]
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.shown)


def test_a_dumb_terminal_gets_lines_only(pair: Pair, client: Client) -> None:
    id = client.submit("client.ends", wait=20).id
    with Terminal(pair, "watch", id, TERM="dumb") as terminal:
        assert terminal.exit_code() == 0
    assert "\x1b" not in terminal.shown
    assert "running, attempt 1\r\n" in terminal.shown


@pytest.mark.parametrize("how", [["watch"], ["result", "--wait"]])
async def test_ctrl_c_leaves_the_job_running_and_shows_how_to_resume(
    pair: Pair, client: Client, tmp_path: Path, how: list[str]
) -> None:
    go = tmp_path / "go"
    id = client.submit("client.ends", {"go": str(go)}).id
    await eventually(lambda: client.get(id).state == "running", START_SECONDS)
    with Terminal(pair, *how, id) as terminal:
        if how == ["watch"]:
            await eventually(lambda: "running" in terminal.shown, START_SECONDS)
        else:
            await eventually(lambda: is_connected(terminal.process.pid), START_SECONDS)
        os.killpg(terminal.process.pid, signal.SIGINT)
        assert terminal.exit_code() == 130
    assert "Traceback" not in terminal.shown
    assert client.get(id).state == "running"
    words = re.search(r"resume with: tandem (watch .+?)\r\n", terminal.shown)
    assert words
    go.touch()
    done = tandem(pair, *words[1].split())
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1


def is_connected(pid: int) -> bool:
    """Whether the process has a connection to the API."""
    return any(
        connection.status == "ESTABLISHED"
        for connection in psutil.Process(pid).net_connections("tcp")
    )
