"""The command `tandem`: the processes, `export`, `doctor` and `settings` for operators, and jobs from a terminal.

A setting that cannot be is one line on stderr and exit code 2, like a wrong option.
"""

import argparse
import os
import re
import runpy
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from tandem_shared.errors import Misconfigured
from tandem_shared.version import tandem_version

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["_Mixed"]  # noqa: SLF001 - argparse has no public name for it


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; ends the process with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and given[0] in PROCESSES:
            _become(given[0], given[1:])
        options = vars(_parser().parse_args(given))
        command = options.pop("command")
        code = COMMANDS[command](options) if command in COMMANDS else _terminal(command, options)
        sys.stdout.flush()  # while a reader that has gone is still met below
        sys.exit(code)
    except Misconfigured as error:
        for line in str(error).splitlines():
            print(line, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Who read our output has gone; nor may the interpreter try to flush it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tandem",
        description="A task queue in two processes: an HTTP API that takes jobs, workers that run them.",
        epilog="Everything else is set by TANDEM_* variables: see `tandem settings`.",
    )
    parser.add_argument("--version", action="version", version=f"tandem {tandem_version()}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Mixed
    )

    for name, summary in PROCESSES.items():
        commands.add_parser(name, help=summary)
    session = commands.add_parser(
        "dev",
        help="run everything on this machine, with a demo",
        description="Run Redis, an API and workers on this machine, then one job of each family as a demo.",
    )
    session.add_argument(
        "--host", metavar="ADDRESS", help="address to listen on, instead of TANDEM_HOST"
    )
    session.add_argument(
        "--port", type=int, metavar="PORT", help="port to listen on, instead of TANDEM_PORT"
    )
    session.add_argument(
        "--data-dir", default=".tandem", metavar="DIR", help="where all data is kept (.tandem)"
    )
    session.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="worker processes (1)"
    )
    session.add_argument("--no-demo", dest="demo", action="store_false", help="run no jobs")
    session.add_argument(
        "--once",
        action="store_true",
        help="end after the demo: 0 if all its jobs succeeded, else 1",
    )

    export = commands.add_parser(
        "export",
        help="print all jobs of the ledger",
        description="Print the jobs of the ledger (TANDEM_DATABASE_URL) as NDJSON, the oldest first.",
    )
    export.add_argument("--since", metavar="TIME", help="submitted at this RFC 3339 time or later")
    export.add_argument("--until", metavar="TIME", help="submitted before this RFC 3339 time")
    export.add_argument("--state", metavar="STATES", help="in one of these states, comma-separated")

    doctor = commands.add_parser(
        "doctor",
        help="check a live system, and mend it",
        description="Look whether what must hold does hold in Redis, the ledger and the file store of a live system.",
        epilog="exit codes: 0 nothing found, 1 something found, 2 something could not be checked",
    )
    doctor.add_argument("--fix", action="store_true", help="mend what is found and can be mended")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument(
        "--no-files", dest="files", action="store_false", help="leave the file store out"
    )

    commands.add_parser(
        "settings", help="print all settings", description="Print all settings, secrets masked."
    )
    _add_terminal(commands)
    return parser


