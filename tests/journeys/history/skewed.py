"""Runs `tandem` as on a host whose clock is off: `python -m <this module> <seconds> …`.

The time is what Python code gets from its host. Old data is looked for all the time, and not every
few minutes.
"""

import runpy
import sys
import time

from tandem_api import app
from tandem_worker.runtime import ledger


def main() -> None:
    seconds, real = float(sys.argv.pop(1)), time.time_ns
    time.time_ns = lambda: real() + int(seconds * 1e9)
    time.time = lambda: time.time_ns() / 1e9
    app.SWEEP_SECONDS, ledger.SWEEP_SECONDS = 0.1, 0.0
    runpy.run_module("tandem_jobs.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
