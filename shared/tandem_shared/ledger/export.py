"""`tandem export`: print the jobs in the ledger as NDJSON, with one page in memory at a time."""

import asyncio
import sys

import msgspec

from tandem_shared.errors import Misconfigured, Unavailable
from tandem_shared.jobs.record import job_json
from tandem_shared.jobs.states import State
from tandem_shared.ledger.ledger import END_OF_TIME, open_ledger
from tandem_shared.settings import Settings
from tandem_shared.times import parse_rfc3339


def run(settings: Settings, *, since: str | None, until: str | None, state: str | None) -> int:
    """Print the jobs; 0, or 1 if the database is unavailable. Raises Misconfigured for an option.

    `since` and `until` are RFC 3339 times, `state` is a comma-separated list; None is no filter.
    """
    bounds = _time("--since", since, 0.0), _time("--until", until, END_OF_TIME)
    names = [name.strip() for name in (state or "").split(",") if name.strip()]
    if not set(names) <= set(State):
        raise Misconfigured(
            f"--state: {state!r} is not a list of states; use {', '.join(State)}, comma-separated"
        )
    try:
        asyncio.run(_print(settings, *bounds, [State(name) for name in names]))
    except Unavailable as error:
        sys.stdout.flush()
        sys.stderr.write(f"tandem export: {error}\n")
        return 1
    return 0


async def _print(settings: Settings, since: float, until: float, states: list[State]) -> None:
    async with open_ledger(settings) as ledger:
        async for record, payload in ledger.export(since=since, until=until, states=states):
            # The job as clients see it, preceded by its tenant, with the payload once it is final.
            job = job_json(record, payload=payload).removeprefix(b"{")
            tenant = msgspec.json.encode(record.tenant)
            sys.stdout.buffer.write(b'{"tenant":%b,%b\n' % (tenant, job))


def _time(option: str, text: str | None, default: float) -> float:
    moment = default if text is None else parse_rfc3339(text)
    if moment is None:
        raise Misconfigured(f"{option}: {text!r} is not a time; use RFC 3339: 2026-01-31T12:00:00Z")
    return moment
