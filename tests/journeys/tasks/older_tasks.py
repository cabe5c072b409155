"""A task before a deployment."""

from tandem_worker import task


@task("deployed.answer", version=1)
async def answer(payload: int) -> str:
    return f"older {payload}"
