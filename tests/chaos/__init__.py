"""The chaos machine: real processes, seeded faults, clients with logs, and a checker that trusts none of them.

work.py      the tasks that run, and the file to which they append what they did
relay.py     TCP in between: slow, stalled, cut; and a front that follows /readyz
stage.py     the processes: 2 APIs, 3 workers, Redis, PostgreSQL
faults.py    what is done to them, by a seed
clients.py   who submits, cancels, waits and streams, and what they were told
recorder.py  the queue's events, as they were written
checker.py   what must hold of all that; knows nothing of the code it checks
mutants.py   builds that are broken on purpose, to be caught
__main__.py  a run: `make chaos ARGS="--seconds 600 --seed 7"`
"""
