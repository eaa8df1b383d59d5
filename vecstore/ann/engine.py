"""How does a snapshot answer a query through the index? Tables of addresses, then one call.

The kernel, or its numpy twin while that is not compiled, gets the tables as far as they are filled.
Where it meets an entry that is missing it says so, exactly that one is filled, and it goes on.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore import index_layout, layout, plain, rows
from vecstore.ann import compiled, index
from vecstore.ann.index import Index
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.layout import CODE_BLOCK, CODE_TIER, LIST, State
from vecstore.rows import Words
from vecstore.store import Snapshot

METRICS = {"cosine": plain.COSINE, "dot": plain.DOT, "l2": plain.L2}
# Candidates that wait for their exact scores: so many, and so many for each hit wanted.
ROOM, ROOM_EACH = 1 << 18, 8
MISSING = 1024
# With fewer queries a second thread is not worth its start.
QUERIES_A_THREAD = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How far a search goes.

    Attributes:
        gap: What the distance to a list weighs beside its rank.
        reach: Lists are scanned while log(rank) + gap * distance is at most this.
        slack: Rows are narrowed by their fine codes if they could be among the best with codes that
            are off by so many times the length of the query times the scale of the row.
        fine: As `slack`, of fine codes.
        least: Lists to scan at least.
    """

    gap: float
    reach: float
    slack: float
    fine: float
    least: int = 1


@dataclass(slots=True)
class Found:
    """What a search through the index found.

    Attributes:
        orders: uint64 (m, k), the records' orders, best first.
        scores: float64 (m, k), exact.
        counts: int64 (m,), how many each query found.
        stats: int64 (m, STAGES): lists and rows seen, rows narrowed and compared, time of each
            stage.
    """

    orders: NDArray[np.uint64]
    scores: NDArray[np.float64]
    counts: NDArray[np.int64]
    stats: NDArray[np.int64]

    def part(self, part: slice) -> Found:
        """What belongs to some of the queries."""
        return Found(self.orders[part], self.scores[part], self.counts[part], self.stats[part])


@dataclass(frozen=True, slots=True)
class View:
    """What the index of one version of the file looks like to a search.

    Attributes:
        index: The index.
        tail: int64 (t,), the blocks in no list.
        tail_words: uint64 (blocks,), all ones for these blocks.
    """

    index: Index
    tail: NDArray[np.int64]
    tail_words: Words


def view(snapshot: Snapshot, entry: Entry, state: State, found: Index) -> View:
    """The view of a snapshot; remembered by its version."""
    key = ("view", entry.number)
    known: View | None = snapshot.cache.get(key)
    if known is None:
        tail = index.tail(found, rows.live(snapshot, entry.number, state)).astype(np.int64)
        words = np.zeros(state.blocks, np.uint64)
        words[tail] = 2**64 - 1
        known = snapshot.cache[key] = View(found, tail, words)
    return known


