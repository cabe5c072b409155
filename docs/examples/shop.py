"""Tasks with Tortoise models: sell items from stock, and report the sales.

The connection's URL names the module with the models, here this one:

    TANDEM_TASKS=shop PYTHONPATH=docs/examples \
    TANDEM_SQL__SHOP='sqlite:///tmp/shop.db?mode=rw&models=shop' tandem dev

The owner of the database creates the tables, for instance with `sql.execute`:

    CREATE TABLE item (name text PRIMARY KEY, amount integer NOT NULL);
    CREATE TABLE sale (
        job text PRIMARY KEY, item_id text NOT NULL REFERENCES item, amount integer NOT NULL
    )
"""

from pydantic import BaseModel, Field
from tortoise import fields
from tortoise.expressions import F
from tortoise.functions import Sum
from tortoise.models import Model
from tortoise.transactions import in_transaction

from tandem_worker import Job, Permanent, task


class Item(Model):
    """Items in stock."""

    name = fields.CharField(200, primary_key=True)
    amount = fields.IntField()


class Sale(Model):
    """What each job sold."""

    job = fields.CharField(200, primary_key=True)
    item: fields.ForeignKeyRelation[Item] = fields.ForeignKeyField(
        "shop.Item", related_name="sales"
    )
    amount = fields.IntField()


class Order(BaseModel):
    """How many of an item to sell."""

    item: str
    amount: int = Field(1, ge=1)


@task("shop.sell", example={"item": "cup", "amount": 2})
async def sell(job: Job, payload: Order) -> int:
    """Sell an item, once per job however often it is started; return how many are left."""
    async with job.models(), in_transaction("shop") as connection:
        if not await Sale.filter(job=job.id).using_db(connection).exists():
            stock = Item.filter(name=payload.item, amount__gte=payload.amount).using_db(connection)
            if not await stock.update(amount=F("amount") - payload.amount):
                raise Permanent(
                    "out_of_stock", f"fewer than {payload.amount} of {payload.item!r} are left"
                )
            await Sale.create(
                job=job.id, item_id=payload.item, amount=payload.amount, using_db=connection
            )
        item = await Item.get(name=payload.item, using_db=connection)
        return item.amount


@task("shop.report")
async def report(job: Job) -> int:
    """Stream the sales of each item, best-selling first; return the total."""
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
