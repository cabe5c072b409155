"""What a job's code does to the whole process, brought home to the job: prints, and warnings."""

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tandem_worker.jobs.logs import current_capture

MAX_LINE_CHARS = 8192  # a longer line of output is logged in pieces
_FORGOTTEN = "was never awaited"

_printed = logging.getLogger("print")


class JobStdout(io.TextIOBase):
    """Standard output: within a job's code each line is logged, elsewhere it is written as ever."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout

    def write(self, text: str) -> int:
        capture = current_capture()
        if capture is None:
            return self._stdout.write(text)
        # A line belongs to the job that began it: `print` writes its text and its end separately.
        *lines, rest = (capture.printed + text).split("\n")
        while len(rest) > MAX_LINE_CHARS:
            lines.append(rest[:MAX_LINE_CHARS])
            rest = rest[MAX_LINE_CHARS:]
        capture.printed = rest
        for line in lines:
            if line:
                _printed.info("%s", line)
        return len(text)

    def flush(self) -> None:
        self._stdout.flush()

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


@contextmanager
def watched_output() -> Iterator[None]:
    """Log what jobs print, and hold a coroutine that was never awaited against its job."""
    stdout, showwarning = sys.stdout, warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any
    ) -> None:
        capture = current_capture()
        if capture is not None and category is RuntimeWarning and _FORGOTTEN in str(message):
            capture.unawaited = f"{message} ({Path(filename).name}, line {lineno})"
        showwarning(message, category, filename, lineno, *more)

    with warnings.catch_warnings():
        # By default Python warns once per line of code, so only the first such job would fail.
        warnings.filterwarnings("always", message=f".*{_FORGOTTEN}", category=RuntimeWarning)
        warnings.showwarning = show  # type: ignore[assignment] # it passes on what it does not read
        sys.stdout = JobStdout(stdout)
        try:
            yield
        finally:
            sys.stdout = stdout
