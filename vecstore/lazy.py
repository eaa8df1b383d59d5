"""What is worked out when it is first asked for, and then kept?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T")


class lazy(cached_property[T]):
    """An attribute that is worked out once, or once in each of several threads that ask at once.

    In Python 3.11 a cached_property has one lock for all instances: a thread that was at work when
    its process was forked would keep every instance of the child waiting for ever.
    """

    def __init__(self, work: Callable[[Any], T]) -> None:
        super().__init__(work)
        self.lock = contextlib.nullcontext()
