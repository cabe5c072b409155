"""What a response says to caches."""

from starlette.responses import Response

NO_CACHE = {"Cache-Control": "private, no-cache"}  # caches ask again each time
NO_STORE = {"Cache-Control": "no-store"}


# Dependencies of routes whose responses FastAPI makes.


async def no_cache(response: Response) -> None:
    """Adds NO_CACHE."""
    response.headers.update(NO_CACHE)


async def no_store(response: Response) -> None:
    """Adds NO_STORE."""
    response.headers.update(NO_STORE)
