"""What is worked out when it is first asked for, and then kept?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T")
K = TypeVar("K")


def keep(known: dict[K, T], key: K, made: T, most: int) -> T:
    """Keep what was made under a key, of `most` things at most; the oldest goes first.

    Returns:
        What is kept: of threads that make the same at the same time, all get the first one's.
    """
    # A list is taken in one step, whatever other threads do.
    for oldest in list(known)[: max(0, len(known) + 1 - most)]:
        known.pop(oldest, None)
    return known.setdefault(key, made)


class lazy(cached_property[T]):
    """An attribute that is worked out once, or once in each of several threads that ask at once.

    In Python 3.11 a cached_property has one lock for all instances: a thread that was at work when
    its process was forked would keep every instance of the child waiting for ever.
    """

    def __init__(self, work: Callable[[Any], T]) -> None:
        super().__init__(work)
        self.lock = contextlib.nullcontext()
