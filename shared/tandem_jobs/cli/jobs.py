"""`tandem submit`, `watch`, `result`, `cancel` and `replay`: jobs from a terminal, or from a script.

stdout has data only: the id of a job, its result, or its output items as NDJSON. All else is on
stderr.
"""

import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from tandem_jobs.cli.screen import Screen, ending, harmless
from tandem_jobs.client.client import Client
from tandem_jobs.client.errors import Problem
from tandem_jobs.client.models import Job
from tandem_shared.errors import TandemError, Unavailable

FINAL = {"succeeded": 0, "failed": 1, "cancelled": 3}
REFUSED, UNREACHABLE, NOT_YET, INTERRUPTED = 2, 4, 5, 130
UNAUTHENTICATED = 401
OPTIONS = (
    *(
        "queue",
        "priority",
        "delay",
        "run_at",
        "timeout",
        "expires_in",
        "concurrency_key",
        "concurrency_limit",
    ),
    "tags",
)


def run(command: str, options: dict[str, Any]) -> int:
    """Run one of them; its exit code."""
    screen = Screen(sys.stderr)
    try:
        with Client(
            options["url"], options["api_key"], patience=options["patience"], told=screen.trouble
        ) as client:
            return COMMANDS[command](client, options, screen)
    except Unavailable as error:
        code, text = UNREACHABLE, str(error)
    except Problem as error:
        hint = " (--api-key or TANDEM_API_KEY)" if error.status == UNAUTHENTICATED else ""
        code, text = REFUSED, f"{error}{hint}"
    except (TandemError, _Unreadable) as error:
        code, text = REFUSED, str(error)
    screen.say(f"tandem: {text}", "error")
    return code


class _Unreadable(Exception):
    """The payload cannot be read; says why."""


def _submit(client: Client, options: dict[str, Any], screen: Screen) -> int:
    given = {name: options[name] for name in OPTIONS if options[name] is not None}
    if options["max_attempts"] is not None:
        given["retry"] = {"max_attempts": options["max_attempts"]}
    payload = _payload(options["payload"])
    job = client.submit(options["task"], payload, idempotency_key=options["key"], **given)
    if options["watch"]:
        screen.say(f"job {job.id}")
        return _follow(client, job.id, options, screen)
    if options["wait"]:
        screen.say(f"job {job.id}")
        return _wait(client, job.id, options, screen)
    print(job.id)
    return 0


def _payload(text: str | None) -> msgspec.Raw:
    """The JSON as it was written: no number of it is rounded."""
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
        raise _Unreadable(f"{text}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise _Unreadable(f"the payload is no JSON: {error}") from None
    return msgspec.Raw(body)


def _watch(client: Client, options: dict[str, Any], screen: Screen) -> int:
    return _follow(client, options["id"], options, screen)


def _follow(client: Client, id: str, options: dict[str, Any], screen: Screen) -> int:
    """Show a job until its end."""
    shared = sys.stdout.isatty()  # with the live line
    after: str | None = options.get("after")
    final: Job | None = None
    told = False
    try:
        for portion in client.portions(id, after=after):
            items = []
            for entry in portion:
                if entry.type == "output":
                    items.append(harmless(bytes(entry.raw)) if shared else bytes(entry.raw))
                    continue
                if items:
                    _write(items, screen, shared=shared)
                    told, items = True, []
                if told and entry.type == "state" and entry.job.state == "running":
                    screen.say(
                        f"attempt {entry.attempt} begins: the items above are void", "warning"
                    )
                    told = False
                screen.show(entry)
                after = entry.id
                if entry.type == "end":
                    final = entry.job
            if items:
                _write(items, screen, shared=shared)
                told, after = True, portion[-1].id
            if final is None:
                screen.draw()
    except KeyboardInterrupt:
        return _left(id, after, options, screen)
    finally:
        with suppress(OSError):
            screen.clear()
    final = final or client.get(id)  # nothing comes after `end`
    return FINAL.get(final.state, 1)


def _write(items: list[bytes], screen: Screen, *, shared: bool) -> None:
    if shared:
        screen.clear()
    sys.stdout.buffer.write(b"\n".join((*items, b"")))
    sys.stdout.buffer.flush()


def _wait(client: Client, id: str, options: dict[str, Any], screen: Screen) -> int:
    """The result, when there is one."""
    try:
        return _print_result(client, client.wait(id), screen)
    except KeyboardInterrupt:
        return _left(id, None, options, screen)


def _left(id: str, after: str | None, options: dict[str, Any], screen: Screen) -> int:
    words = ["tandem", "watch", id]
    if after is not None:
        words += ["--after", after]
    if options["url"]:
        words += ["--url", options["url"]]
    screen.say(f"job {id} goes on without us; to go on watching: {shlex.join(words)}")
    return INTERRUPTED


def _result(client: Client, options: dict[str, Any], screen: Screen) -> int:
    id = options["id"]
    if options["file"] is not None:
        client.download(f"{id}/{options['file']}", sys.stdout.buffer)
        return 0
    if options["wait"]:
        return _wait(client, id, options, screen)
    job = client.get(id)
    if not job.done:
        screen.say(f"tandem: job {id} is {job.state}; --wait waits for its result")
        return NOT_YET
    return _print_result(client, job, screen)


def _print_result(client: Client, job: Job, screen: Screen) -> int:
    if job.state == "succeeded":
        # As it comes: what is large is a file, and no number of it is rounded.
        client.download(f"/v1/jobs/{job.id}/result", sys.stdout.buffer)
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()
    else:
        screen.say(*ending(job))
    return FINAL.get(job.state, 1)


def _cancel(client: Client, options: dict[str, Any], screen: Screen) -> int:
    job = client.cancel(options["id"])
    if job.done:
        screen.say(f"job {job.id}: {job.state}", job.state)
    else:
        screen.say(f"job {job.id} is told to end")
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
