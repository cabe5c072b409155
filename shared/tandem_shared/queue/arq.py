"""Jobs that plain arq clients put on `arq:queue`: listed, and moved into this queue."""

from collections.abc import Collection, Sequence

from redis.asyncio import Redis

from tandem_shared.jobs.record import Submission
from tandem_shared.queue.messages import submit_args
from tandem_shared.queue.scripts import Scripts, translate_errors


class ArqQueue:
    """arq's own queue. Calls raise Unavailable if Redis does not answer; repeating one is safe."""

    def __init__(self, redis: "Redis", scripts: Scripts) -> None:
        self._redis, self._scripts = redis, scripts

    async def pending(
        self, limit: int = 100, skip: Collection[str] = ()
    ) -> list[tuple[str, float, bytes | None]]:
        """Waiting jobs, except `skip`: (arq's id, due time in seconds since the epoch, bytes)."""
        with translate_errors():
            last = limit + len(skip) - 1
            found = await self._redis.zrange("arq:queue", 0, last, withscores=True)
            names = [(id.decode(errors="replace"), due / 1000) for id, due in found]
            wanted = [job for job in names if job[0] not in skip]
            keys = [f"arq:job:{name}" for name, _ in wanted]
            bodies = await self._redis.mget(keys) if keys else []
        return [(*job, body) for job, body in zip(wanted, bodies, strict=True)]

    async def adopt(self, jobs: Sequence[tuple[str, Submission]]) -> list[str]:
        """Moves jobs over, atomically: our id for each, '' if another worker was first."""
        names = [name for name, _ in jobs]
        args = submit_args([job for _, job in jobs])
        return [id.decode() for id in await self._scripts.run("adopt", len(names), *names, *args)]
