"""The command `tandem`: `api`, `worker`, `dev`, `export`, `settings`.

A setting that cannot be is one line on stderr and exit code 2, like a wrong option.
"""

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from shared.errors import Misconfigured
from shared.settings import Settings, load, shown


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; ends the process with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and given[0] in PROCESSES:
            _become(given[0], given[1:])
        options = vars(_parser().parse_args(given))
        code = COMMANDS[options.pop("command")](options)
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
    parser.add_argument("--version", action="version", version=f"tandem {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="api|worker|dev|export|settings")

    for name, summary in PROCESSES.items():
        commands.add_parser(name, help=summary)
    dev = commands.add_parser(
        "dev",
        help="run everything on this machine, with a demo",
        description="Run Redis, an API and workers on this machine, then one job of each family as a demo.",
    )
    dev.add_argument("--host", metavar="ADDRESS", help="address to listen on, instead of TANDEM_HOST")
    dev.add_argument("--port", type=int, metavar="PORT", help="port to listen on, instead of TANDEM_PORT")
    dev.add_argument("--data-dir", default=".tandem", metavar="DIR", help="where all data is kept (.tandem)")
    dev.add_argument("--workers", type=_positive, default=1, metavar="N", help="worker processes (1)")
    dev.add_argument("--no-demo", dest="demo", action="store_false", help="run no jobs")
    dev.add_argument("--once", action="store_true", help="end after the demo: 0 if all its jobs succeeded, else 1")

    export = commands.add_parser(
        "export",
        help="print all jobs of the ledger",
        description="Print the jobs of the ledger (TANDEM_DATABASE_URL) as NDJSON, the oldest first.",
    )
    export.add_argument("--since", metavar="TIME", help="submitted at this RFC 3339 time or later")
    export.add_argument("--until", metavar="TIME", help="submitted before this RFC 3339 time")
    export.add_argument("--state", metavar="STATES", help="in one of these states, comma-separated")

    commands.add_parser("settings", help="print all settings", description="Print all settings, secrets masked.")
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _version() -> str:
    try:
        return version("tandem-jobs")
    except PackageNotFoundError:
        return "(not installed)"


def _become(package: str, arguments: list[str]) -> NoReturn:
    # By name, and only the one that is to run: `shared` depends on neither, the API runs where no task's requirements
    # are installed, and a worker where no web framework is. Each is a program of its own, with options of its own.
    sys.argv = [f"tandem {package}", *arguments]
    runpy.run_module(package, run_name="__main__", alter_sys=True)
    sys.exit(0)


def _dev(options: dict[str, Any]) -> int:
    from shared import dev  # the other commands do without its imports

    return dev.run(dev.Options(**options))


def _export(options: dict[str, Any]) -> int:
    from shared import export  # loads the database's driver

    return export.run(export.Options(**options), load())


def _settings(_options: dict[str, Any]) -> int:
    values, defaults = shown(load()), shown(Settings.model_construct())
    for name, field in Settings.model_fields.items():
        variable = f"TANDEM_{name.upper()}"
        connections = [one for one in values if one.startswith(f"{variable}__")]
        default = "none" if isinstance(field.default, dict) else defaults[variable] or "empty"
        print(f"# {field.description} (default: {default})")
        if isinstance(field.default, dict):
            print("\n".join(f"{one}={values[one]}" for one in connections) or f"# {variable}__<NAME>=")
        else:
            print(f"{variable}={values[variable]}")
    return 0


PROCESSES = {"api": "serve the HTTP API", "worker": "run jobs"}
COMMANDS = {"dev": _dev, "export": _export, "settings": _settings}

if __name__ == "__main__":
    main()
