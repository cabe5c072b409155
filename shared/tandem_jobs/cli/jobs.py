"""`tandem submit`, `watch`, `result`, `cancel` and `replay`: jobs from a terminal or a script.

stdout carries data only: the id of a job, its result, or its output items as NDJSON. Everything
else goes to stderr.
"""

import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from tandem_jobs.cli.screen import Screen, escaped, summary
from tandem_jobs.client.client import Client
from tandem_jobs.client.errors import Problem
from tandem_jobs.client.models import Entry, Job
from tandem_shared.errors import Malformed, TandemError, Unavailable

FINAL = {"succeeded": 0, "failed": 1, "cancelled": 3}  # state → exit code
REFUSED, NO_ANSWER, NOT_FINAL, INTERRUPTED = 2, 4, 5, 130  # exit codes
UNAUTHENTICATED = 401
JOB_OPTIONS = (
    "queue priority delay run_at timeout expires_in concurrency_key concurrency_limit".split()
)


def run(command: str, options: dict[str, Any]) -> int:
    """Run one of the commands; its exit code."""
    screen = Screen(sys.stderr)
    try:
        with Client(
            options["url"],
            options["api_key"],
            patience=options["patience"],
            on_retry=screen.retrying,
        ) as client:
            return COMMANDS[command](client, options, screen)
    except TandemError as error:
        text = f"tandem: {error}"
        if isinstance(error, Problem) and error.status == UNAUTHENTICATED:
            text += " (--api-key or TANDEM_API_KEY)"
        screen.print(text, "error")
        return NO_ANSWER if isinstance(error, Unavailable) else REFUSED


def _submit(client: Client, options: dict[str, Any], screen: Screen) -> int:
    given = {name: options[name] for name in JOB_OPTIONS if options[name] is not None}
    if options["tags"]:
        given["tags"] = dict(options["tags"])
    if options["max_attempts"] is not None:
        given["retry"] = {"max_attempts": options["max_attempts"]}
    payload = _payload(options["payload"])
    job = client.submit(options["task"], payload, idempotency_key=options["key"], **given)
    follow = _watch if options["watch"] else _wait if options["wait"] else None
    if follow is None:
        print(job.id)
        return 0
    screen.print(f"job {job.id}")
    return follow(client, {**options, "id": job.id}, screen)


def _payload(text: str | None) -> msgspec.Raw:
    """The JSON as written, so that its numbers are not rounded. Raises Malformed."""
    try:
        if text is None:
            body = b"{}"
        elif text == "-":
            body = sys.stdin.buffer.read()
        elif text.startswith("@"):
            body = Path(text[1:]).read_bytes()
        else:
            body = text.encode()
        msgspec.json.decode(body)
    except OSError as error:
        raise Malformed(f"{text}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise Malformed(f"invalid JSON payload: {error}") from None
    return msgspec.Raw(body)


def _watch(client: Client, options: dict[str, Any], screen: Screen) -> int:
    """Show a job until its end."""
    id, after = options["id"], options.get("after")
    final: Job | None = None
    printed = False  # output of this attempt
    try:
        for entries in client.stream_chunks(id, after=after):
            for kind, group in groupby(entries, key=attrgetter("type")):
                if kind == "output":
                    after = _print_items(group, screen)
                    printed = True
                    continue
                for entry in group:
                    if printed and kind == "state" and entry.job.state == "running":
                        text = f"attempt {entry.attempt} starts over: discard the items above"
                        screen.print(text, "warning")
                        printed = False
                    screen.show(entry)
                    after = entry.id
                    final = entry.job if kind == "end" else None
            if final is None:
                screen.draw()
    except KeyboardInterrupt:
        return _interrupted(options, after, screen)
    finally:
        with suppress(OSError):
            screen.clear()
    final = final or client.get(id)  # the stream after `end` is empty
    return FINAL.get(final.state, 1)


def _print_items(entries: Iterable[Entry], screen: Screen) -> str:
    """Print output items; the id of the last one."""
    items = []
    on_terminal = sys.stdout.isatty()
    if on_terminal:
        screen.clear()
    for entry in entries:
        item = bytes(entry.raw)
        items.append(escaped(item) if on_terminal else item)
    sys.stdout.buffer.write(b"\n".join((*items, b"")))
    sys.stdout.buffer.flush()
    return entry.id


def _wait(client: Client, options: dict[str, Any], screen: Screen) -> int:
    try:
        return _print_result(client, client.wait(options["id"]), screen)
    except KeyboardInterrupt:
        return _interrupted(options, None, screen)


def _interrupted(options: dict[str, Any], after: str | None, screen: Screen) -> int:
    words = ["tandem", "watch", options["id"]]
    if after is not None:
        words += ["--after", after]
    if options["url"]:
        words += ["--url", options["url"]]
    screen.print(f"job {options['id']} keeps running; resume with: {shlex.join(words)}")
    return INTERRUPTED


def _result(client: Client, options: dict[str, Any], screen: Screen) -> int:
    id = options["id"]
    if options["file"] is not None:
        client.download(f"{id}/{options['file']}", sys.stdout.buffer)
        return 0
    if options["wait"]:
        return _wait(client, options, screen)
    job = client.get(id)
    if not job.done:
        why = f" ({job.waiting_for.detail})" if job.waiting_for else ""
        screen.print(f"tandem: job {id} is {job.state}{why}; --wait waits for its result")
        return NOT_FINAL
    return _print_result(client, job, screen)


def _print_result(client: Client, job: Job, screen: Screen) -> int:
    if job.state == "succeeded":
        # Copied as bytes: the result may be a large file, and decoding would round its numbers.
        client.download(f"/v1/jobs/{job.id}/result", sys.stdout.buffer)
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()
    else:
        screen.print(summary(job), job.state)
    return FINAL.get(job.state, 1)


def _cancel(client: Client, options: dict[str, Any], screen: Screen) -> int:
    job = client.cancel(options["id"])
    text = f"job {job.id}: {job.state}" if job.done else f"cancelling job {job.id}"
    screen.print(text, job.state)
    return 0


def _replay(client: Client, options: dict[str, Any], _screen: Screen) -> int:
    print(client.replay(options["id"], idempotency_key=options["key"]).id)
    return 0


COMMANDS: dict[str, Callable[[Client, dict[str, Any], Screen], int]] = {
    "submit": _submit,
    "watch": _watch,
    "result": _result,
    "cancel": _cancel,
    "replay": _replay,
}