def _add_terminal(commands: "Commands") -> None:
    def added(
        name: str, summary: str, description: str, *, job: bool = True
    ) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=summary, description=description, epilog=EXITS)
        if job:
            parser.add_argument("id", metavar="ID", help="the job's id")
        where = parser.add_argument_group("the API")
        where.add_argument(
            "--url", metavar="URL", help="where it is (TANDEM_URL, http://127.0.0.1:8000)"
        )
        where.add_argument(
            "--patience",
            type=_seconds,
            default=30.0,
            metavar="SECONDS",
            help="how long to go on without an answer (30)",
        )
        where.add_argument(
            "--api-key",
            metavar="KEY",
            help="better by TANDEM_API_KEY: arguments can be seen by others",
        )
        return parser

    submit = added(
        "submit",
        "submit a job",
        "Submit a job and print its id, or its result, or its output.",
        job=False,
    )
    submit.add_argument("task", metavar="TASK", help="its name, such as http.request")
    submit.add_argument(
        "payload", metavar="JSON", nargs="?", help="the payload; @FILE reads a file, - stdin ({})"
    )
    then = submit.add_mutually_exclusive_group()
    then.add_argument(
        "--wait", action="store_true", help="wait until it is final and print its result"
    )
    then.add_argument(
        "--watch",
        action="store_true",
        help="show how it goes and print its output, as `tandem watch`",
    )
    submit.add_argument(
        "--key", metavar="KEY", help="idempotency key: the same one brings the same job again"
    )
    job = submit.add_argument_group(
        "options of the job", "A duration is a number of seconds, or 250ms, 30s, 5m, 2h."
    )
    job.add_argument("--queue", metavar="NAME", help="the queue, instead of the task's own")
    job.add_argument("--priority", choices=("high", "normal", "low"), help="high, normal or low")
    job.add_argument(
        "--delay", type=_duration, metavar="DURATION", help="start no sooner than after this"
    )
    job.add_argument(
        "--run-at", metavar="TIME", help="start no sooner than then, as 2030-01-31T09:30:00Z"
    )
    job.add_argument(
        "--timeout", type=_duration, metavar="DURATION", help="how long an attempt may take"
    )
    job.add_argument(
        "--expires-in", type=_duration, metavar="DURATION", help="start no attempt after this"
    )
    job.add_argument("--max-attempts", type=_positive, metavar="N", help="how often it is tried")
    job.add_argument(
        "--concurrency-key", metavar="KEY", help="of its jobs only so many run at a time"
    )
    job.add_argument("--concurrency-limit", type=_positive, metavar="N", help="how many (1)")
    job.add_argument(
        "--tag", dest="tags", type=_tag, action=_Tags, metavar="NAME=VALUE", help="may be repeated"
    )

    watch = added(
        "watch",
        "show a job as it runs",
        "Show a job until it is final: its output as NDJSON on stdout, all else on stderr. Ctrl-C leaves it running.",
    )
    watch.add_argument("--after", metavar="POSITION", help="go on after this entry of the stream")
    result = added(
        "result",
        "print a job's result",
        "Print a job's result as JSON, or one of its files, on stdout.",
    )
    result.add_argument("--wait", action="store_true", help="wait until the job is final")
    result.add_argument("--file", metavar="NAME", help="this file of the job instead")
    added("cancel", "cancel a job", "Cancel a job, whatever its state; a final one stays as it is.")
    again = added(
        "replay",
        "run a failed job again",
        "Run a failed or cancelled job again; print the new job's id.",
    )
    again.add_argument(
        "--key", metavar="KEY", help="idempotency key: the same one brings the same new job again"
    )


class _Mixed(argparse.ArgumentParser):
    """Takes arguments before, between and after options."""

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._mixing:  # it calls us for each of its two passes
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


class _Tags(argparse.Action):
    """Gathers pairs in a dict."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        _option: str | None = None,
    ) -> None:
        tags = getattr(namespace, self.dest) or {}
        setattr(namespace, self.dest, {**tags, **values})


def _tag(text: str) -> dict[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE")
    return {name: value}


def _seconds(text: str) -> float:
    if not isinstance(length := _duration(text), float):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return length


def _duration(text: str) -> float | str:
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text, re.ASCII) else text


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _become(package: str, arguments: list[str]) -> NoReturn:
    # By name, and only the one that is to run: `shared` depends on neither, the API runs where no
    # task's requirements are installed, and a worker where no web framework is. Each is a program
    # of its own, with options of its own.
    sys.argv = [f"tandem {package}", *arguments]
    runpy.run_module(f"tandem_{package}", run_name="__main__", alter_sys=True)
    sys.exit(0)


def _dev(options: dict[str, Any]) -> int:
    from tandem_shared.dev import session  # the other commands do without its imports

    return session.run(session.Options(**options))


def _export(options: dict[str, Any]) -> int:
    from tandem_jobs.cli import export  # loads the database's driver
    from tandem_shared.settings import load_settings

    return export.run(export.Options(**options), load_settings())


def _doctor(options: dict[str, Any]) -> int:
    from tandem_shared.doctor import doctor  # loads the drivers of all stores
    from tandem_shared.settings import load_settings

    return doctor.run(doctor.DoctorOptions(**options), load_settings())


def _settings(_options: dict[str, Any]) -> int:
    from tandem_shared.settings import Settings, load_settings, masked_settings

    values, defaults = masked_settings(load_settings()), masked_settings(Settings.model_construct())
    for name, field in Settings.model_fields.items():
        variable = f"TANDEM_{name.upper()}"
        connections = [one for one in values if one.startswith(f"{variable}__")]
        default = "none" if isinstance(field.default, dict) else defaults[variable] or "empty"
        print(f"# {field.description} (default: {default})")
        if isinstance(field.default, dict):
            print(
                "\n".join(f"{one}={values[one]}" for one in connections) or f"# {variable}__<NAME>="
            )
        else:
            print(f"{variable}={values[variable]}")
    return 0


def _terminal(command: str, options: dict[str, Any]) -> int:
    from tandem_jobs.cli import jobs

    return jobs.run(command, options)


EXITS = "exit codes: 0 succeeded, 1 failed, 2 refused or wrong usage, 3 cancelled, 4 no answer, 5 not final, 130 Ctrl-C"
PROCESSES = {"api": "serve the HTTP API", "worker": "run jobs"}
COMMANDS = {"dev": _dev, "export": _export, "doctor": _doctor, "settings": _settings}

if __name__ == "__main__":
    main()
