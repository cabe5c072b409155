"""The `tandem` command: run the service, operate it, submit and watch jobs.

A wrong option, a wrong setting or a missing server is one line on stderr and exit code 2.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from tandem_jobs.cli.parser import PROCESSES, build_parser
from tandem_shared.errors import Misconfigured


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()  # raise BrokenPipeError here, where it is handled
    except Misconfigured as error:
        print(error, file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader of our output has left. The interpreter flushes stdout once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in PROCESSES:
        return _serve(*arguments)
    options = vars(build_parser().parse_args(arguments))
    command = options.pop("command")
    if command == "settings":
        return _print_settings()
    if command in SERVER_COMMANDS:
        return _operate(command, options)
    from tandem_jobs.cli import jobs  # loads the HTTP library

    return jobs.run(command, options)


@contextmanager
def _server(command: str) -> Iterator[None]:
    """Import the server. Raises Misconfigured if what it depends on is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("tandem_"):
            raise
        raise Misconfigured(
            f"tandem {command} needs the server: install tandem-jobs[server]"
        ) from None


def _serve(process: str, *arguments: str) -> int:
    # By name: `tandem api` must start without the worker's dependencies, and a worker without the
    # API's.
    with _server(process):
        module = import_module(f"tandem_{process}.__main__")
    code: int = module.main(arguments)
    return code


def _operate(command: str, options: dict[str, Any]) -> int:
    with _server(command):
        module = import_module(SERVER_COMMANDS[command])
        from tandem_shared.settings import load_settings
    settings = load_settings(host=options.pop("host", None), port=options.pop("port", None))
    code: int = module.run(settings, **options)
    return code


def _print_settings() -> int:
    with _server("settings"):
        from tandem_shared.settings import Settings, load_settings, masked_settings
    values = masked_settings(load_settings())
    defaults = masked_settings(Settings.model_construct())
    for name, field in Settings.model_fields.items():
        variable = f"TANDEM_{name.upper()}"
        if isinstance(field.default, dict):
            default = "none"
            lines = [f"{key}={values[key]}" for key in values if key.startswith(f"{variable}__")]
        else:
            default = defaults[variable] or "empty"
            lines = [f"{variable}={values[variable]}"]
        print(f"# {field.description} (default: {default})")
        print("\n".join(lines) or f"# {variable}__<NAME>=")
    return 0


# Command → the module whose `run(settings, **options)` it calls.
SERVER_COMMANDS = {
    "dev": "tandem_shared.dev.session",
    "export": "tandem_shared.ledger.export",
    "doctor": "tandem_shared.doctor.doctor",
    "probe": "tandem_shared.probe",
}

if __name__ == "__main__":
    main()
