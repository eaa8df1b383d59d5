"""What is compared in approximate search? The shape of every engine: an index of unit vectors.

Every engine gets the same float32 matrix, of which a row's number is its id, builds with one
thread and answers with one thread, one query at a time and many at once. Parameters of building are
those that the makers recommend for this size; those of searching are swept, so that nobody is
judged by a default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from data import Vectors

Setting = dict[str, Any]

# Candidates that a graph keeps while it is searched.
WIDTHS = (10, 12, 14, 17, 20, 24, 28, 34, 40, 48, 56, 68, 80, 112, 160, 240, 360)


class Engine(ABC):
    """One index over one matrix.

    Attributes:
        name: How tables and files name it.
        package: The module that must be there.
        database: Whether it is a database rather than a library of indexes.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    database: ClassVar[bool] = False

    @abstractmethod
    def build(self, vectors: Vectors, folder: Path) -> None:
        """Index a matrix and leave everything that searching needs in an empty folder."""

    @abstractmethod
    def open(self, folder: Path) -> None:
        """Open what was built."""

    @abstractmethod
    def settings(self) -> list[Setting]:
        """The search parameters to try."""

    @abstractmethod
    def tune(self, setting: Setting) -> None:
        """Search with these parameters from now on."""

    @abstractmethod
    def search(self, query: Vectors, k: int) -> Any:
        """The nearest of one query, in whatever form the engine gives them."""

    def search_many(self, queries: Vectors, k: int) -> Any:
        """The nearest of many queries handed over at once; one by one where there is no such call.

        Still with one thread.
        """
        return [self.search(query, k) for query in queries]

    def rows(self, found: Any) -> list[int]:
        """The row numbers in what a search returned."""
        return [int(row) for row in found]


def lists_for(count: int) -> int:
    """Lists of an inverted file: about 3 sqrt(n) at 100,000, 4 sqrt(n) at a million."""
    return int(2 ** round(np.log2(max(16.0, 3.2 * np.sqrt(count)))))


def grid(**choices: Iterable[Any]) -> list[Setting]:
    return [dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values())]
