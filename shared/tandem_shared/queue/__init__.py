"""The queue: Redis is the truth for every job that is not final.

Only this package touches these keys, and only its scripts change them (scripts.py):

    job:<id>                       record, see jobs/record.py
    q:<queue>:<priority>           due jobs, by due time in ms
    later:<queue>:<priority>       scheduled and retrying jobs, by due time
    agenda                         each of these places, by the due time of its first job
    suspects:<queue>               due jobs during which two workers were lost; `suspected` has the
                                   queues
    park:<reason>                  jobs that may not run now
    parked, parked:<queue>         queues with jobs that no worker here could run; their reasons
    leases                         running jobs, by end of the lease
    expiries                       jobs with `expires_in` that have not started
    slots:<limit>, limit:<limit>   attempts under a limit ('task:…' or 'key:…'); what it allows
    limited:<limit>, gates         where jobs wait for a limit; when to look at it again
    lock:<tenant>:<name>           holder and fence of a lock
    waits:<tenant>:<name>          attempts that wait for a lock
    idem:<hash>                    idempotency key: id and fingerprint of its job
    steps:<id>                     results of a job's steps
    out:<id>                       stream of progress, logs and output
    cold:<id>                      index of the segments that left out:<id>, by last stamp
    events                         stream of every transition, for the ledger
    news:<id>, news:<id>:<number>  channels: the job changed; a lock was handed over
    bell:<queue or worker>         doorbells
    worker:<incarnation>, workers  live workers
    tasks:, entries:<digest>       the tasks and versions of a set of workers, and their entries
    catalogue, versions, published  the tasks that live workers publish, see lua/lib/publish.lua
    paused                         queues that are paused
    counts, clock                  jobs by queue and state; times and flags of the shard

Every unfinished record is in exactly one of q, later, leases, park and suspects. Final records
expire after TANDEM_KEEP or, where a ledger follows the events, that long after it has them.
"""
