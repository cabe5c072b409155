"""`python -m tandem_worker`, or `tandem worker`: one worker process."""

import argparse
import asyncio
import contextlib
import cProfile
import faulthandler
import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import structlog
import uvloop

from tandem_shared import logs
from tandem_shared.errors import Misconfigured
from tandem_shared.settings import ignored_variables, load_settings
from tandem_worker.jobs.logs import add_attempt, job_logging
from tandem_worker.jobs.watched import watched_output
from tandem_worker.loader import load_tasks
from tandem_worker.resources import open_resources
from tandem_worker.runtime.worker import Worker

# New objects after which Python's collector searches them for cycles. A batch of jobs creates a few
# thousand that live until it ends: at the default of 700, every search would find them all alive.
GC_NEW_OBJECTS = 50_000


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; they override the settings."""
    parser = argparse.ArgumentParser(prog="tandem worker", description="Run jobs until SIGTERM.")
    parser.add_argument("--queues", help="queues to serve, comma-separated (TANDEM_QUEUES)")
    parser.add_argument("--concurrency", help="jobs to run at once (TANDEM_CONCURRENCY)")
    parser.add_argument("--burst", action="store_true", help="exit once nothing is left to do")
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="profile the event loop; FILE is written at the end",
    )
    return parser.parse_args(argv)


@contextlib.contextmanager
def profiled(path: Path | None) -> Iterator[None]:
    """Profile the event loop for `python -m pstats`. Raises Misconfigured for an unusable path."""
    if path is None:
        yield
        return
    try:
        path.touch()  # fail now, and not at the end
    except OSError as error:
        raise Misconfigured(f"--profile {path}: {error.strerror}") from None
    with cProfile.Profile() as profile:
        yield
    profile.dump_stats(path)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a worker and end the process with its exit code; 2 for an invalid setting."""
    code = 0
    try:
        code = _run(parse(argv))
    except Misconfigured as error:
        logs.print_fatal(str(error), "worker")
        code = 2
    logging.shutdown()
    sys.stdout.flush()
    # Exit without joining threads: code of jobs that were handed back may still run in them.
    os._exit(code)


def _run(options: argparse.Namespace) -> int:
    settings = load_settings(queues=options.queues, concurrency=options.concurrency)
    faulthandler.enable()  # a crash of native code names the Python line that called it
    logs.configure_logging(settings.log, "worker", add_attempt)
    for sentence in ignored_variables():
        structlog.get_logger("worker").warning(sentence)
    tasks = load_tasks(settings.tasks)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)  # arq's Worker takes the current loop
    gc.freeze()  # imported modules stay: the collector need not search them again
    gc.set_threshold(GC_NEW_OBJECTS, *gc.get_threshold()[1:])
    worker = Worker(
        settings=settings,
        tasks=tasks,
        resources=partial(open_resources, settings),
        burst=options.burst,
    )
    with profiled(options.profile), job_logging(settings.job_log), watched_output():
        worker.run()
    return worker.exit_code


if __name__ == "__main__":
    main()
