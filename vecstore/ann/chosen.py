"""How does a snapshot compare few rows, such as a filter allows, at the machine's speed?

The answers are those of `exact.Exact`, to the bit, which answers while the kernel is not compiled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vecstore import plain, rows
from vecstore.ann import compiled
from vecstore.ann.engine import METRICS, MOST_WANTED, Comparing, Shared
from vecstore.catalog import Entry
from vecstore.layout import State
from vecstore.rows import Words
from vecstore.store import Reader, Snapshot

# More rows are compared by numpy, which reads them at the memory's speed too.
MOST_ROWS = 1 << 16
# And it compares many of them with so many queries at once faster, by blocks of both.
MANY_ROWS, MANY_QUERIES = 1 << 14, 16


class RowComparison(Comparing):
    """A way to compare some rows of one version of the file.

    Args:
        entry: The collection.
        state: Its counters.
        mask: uint64 (blocks,), the rows that may be found.
        k: How many are wanted.
    """

    kernel: compiled.Name = "compare_rows"

    def __init__(self, entry: Entry, state: State, mask: Words, k: int) -> None:
        super().__init__(entry, state, mask, k, 4 * entry.spec.dim)
        self.integers[plain.METRIC] = METRICS[entry.spec.metric]
        self.integers[plain.PRECISION] = entry.form.code
        self._many = rows.count(mask) > MANY_ROWS

    def ready(self, queries: int) -> bool:
        """Whether the kernel is here, or may be: it is wanted where there is an index."""
        if self._many and queries >= MANY_QUERIES:
            return False
        return compiled.ready(self.kernel) is not None

    def fill(self, snapshot: Snapshot, kind: int, wanted: NDArray[np.intp]) -> Shared:
        """As `Calls.fill`; all blocks with rows that may be found are needed."""
        blocks = self.blocks(snapshot, np.flatnonzero(self.mask))
        return self.frame(blocks, asked=rows.members(self.mask).astype(np.int64))


def comparison(
    reader: Reader, entry: Entry, state: State, mask: Words, wanted: int, *, indexed: bool
) -> RowComparison | None:
    """How to compare the rows of a mask, if there are few and numba is worth its import.

    Args:
        reader: Where to read.
        entry: The collection.
        state: Its counters.
        mask: uint64 (blocks,), the rows that may be found.
        wanted: How many.
        indexed: Whether there is an index, with which the other kernels are used.
    """
    worth = indexed or compiled.loaded("search") or compiled.loaded("compare_rows")
    if not isinstance(reader, Snapshot) or entry.spec.metric == "hamming" or not worth:
        return None
    few = 0 < wanted <= MOST_WANTED and rows.count(mask) <= MOST_ROWS
    return RowComparison(entry, state, mask, wanted) if few else None
