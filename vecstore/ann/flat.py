"""How does a snapshot compare all rows at the machine's speed? By their bytes, then by vectors.

The answers are those of `exact.Exact`, to the bit. It answers where a comparison cannot: while the
kernel is not compiled, and where bytes do not tell the rows apart.
"""

from __future__ import annotations

import contextlib

import numpy as np
from numpy.typing import NDArray

from vecstore import index_layout, layout, plain, rows
from vecstore.ann import compiled, index
from vecstore.ann.engine import METRICS, MOST_WANTED, Comparing, Shared
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.layout import BLOCK_ROWS, BYTE_TIER, State
from vecstore.rows import Words
from vecstore.store import Reader, Snapshot

# Less is compared by numpy before numba is imported.
LEAST_BYTES = 8 << 20
# With fewer rows of each block on average, they are faster picked out.
LEAST_A_BLOCK = 4
# Candidates that wait for their exact scores: so many, and so many for each hit wanted.
ROOM, ROOM_EACH = 1 << 13, 8


class Comparison(Comparing):
    """A way to compare all rows of one version of the file.

    Args:
        entry: The collection; its index keeps bytes.
        state: Its counters.
        mask: uint64 (blocks,), the rows that may be found.
        k: How many are wanted.
    """

    kernel: compiled.Name = "compare"

    def __init__(self, entry: Entry, state: State, mask: Words, k: int) -> None:
        super().__init__(entry, state, mask, k, 4 * entry.spec.dim)
        self.integers[plain.ROOM] = min(state.rows, ROOM) + ROOM_EACH * k
        self.integers[plain.METRIC] = METRICS[entry.spec.metric]
        self.integers[plain.PRECISION] = entry.form.code

    def fill(self, snapshot: Snapshot, kind: int, wanted: NDArray[np.intp]) -> Shared:
        """As `Calls.fill`; the bytes of all blocks are needed."""
        blocks = self.blocks(snapshot, wanted if kind == plain.BLOCK else wanted[:0])
        return self.frame(blocks, self._bytes(snapshot))

    @index.mendable()
    def _bytes(self, snapshot: Snapshot) -> NDArray[np.uint64]:
        """The table of the bytes of all blocks with rows that may be found."""
        number, state, dim = self.entry.number, self.state, self.entry.spec.dim

        def check(value: memoryview, block: int) -> None:
            held = index_layout.check_bytes(value, number, block, dim)
            if held != (state.open_rows if block == state.open_block else BLOCK_ROWS):
                raise CorruptionError(
                    f"tiers: bytes of block {block} of collection {number} are of {held} rows"
                )

        prefix = layout.tier_prefix(number, BYTE_TIER)
        return snapshot.addresses("tiers", prefix, np.flatnonzero(self.mask), state.blocks, check)


def comparison(
    reader: Reader, entry: Entry, state: State, mask: Words, wanted: int
) -> Comparison | None:
    """How to compare the rows of a mask, if bytes are there and find so many of them faster."""
    small = 4 * entry.spec.dim * state.rows < LEAST_BYTES
    if not isinstance(reader, Snapshot) or small or not 0 < wanted <= MOST_WANTED:
        return None
    if rows.count(mask) < LEAST_A_BLOCK * np.count_nonzero(mask):
        return None
    # Vectors are all that an exact answer needs, whatever has become of the plan.
    with contextlib.suppress(CorruptionError):
        if index.keeps_bytes(reader, entry):
            return Comparison(entry, state, mask, wanted)
    return None
