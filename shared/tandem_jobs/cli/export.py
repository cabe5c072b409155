"""`tandem export`: all jobs of the ledger as NDJSON on stdout, a page in memory at a time."""

import asyncio
import sys
from dataclasses import dataclass

import msgspec

from tandem_shared.errors import Misconfigured, Unavailable
from tandem_shared.jobs.record import job_json
from tandem_shared.jobs.states import State
from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.settings import Settings
from tandem_shared.times import parse_rfc3339


@dataclass(frozen=True, slots=True)
class Options:
    """The command line; `None` leaves a bound out."""

    since: str | None = None
    until: str | None = None
    state: str | None = None


def run(options: Options, settings: Settings) -> int:
    """Print them; the exit code: 0, or 1 if the database does not answer. Raises Misconfigured for a wrong option."""
    since, until = _time("--since", options.since), _time("--until", options.until)
    states = [word.strip() for word in (options.state or "").split(",") if word.strip()]
    if not set(states) <= set(State):
        raise Misconfigured(f"--state: give some of {', '.join(State)}, separated by commas")
    try:
        asyncio.run(_print(settings, since, until, [State(word) for word in states]))
    except Unavailable as error:
        sys.stdout.flush()
        sys.stderr.write(f"tandem export: {error}\n")
        return 1
    return 0


async def _print(
    settings: Settings, since: float | None, until: float | None, states: list[State]
) -> None:
    out = sys.stdout.buffer
    async with open_ledger(settings) as ledger:
        async for record, payload in ledger.export(since=since, until=until, states=states):
            # As clients see a job, with its payload once it is final, and its tenant.
            job = job_json(record, payload=payload)
            out.write(
                job.replace(b"{", b'{"tenant":' + msgspec.json.encode(record.tenant) + b",", 1)
                + b"\n"
            )


def _time(name: str, text: str | None) -> float | None:
    moment = None if text is None else parse_rfc3339(text)
    if text is not None and moment is None:
        raise Misconfigured(f"{name}: {text!r} is not a time; use RFC 3339: 2026-01-31T12:00:00Z")
    return moment
