"""Jobs and their tags, with an index for each way to look for them: all end in the id, which sorts by submission."""

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
# By bytes, as SQLite compares, whatever the database's own collation: ids sort so.
BY_BYTES = (
    'ALTER TABLE tandem_jobs ALTER COLUMN id TYPE varchar(64) COLLATE "C"',
    'ALTER TABLE tandem_tags ALTER COLUMN job TYPE varchar(64) COLLATE "C"',
)


async def index(_apps: Any, editor: Any) -> None:
    """What the models cannot say."""
    postgres = editor.client.capabilities.dialect == "postgres"
    for statement in (*(BY_BYTES if postgres else ()), *INDEXES):
        await editor.client.execute_script(statement)


class Migration(Migration):  # type: ignore[no-redef] # Tortoise finds it by this name
    initial = True
    operations = [  # noqa: RUF012 - Tortoise's own form
        CreateModel(
            name="Job",
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
            name="Tag",
            fields=[
                ("id", fields.BigIntField(primary_key=True, generated=True)),
                ("tenant", fields.CharField(max_length=64)),
                ("tag", fields.CharField(max_length=512)),
                ("job", fields.CharField(max_length=64)),
            ],
            options={"table": "tandem_tags", "app": "tandem"},
        ),
        RunPython(index),
    ]
