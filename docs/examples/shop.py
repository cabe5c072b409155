"""Tasks with Tortoise models: sell what is in stock, and report on it.

The connection names the module of the models, here this one:

    TANDEM_TASKS=shop PYTHONPATH=docs/examples \
    TANDEM_SQL__SHOP='sqlite:///tmp/shop.db?mode=rw&models=shop' tandem dev

The tables are made by whoever owns the database; `sql.execute` can do it too:

    CREATE TABLE item (name text PRIMARY KEY, amount integer NOT NULL);
    CREATE TABLE sale (job text PRIMARY KEY, item_id text NOT NULL REFERENCES item, amount integer
    NOT NULL)
"""

from pydantic import BaseModel, Field
from tortoise import fields
from tortoise.expressions import F
from tortoise.functions import Sum
from tortoise.models import Model
from tortoise.transactions import in_transaction

from tandem_worker import task
from tandem_worker.errors import Permanent
from tandem_worker.jobs.job import Job


class Item(Model):
    """What there is."""

    name = fields.CharField(200, primary_key=True)
    amount = fields.IntField()


class Sale(Model):
    """What was sold, and by which job."""

    job = fields.CharField(200, primary_key=True)
    item: fields.ForeignKeyRelation[Item] = fields.ForeignKeyField(
        "shop.Item", related_name="sales"
    )
    amount = fields.IntField()


class Order(BaseModel):
    """So many of an item."""

    item: str
    amount: int = Field(1, ge=1)


@task("shop.sell", example={"item": "cup", "amount": 2})
async def sell(job: Job, payload: Order) -> int:
    """Sell an item once, however often the job is started; how many are left."""
    async with job.models(), in_transaction("shop") as connection:
        if not await Sale.filter(job=job.id).using_db(connection).exists():
            there = Item.filter(name=payload.item, amount__gte=payload.amount).using_db(connection)
            if not await there.update(amount=F("amount") - payload.amount):
                raise Permanent(
                    "out_of_stock", f"there are not {payload.amount} of {payload.item!r}"
                )
            await Sale.create(
                job=job.id, item_id=payload.item, amount=payload.amount, using_db=connection
            )
        item = await Item.get(name=payload.item, using_db=connection)
        return item.amount


@task("shop.report")
async def report(job: Job) -> int:
    """Stream what was sold of each item, most first; how many in all."""
    total = 0
    async with job.models():
        sold = (
            Sale.annotate(sold=Sum("amount"))
            .group_by("item_id")
            .order_by("-sold")
            .values("item_id", "sold")
        )
        for row in await sold:
            await job.emit({"item": row["item_id"], "sold": row["sold"]})
            total += row["sold"]
    return total
