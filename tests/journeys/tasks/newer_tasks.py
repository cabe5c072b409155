"""The task of older_tasks.py after a deployment."""

from tandem_worker import task


@task("deployed.answer", version=2)
async def answer(payload: int) -> str:
    return f"newer {payload}"
