"""The chaos machine: real processes, seeded faults, clients with logs, and a checker that trusts none of them.

work.py         the tasks that run, and the file to which they append what they did
relay.py        TCP in between: slow, stalled, cut; and a front that follows /readyz
stage.py        the processes: 2 APIs, 3 workers, Redis, PostgreSQL for the ledger and for SQL jobs
schedule.py     what is done to them and when, by a seed
faults.py       how it is done
submissions.py  what is submitted
clients.py      who submits, cancels and waits, and what they were told
followers.py    who reads streams
journal.py      the queue's events, from Redis' own append-only file
evidence.py     all of that as data
checker.py      what must hold of every job; knows nothing of the code it checks
traces.py       the same of what jobs leave behind: effects, rows, steps, locks, streams
run.py          a run
mutants.py      builds that are broken on purpose, to be caught
__main__.py     `make chaos ARGS="--seconds 600 --seed 7"`
deploy.py       a rolling restart of everything under load: `python -m tests.chaos.deploy --rate
                500`
recovery.py     how long jobs stand still when their worker is killed: `python -m
                tests.chaos.recovery`
"""
