"""How does a snapshot compare all binary rows at the machine's speed?

The answers are those of `exact.ExactBits`, which answers while the kernel is not compiled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vecstore import rows
from vecstore.ann import compiled
from vecstore.ann.engine import MOST_WANTED, Comparing, Found, Shared
from vecstore.catalog import Entry
from vecstore.layout import State
from vecstore.rows import Words
from vecstore.store import Reader, Snapshot
from vecstore.vectors import Bits, as_words

# Fewer are compared by numpy; and if the kernel is not loaded.
LEAST_ROWS, LEAST_LOADED = 32_768, 1024
# With fewer rows of each block on average, they are faster picked out.
LEAST_A_BLOCK = 4


class BitComparison(Comparing):
    """A way to compare all binary rows of one version of the file.

    Args:
        entry: The collection.
        state: Its counters.
        mask: uint64 (blocks,), the rows that may be found.
        k: How many are wanted.
    """

    kernel: compiled.Name = "compare_bits"

    def __init__(self, entry: Entry, state: State, mask: Words, k: int) -> None:
        # numpy counts bits about half as fast as it compares numbers.
        super().__init__(entry, state, mask, k, 2 * entry.form.row_bytes)

    def compare(self, snapshot: Snapshot, queries: Bits, threads: int) -> Found:
        """Find the nearest rows; as `search`, with queries of uint8 (m, dim / 8)."""
        return self.search(snapshot, as_words(queries).view(np.float32), threads)

    def fill(self, snapshot: Snapshot, kind: int, wanted: NDArray[np.intp]) -> Shared:
        """As `Calls.fill`; all blocks with rows that may be found are needed."""
        blocks = self.blocks(snapshot, np.flatnonzero(self.mask))
        return self.frame(blocks)


def comparison(
    reader: Reader, entry: Entry, state: State, mask: Words, wanted: int
) -> BitComparison | None:
    """How to compare the binary rows of a mask, if the kernel finds so many of them faster."""
    binary = entry.spec.metric == "hamming" and isinstance(reader, Snapshot)
    if not binary or not 0 < wanted <= MOST_WANTED:
        return None
    count, loaded = rows.count(mask), compiled.loaded(BitComparison.kernel)
    if count < (
        min(LEAST_LOADED, LEAST_ROWS) if loaded else LEAST_ROWS
    ) or count < LEAST_A_BLOCK * np.count_nonzero(mask):
        return None
    return BitComparison(entry, state, mask, wanted)
