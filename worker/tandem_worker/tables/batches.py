"""Rows in batches that are limited by their number and by their size."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar


class Sized(Protocol):
    """An item that knows about how many bytes it takes."""

    @property
    def size(self) -> int: ...


T = TypeVar("T", bound=Sized)


def batched(items: Iterable[T], max_items: int, max_bytes: int) -> Iterator[list[T]]:
    """Lists of the items; the item that reaches a limit is the last of its list."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += item.size
        if len(batch) == max_items or size >= max_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
