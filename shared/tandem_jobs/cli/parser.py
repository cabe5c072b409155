"""The arguments of the `tandem` command."""

import argparse
import re
from collections.abc import Callable
from typing import Any

from tandem_shared.version import tandem_version

PROCESSES = {"api": "serve the HTTP API", "worker": "run jobs"}
EXIT_CODES = (
    "exit codes: 0 succeeded, 1 failed, 2 refused or wrong usage, 3 cancelled, 4 no answer,"
    " 5 not final, 130 interrupted"
)
AddCommand = Callable[..., argparse.ArgumentParser]


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command but `api` and `worker`, which parse their own arguments."""
    parser = argparse.ArgumentParser(
        prog="tandem",
        description="A task queue in two processes: an HTTP API that accepts jobs, and workers that"
        " run them.",
        epilog="Settings are TANDEM_* environment variables; `tandem settings` lists them.",
    )
    parser.add_argument("--version", action="version", version=f"tandem {tandem_version()}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_IntermixedParser
    )
    for name, summary in PROCESSES.items():
        commands.add_parser(name, help=summary)
    for add in (
        _add_dev,
        _add_export,
        _add_doctor,
        _add_probe,
        _add_settings,
        _add_submit,
        _add_job_commands,
    ):
        add(commands.add_parser)
    return parser


def _add_dev(add: AddCommand) -> None:
    parser = add(
        "dev",
        help="run everything on this machine, with a demo",
        description="Run Redis, an API and workers on this machine, then a demo: one job of each"
        " family.",
    )
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on (TANDEM_HOST)")
    parser.add_argument(
        "--port", type=int, metavar="PORT", help="port to listen on, 0 for a free one (TANDEM_PORT)"
    )
    parser.add_argument(
        "--data-dir", default=".tandem", metavar="DIR", help="directory for all data (.tandem)"
    )
    parser.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="number of worker processes (1)"
    )
    parser.add_argument("--no-demo", dest="demo", action="store_false", help="skip the demo")
    parser.add_argument(
        "--once", action="store_true", help="exit after the demo: 0 if every job succeeded, else 1"
    )


def _add_export(add: AddCommand) -> None:
    parser = add(
        "export",
        help="print all jobs in the ledger",
        description="Print the jobs in the ledger (TANDEM_DATABASE_URL) as NDJSON, oldest first.",
    )
    parser.add_argument("--since", metavar="TIME", help="only jobs submitted at this time or later")
    parser.add_argument("--until", metavar="TIME", help="only jobs submitted before this time")
    parser.add_argument(
        "--state", metavar="STATES", help="only jobs in these states, comma-separated"
    )


def _add_probe(add: AddCommand) -> None:
    parser = add(
        "probe",
        help="ask the process in this container whether it is well",
        description="Ask the API (TANDEM_HOST, TANDEM_PORT) or the worker (TANDEM_METRICS_HOST,"
        " TANDEM_METRICS_PORT) whether it is alive. For the health checks of containers.",
        epilog="exit codes: 0 well, 1 not well or no answer, 2 not configured",
    )
    parser.add_argument("process", choices=sorted(PROCESSES), help="which process to ask")
    parser.add_argument(
        "--ready", action="store_true", help="ask whether it is ready, not only alive"
    )


def _add_doctor(add: AddCommand) -> None:
    parser = add(
        "doctor",
        help="check a live system and repair it",
        description="Check the invariants of a live system in Redis, the ledger and the file"
        " store.",
        epilog="exit codes: 0 nothing found, 1 something found, 2 a check could not run",
    )
    parser.add_argument("--fix", action="store_true", help="repair what can be repaired")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument(
        "--no-files", dest="files", action="store_false", help="skip the file store"
    )


def _add_settings(add: AddCommand) -> None:
    add("settings", help="print all settings", description="Print all settings, secrets masked.")


def _add_job_command(
    add: AddCommand, name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    parser = add(name, help=summary, description=description, epilog=EXIT_CODES)
    group = parser.add_argument_group("the API")
    group.add_argument("--url", metavar="URL", help="its URL (TANDEM_URL, http://127.0.0.1:8000)")
    group.add_argument(
        "--patience",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="keep retrying for this long without an answer (30)",
    )
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help="prefer TANDEM_API_KEY: other users of this machine can see arguments",
    )
    return parser


def _add_submit(add: AddCommand) -> None:
    parser = _add_job_command(
        add, "submit", "submit a job", "Submit a job and print its id, its result or its output."
    )
    parser.add_argument("task", metavar="TASK", help="name of the task, such as http.request")
    parser.add_argument(
        "payload", metavar="JSON", nargs="?", help="the payload; @FILE reads a file, - stdin ({})"
    )
    then = parser.add_mutually_exclusive_group()
    then.add_argument("--wait", action="store_true", help="wait for the job and print its result")
    then.add_argument(
        "--watch",
        action="store_true",
        help="show the job as it runs and print its output, like `tandem watch`",
    )
    parser.add_argument("--key", help="idempotency key: the same key returns the same job")
    _add_job_options(parser)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "job options", "A duration is a number of seconds, or 250ms, 30s, 5m, 2h, 7d."
    )
    group.add_argument("--queue", metavar="NAME", help="queue, instead of the task's default")
    group.add_argument("--priority", choices=("high", "normal", "low"), help="high, normal or low")
    group.add_argument("--run-at", metavar="TIME", help="earliest start, as 2030-01-31T09:30:00Z")
    for option, text in (
        ("--delay", "earliest start, from now"),
        ("--timeout", "limit of each attempt"),
        ("--expires-in", "start no attempt later than this from now"),
    ):
        group.add_argument(option, type=_duration, metavar="DURATION", help=text)
    group.add_argument("--max-attempts", type=_positive, metavar="N", help="number of attempts")
    group.add_argument("--concurrency-key", metavar="KEY", help="limit the jobs that share KEY")
    group.add_argument(
        "--concurrency-limit", type=_positive, metavar="N", help="jobs of KEY that run at once (1)"
    )
    group.add_argument(
        "--tag", dest="tags", type=_tag, action="append", metavar="NAME=VALUE", help="repeatable"
    )


def _add_job_commands(add: AddCommand) -> None:
    """The commands that take the id of a job."""

    def add_command(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        parser = _add_job_command(add, name, summary, description)
        parser.add_argument("id", metavar="ID", help="id of the job")
        return parser

    watch = add_command(
        "watch",
        "show a job as it runs",
        "Show a job until it is final: its output as NDJSON on stdout, everything else on stderr."
        " Ctrl-C leaves the job running.",
    )
    watch.add_argument("--after", metavar="ENTRY", help="resume after this entry of the stream")
    result = add_command(
        "result", "print a job's result", "Print a job's result as JSON, or one of its files."
    )
    result.add_argument("--wait", action="store_true", help="wait until the job is final")
    result.add_argument("--file", metavar="NAME", help="print this file of the job instead")
    add_command("cancel", "cancel a job", "Cancel a job in any state; a final job stays as it is.")
    replay = add_command(
        "replay", "run a failed job again", "Run a failed or cancelled job again as a new job."
    )
    replay.add_argument("--key", help="idempotency key: the same key returns the same new job")


class _IntermixedParser(argparse.ArgumentParser):
    """Accepts positional arguments before, between and after options."""

    _intermixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._intermixing:  # parse_known_intermixed_args calls this method twice
            return super().parse_known_args(args, namespace)
        self._intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixing = False


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not {text!r}")
    return name, value


def _duration(text: str) -> float | str:
    """A number of seconds as such; the API parses the rest."""
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text, re.ASCII) else text


def _seconds(text: str) -> float:
    seconds = _duration(text)
    if isinstance(seconds, str):
        raise argparse.ArgumentTypeError(f"expected a number of seconds, not {text!r}")
    return seconds


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")
    return int(text)
