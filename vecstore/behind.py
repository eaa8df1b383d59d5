"""How is one thing done while the next is made ready? In one thread, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def behind(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what `map(work, items)` yields; items are drawn while the one before is worked on.

    All work is done in one thread, everything else in the caller's. Where drawing an item fails, or
    is interrupted, the work on the one before it is finished first, and its result yielded. Where
    work fails, the item that was drawn meanwhile is dropped.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    source, pending, failure = iter(items), None, None
    with ThreadPoolExecutor(1, thread_name_prefix="vecstore-behind") as pool:
        while failure is None:
            following: Future[R] | None = None
            try:
                item = next(source)
            except BaseException as error:
                failure = error
            if pending is not None:
                yield pending.result()
            if failure is None:
                following = pool.submit(work, item)
            pending = following
    if not isinstance(failure, StopIteration):
        raise failure