class Job:
    """A way to search one version of the file; its queries share all but themselves.

    Args:
        entry: The collection.
        state: Its counters.
        seen: Its index.
        mask: uint64 (blocks,), the rows that may be found.
        k: How many are wanted.
        budget: How far to go.
    """

    def __init__(
        self, entry: Entry, state: State, seen: View, mask: Words, k: int, budget: Budget
    ) -> None:
        self.entry, self.state, self.k = entry, state, k
        self.model = model = seen.index.model
        # Threads share the snapshot, which is one transaction.
        self.filling = threading.Lock()
        integers = np.zeros(plain.INTEGERS, np.int64)
        integers[plain.DIM] = entry.spec.dim
        integers[plain.DIRECTIONS] = model.directions.rows
        integers[plain.COARSE] = model.coarse
        integers[plain.CODED] = model.coded
        integers[plain.GROUPS] = model.groups
        integers[plain.OFFSETS] = model.offsets
        integers[plain.LISTS] = model.lists
        integers[plain.K] = k
        integers[plain.ROOM] = min(state.records, ROOM) + ROOM_EACH * k
        integers[plain.METRIC] = METRICS[entry.spec.metric]
        integers[plain.PRECISION] = entry.form.code
        integers[plain.LEAST] = budget.least
        self.learnt = (
            integers,
            np.array([budget.gap, budget.reach, budget.slack, budget.fine], np.float32),
            model.mean,
            model.directions.values,
            model.directions.scales,
            model.signs,
            model.centroids.values,
            model.centroids.scales,
            model.bias,
            model.patterns,
        )
        self.masks = (seen.tail, mask, mask & seen.tail_words if len(seen.tail) else mask)
        # All that a call gets and that does not depend on its queries; None before the first one.
        self.shared: tuple[Any, ...] | None = None

    def search(self, snapshot: Snapshot, wide: NDArray[np.float64], *, threads: int = 1) -> Found:
        """Find the nearest rows.

        Args:
            snapshot: Where to read; of the version that the job was made for.
            wide: float64 (m, dim), the queries; under cosine of unit length.
            threads: How many threads may share the queries.
        """
        call = compiled.ready() or plain.search
        count = len(wide)
        found = Found(
            np.empty((count, self.k), np.uint64),
            np.empty((count, self.k)),
            np.zeros(count, np.int64),
            np.zeros((count, plain.STAGES), np.int64),
        )
        shares = min(threads, count // QUERIES_A_THREAD)
        if shares < 2:
            self._run(snapshot, call, wide, found)
            return found
        # Imported here, because `import vecstore` need not wait for it.
        from concurrent.futures import ThreadPoolExecutor

        edges = np.linspace(0, count, shares + 1).astype(int).tolist()
        parts = [slice(*edge) for edge in itertools.pairwise(edges)]
        with ThreadPoolExecutor(shares) as pool:
            list(pool.map(lambda p: self._run(snapshot, call, wide[p], found.part(p)), parts))
        return found

    def _run(
        self, snapshot: Snapshot, call: Callable[..., int], wide: NDArray[np.float64], found: Found
    ) -> None:
        missing = np.empty(2 + MISSING, np.int64)
        first = 0
        while True:
            shared = self.shared or self._fill(snapshot, missing, plain.NOTHING)
            first = call(
                wide,
                *shared,
                found.orders,
                found.scores,
                found.counts,
                found.stats,
                missing,
                first,
            )
            if first == len(wide):
                return
            self._fill(snapshot, missing, int(missing[0]))

    def _fill(self, snapshot: Snapshot, missing: NDArray[np.int64], kind: int) -> tuple[Any, ...]:
        """What calls share, with what was missing in one of the tables."""
        none: NDArray[np.intp] = np.zeros(0, np.intp)
        wanted = none if kind == plain.NOTHING else np.unique(missing[2 : 2 + missing[1]])
        with self.filling:
            tables = (
                self.lists(snapshot, wanted if kind == plain.LIST else none),
                self.blocks(snapshot, wanted if kind == plain.BLOCK else none),
                self.codes(snapshot, wanted if kind == plain.CODES else none),
            )
            self.shared = shared = (*self.learnt, *tables, *self.masks)
        return shared

    def lists(self, snapshot: Snapshot, wanted: NDArray[np.intp]) -> NDArray[np.uint64]:
        """The table of lists, filled for some of them."""
        number, model = self.entry.number, self.model

        def check(value: memoryview, which: int) -> None:
            index_layout.check_codes(value, number, LIST, which, model.shape)

        prefix = layout.collection_key(number)
        return snapshot.addresses("lists", prefix, wanted, model.lists, check)

    def codes(self, snapshot: Snapshot, wanted: NDArray[np.intp]) -> NDArray[np.uint64]:
        """The table of codes of blocks in the tail, filled for some of them."""
        number, model = self.entry.number, self.model

        def check(value: memoryview, block: int) -> None:
            first = block * layout.BLOCK_ROWS
            count = index_layout.check_codes(value, number, CODE_BLOCK, first, model.shape)
            held = self.state.open_rows if block == self.state.open_block else layout.BLOCK_ROWS
            if count != held:
                raise CorruptionError(
                    f"tiers: codes of block {block} of collection {number} are of {count} rows"
                )

        prefix = layout.tier_prefix(number, CODE_TIER)
        return snapshot.addresses("tiers", prefix, wanted, self.state.blocks, check)

    def blocks(self, snapshot: Snapshot, wanted: NDArray[np.intp]) -> NDArray[np.uint64]:
        """The table of blocks, filled for some of them."""
        return rows.table(snapshot, self.entry.number, self.state, self.entry.form, wanted)
