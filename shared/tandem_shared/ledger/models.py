"""The tables of the ledger as Tortoise models."""

from tortoise import fields
from tortoise.models import Model


class LedgerJob(Model):
    """A job as last projected. JSON is text, unchanged; stamps are µs, `due` and `run` ms."""

    id = fields.CharField(max_length=64, primary_key=True)
    tenant = fields.CharField(max_length=64)
    task = fields.CharField(max_length=255)
    queue = fields.CharField(max_length=64)
    priority = fields.CharField(max_length=8)
    state = fields.CharField(max_length=16)
    stamp = fields.BigIntField()
    attempt = fields.IntField()
    max_attempts = fields.IntField()
    submitted = fields.BigIntField()
    run = fields.BigIntField(null=True)
    due = fields.BigIntField()
    began = fields.BigIntField(null=True)
    ended = fields.BigIntField(null=True)
    cancel = fields.BigIntField(null=True)
    output = fields.BigIntField(null=True)
    version = fields.IntField()
    concurrency_key = fields.CharField(max_length=255, null=True)
    concurrency_limit = fields.IntField(null=True)
    token = fields.CharField(max_length=255, null=True)
    options = fields.TextField()
    attempts = fields.TextField(null=True)
    progress = fields.TextField(null=True)
    result = fields.TextField(null=True)
    error = fields.TextField(null=True)
    files = fields.TextField(null=True)
    payload = fields.TextField(null=True)  # final jobs only
    words = fields.TextField()  # the text that `q` searches

    class Meta:  # noqa: D106 - Tortoise's own form
        table = "tandem_jobs"
        app = "tandem"


class LedgerTag(Model):
    """A tag of a job, `name=value`; a replay also has `=` and the id of the job that it replays."""

    id = fields.BigIntField(primary_key=True, generated=True)
    tenant = fields.CharField(max_length=64)
    tag = fields.CharField(max_length=512)
    job = fields.CharField(max_length=64)

    class Meta:  # noqa: D106 - Tortoise's own form
        table = "tandem_tags"
        app = "tandem"
