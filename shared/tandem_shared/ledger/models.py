"""The one model without which Tortoise does not connect.

It maps none of the columns: the statements are written by hand (query.py, ledger.py), and the
schema is that of the migrations.
"""

from tortoise.fields import CharField
from tortoise.models import Model


class LedgerJob(Model):
    """A row of tandem_jobs, by its id."""

    id = CharField(max_length=64, primary_key=True)

    class Meta:  # noqa: D106 - Tortoise's own form
        table = "tandem_jobs"
        app = "tandem"
