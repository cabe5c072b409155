"""Jobs and their tags, with an index for each kind of list.

Every index ends in the id, which sorts by submission.
"""

from typing import Any

from tortoise.fields import BigIntField, CharField, IntField, TextField
from tortoise.migrations import CreateModel, Migration, RunPython

INDEXES = (
    "CREATE INDEX tandem_jobs_state ON tandem_jobs (tenant, state, id)",
    "CREATE INDEX tandem_jobs_task ON tandem_jobs (tenant, task, state, id)",
    "CREATE INDEX tandem_jobs_queue ON tandem_jobs (tenant, queue, state, id)",
    "CREATE UNIQUE INDEX tandem_tags_tag ON tandem_tags (tenant, tag, job)",
    "CREATE INDEX tandem_tags_job ON tandem_tags (job)",
)
# Ids sort by bytes. SQLite compares this way; PostgreSQL would use the database's collation.
BY_BYTES = (
    'ALTER TABLE tandem_jobs ALTER COLUMN id TYPE varchar(64) COLLATE "C"',
    'ALTER TABLE tandem_tags ALTER COLUMN job TYPE varchar(64) COLLATE "C"',
)


async def add_indexes(_apps: Any, editor: Any) -> None:
    """Add the indexes, whose columns Tortoise's models cannot order."""
    postgres = editor.client.capabilities.dialect == "postgres"
    for statement in (*(BY_BYTES if postgres else ()), *INDEXES):
        await editor.client.execute_script(statement)


class Migration(Migration):  # type: ignore[no-redef] # Tortoise finds it by this name
    initial = True
    operations = [  # noqa: RUF012 - Tortoise's own form
        CreateModel(
            name="LedgerJob",
            fields=[
                ("id", CharField(max_length=64, primary_key=True)),
                ("tenant", CharField(max_length=64)),
                ("task", CharField(max_length=255)),
                ("queue", CharField(max_length=64)),
                ("priority", CharField(max_length=8)),
                ("state", CharField(max_length=16)),
                ("stamp", BigIntField()),
                ("attempt", IntField()),
                ("max_attempts", IntField()),
                ("submitted", BigIntField()),
                ("run", BigIntField(null=True)),
                ("due", BigIntField()),
                ("began", BigIntField(null=True)),
                ("ended", BigIntField(null=True)),
                ("cancel", BigIntField(null=True)),
                ("output", BigIntField(null=True)),
                ("version", IntField()),
                ("concurrency_key", CharField(max_length=255, null=True)),
                ("concurrency_limit", IntField(null=True)),
                ("token", CharField(max_length=255, null=True)),
                ("options", TextField()),
                ("attempts", TextField(null=True)),
                ("progress", TextField(null=True)),
                ("result", TextField(null=True)),
                ("error", TextField(null=True)),
                ("files", TextField(null=True)),
                ("payload", TextField(null=True)),
                ("words", TextField()),
            ],
            options={"table": "tandem_jobs", "app": "tandem"},
        ),
        CreateModel(
            name="LedgerTag",
            fields=[
                ("id", BigIntField(primary_key=True, generated=True)),
                ("tenant", CharField(max_length=64)),
                ("tag", CharField(max_length=512)),
                ("job", CharField(max_length=64)),
            ],
            options={"table": "tandem_tags", "app": "tandem"},
        ),
        RunPython(add_indexes),
    ]
