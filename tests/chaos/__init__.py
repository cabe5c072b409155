"""Chaos tests: real processes, seeded faults, clients that keep logs, and a skeptical checker.

work.py          the tasks that run, and the file to which they append what they did
relay.py         TCP relays that delay, stall and cut; and a front that follows /readyz
stage.py         the processes: 2 APIs, 3 workers, Redis, PostgreSQL for the ledger and for SQL jobs
schedule.py      which faults happen and when, by a seed
faults.py        how each fault is injected
submissions.py   what clients submit
clients.py       clients that submit, cancel and wait, and log what they saw
followers.py     clients that read streams
journal.py       the queue's events, from Redis' append-only file
check/           the checker: its evidence, its rules, and broken builds that it must catch
run.py           one run, from start to verdict
__main__.py      `make chaos ARGS="--seconds 600 --seed 7"`
deploy.py        a rolling restart under load: `python -m tests.chaos.deploy --rate 500`
recovery.py      how long a killed worker's jobs stand still: `python -m tests.chaos.recovery`
"""
