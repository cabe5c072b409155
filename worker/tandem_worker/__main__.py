"""`python -m tandem_worker`, or `tandem worker`: one worker process."""

import argparse
import asyncio
import contextlib
import cProfile
import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import uvloop

from tandem_shared import logs
from tandem_shared.errors import Misconfigured
from tandem_shared.settings import load_settings
from tandem_worker.jobs.logs import installed
from tandem_worker.loader import load_tasks
from tandem_worker.resources import open_resources
from tandem_worker.runtime.worker import Worker

# Objects that are made before the collector looks for cycles among them. A batch of jobs makes a
# few thousand, which live until it is done: looking at Python's default of 700 finds all of them
# alive, again and again.
YOUNG = 50_000  # objects more than were freed, after which the collector looks at the new ones


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; what is left out is taken from the settings."""
    parser = argparse.ArgumentParser(prog="tandem worker", description="Run jobs until SIGTERM.")
    parser.add_argument("--queues", help="queues to serve, comma-separated (TANDEM_QUEUES)")
    parser.add_argument("--concurrency", help="jobs to run at once (TANDEM_CONCURRENCY)")
    parser.add_argument("--burst", action="store_true", help="end once nothing is left to do")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="profile the worker's loop; written at the end"
    )
    return parser.parse_args(argv)


@contextlib.contextmanager
def profiled(path: Path | None) -> Iterator[None]:
    """Writes where the event loop's time went, for `python -m pstats`. Raises Misconfigured for no such place."""
    if path is None:
        yield
        return
    try:
        path.touch()  # not only at the end
    except OSError as error:
        raise Misconfigured(f"--profile {path}: {error.strerror}") from None
    with cProfile.Profile() as profile:
        yield
    profile.dump_stats(path)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a worker and end the process: 0 after a clean end, 2 for a wrong setting."""
    code = _run(argv)
    logging.shutdown()
    sys.stdout.flush()
    # Exit without joining threads: code of jobs that were handed back may still run in them.
    os._exit(code)


def _run(argv: Sequence[str] | None) -> int:
    options = parse(argv)
    given: dict[str, Any] = {
        name: value
        for name in ("queues", "concurrency")
        if (value := getattr(options, name)) is not None
    }
    try:
        settings = load_settings(**given)
        logs.configure_logging(settings.log, "worker")
        tasks = load_tasks(settings.tasks)
    except Misconfigured as error:
        print(error, file=sys.stderr)
        return 2
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)  # arq's Worker takes the current loop
    gc.freeze()  # what was imported stays: the collector need not look at it again
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
    worker = Worker(
        settings=settings,
        tasks=tasks,
        resources=lambda: open_resources(settings),
        burst=options.burst,
    )
    try:
        with profiled(options.profile), installed(settings.job_log):
            worker.run()
    except Misconfigured as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    main()
