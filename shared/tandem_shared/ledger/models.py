"""The tables of the ledger as Tortoise models.

Tortoise needs them to connect. The statements are written by hand, see query.py and ledger.py.
"""

from tortoise.fields import BigIntField, CharField, IntField, TextField
from tortoise.models import Model


class LedgerJob(Model):
    """A job as last written. JSON is text, unchanged; stamps are µs, `due` and `run` ms."""

    id = CharField(max_length=64, primary_key=True)
    tenant = CharField(max_length=64)
    task = CharField(max_length=255)
    queue = CharField(max_length=64)
    priority = CharField(max_length=8)
    state = CharField(max_length=16)
    stamp = BigIntField()
    attempt = IntField()
    max_attempts = IntField()
    submitted = BigIntField()
    run = BigIntField(null=True)
    due = BigIntField()
    began = BigIntField(null=True)
    ended = BigIntField(null=True)
    cancel = BigIntField(null=True)
    output = BigIntField(null=True)
    version = IntField()
    concurrency_key = CharField(max_length=255, null=True)
    concurrency_limit = IntField(null=True)
    token = CharField(max_length=255, null=True)
    options = TextField()
    attempts = TextField(null=True)
    progress = TextField(null=True)
    result = TextField(null=True)
    error = TextField(null=True)
    files = TextField(null=True)
    payload = TextField(null=True)  # final jobs only
    words = TextField()  # the text that `q` searches

    class Meta:  # noqa: D106 - Tortoise's own form
        table = "tandem_jobs"
        app = "tandem"


class LedgerTag(Model):
    """A tag of a job, `name=value`; a replay also has `=` and the id of the job that it replays."""

    id = BigIntField(primary_key=True, generated=True)
    tenant = CharField(max_length=64)
    tag = CharField(max_length=512)
    job = CharField(max_length=64)

    class Meta:  # noqa: D106 - Tortoise's own form
        table = "tandem_tags"
        app = "tandem"
