"""Jobs and their tags, with an index for each kind of list.

Every index ends in the id, which sorts by submission.
"""

from typing import Any

from tortoise import fields
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
                ("id", fields.CharField(max_length=64, primary_key=True)),
                ("tenant", fields.CharField(max_length=64)),
                ("task", fields.CharField(max_length=255)),
                ("queue", fields.CharField(max_length=64)),
                ("priority", fields.CharField(max_length=8)),
                ("state", fields.CharField(max_length=16)),
                ("stamp", fields.BigIntField()),
                ("attempt", fields.IntField()),
                ("max_attempts", fields.IntField()),
                ("submitted", fields.BigIntField()),
                ("run", fields.BigIntField(null=True)),
                ("due", fields.BigIntField()),
                ("began", fields.BigIntField(null=True)),
                ("ended", fields.BigIntField(null=True)),
                ("cancel", fields.BigIntField(null=True)),
                ("output", fields.BigIntField(null=True)),
                ("version", fields.IntField()),
                ("concurrency_key", fields.CharField(max_length=255, null=True)),
                ("concurrency_limit", fields.IntField(null=True)),
                ("token", fields.CharField(max_length=255, null=True)),
                ("options", fields.TextField()),
                ("attempts", fields.TextField(null=True)),
                ("progress", fields.TextField(null=True)),
                ("result", fields.TextField(null=True)),
                ("error", fields.TextField(null=True)),
                ("files", fields.TextField(null=True)),
                ("payload", fields.TextField(null=True)),
                ("words", fields.TextField()),
            ],
            options={"table": "tandem_jobs", "app": "tandem"},
        ),
        CreateModel(
            name="LedgerTag",
            fields=[
                ("id", fields.BigIntField(primary_key=True, generated=True)),
                ("tenant", fields.CharField(max_length=64)),
                ("tag", fields.CharField(max_length=512)),
                ("job", fields.CharField(max_length=64)),
            ],
            options={"table": "tandem_tags", "app": "tandem"},
        ),
        RunPython(add_indexes),
    ]
