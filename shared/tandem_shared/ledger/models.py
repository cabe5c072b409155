"""The tables of the ledger, as Tortoise knows them."""

from tortoise import fields
from tortoise.models import Model


class Job(Model):
    """One job as it was when it was last projected. JSON is text as it came; stamps are µs, `due` and `run` ms."""

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
    payload = fields.TextField(null=True)  # of final jobs
    words = fields.TextField()  # what `q` looks through

    class Meta:  # noqa: D106 - Tortoise's own form
        table = "tandem_jobs"
        app = "tandem"


class Tag(Model):
    """A tag of a job, as `name=value`; of a replay also `=` and the id of what it replays."""

    id = fields.BigIntField(primary_key=True, generated=True)
    tenant = fields.CharField(max_length=64)
    tag = fields.CharField(max_length=512)
    job = fields.CharField(max_length=64)

    class Meta:  # noqa: D106 - Tortoise's own form
        table = "tandem_tags"
        app = "tandem"
