"""A task as it was before a deployment."""

from worker import task


@task("deployed.answer", version=1)
async def answer(payload: int) -> str:
    return f"older {payload}"
