"""How does a snapshot answer a query through the index? Tables of addresses, then one call.

The kernel, or its numpy twin while that is not compiled, gets the tables as far as they are filled.
Where it meets an entry that is missing it says so, exactly that one is filled, and it goes on.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
ROOM, ROOM_EACH = 4096, 8
MISSING = 1024
# With fewer queries a second thread is not worth its start.
QUERIES_A_THREAD = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How far a search goes.

    Attributes:
        gap: What the distance to a list weighs beside its rank.
        reach: Lists are scanned while log(rank) + gap * distance is at most this.
        slack: Candidates are compared exactly if they could be among the best with codes that are
            off by so many times the length of the query times the scale of the row.
        least: Lists to scan at least.
    """

    gap: float
    reach: float
    slack: float
    least: int = 1


@dataclass(frozen=True, slots=True)
class Found:
    """What a search through the index found.

    Attributes:
        orders: uint64 (m, k), the records' orders, best first.
        scores: float64 (m, k), exact.
        counts: int64 (m,), how many each query found.
        stats: int64 (m, STAGES): lists and rows seen, rows compared, time of each stage.
    """

    orders: NDArray[np.uint64]
    scores: NDArray[np.float64]
    counts: NDArray[np.int64]
    stats: NDArray[np.int64]


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


def search(
    snapshot: Snapshot,
    entry: Entry,
    state: State,
    seen: View,
    mask: Words,
    wide: NDArray[np.float64],
    k: int,
    budget: Budget,
    *,
    threads: int = 1,
) -> Found:
    """Find the k nearest of the rows of a mask.

    Args:
        snapshot: Where to read.
        entry: The collection.
        state: Its counters.
        seen: Its index.
        mask: uint64 (blocks,), the rows that may be found.
        wide: float64 (m, dim), the queries; under cosine of unit length.
        k: How many.
        budget: How far to go.
        threads: How many threads may share the queries.
    """
    run = compiled.ready() or plain.search
    job = _Job(snapshot, entry, state, seen, mask, k, budget, run)
    count = len(wide)
    found = Found(
        np.zeros((count, k), np.uint64),
        np.zeros((count, k)),
        np.zeros(count, np.int64),
        np.zeros((count, plain.STAGES), np.int64),
    )
    shares = min(threads, count // QUERIES_A_THREAD)
    if shares < 2:
        job.run(wide, found, slice(0, count))
        return found
    edges = np.linspace(0, count, shares + 1).astype(int).tolist()
    with ThreadPoolExecutor(shares) as pool:
        parts = [slice(*edge) for edge in itertools.pairwise(edges)]
        list(pool.map(lambda part: job.run(wide, found, part), parts))
    return found


class _Job:
    """One search: the arguments that its calls share."""

    def __init__(
        self,
        snapshot: Snapshot,
        entry: Entry,
        state: State,
        seen: View,
        mask: Words,
        k: int,
        budget: Budget,
        run: Callable[..., int],
    ) -> None:
        self.snapshot, self.entry, self.state = snapshot, entry, state
        self.model, self.seen, self.mask, self.k = seen.index.model, seen, mask, k
        self.tail_mask = mask & seen.tail_words if len(seen.tail) else mask
        self.call = run
        # Threads share the snapshot, which is one transaction.
        self.filling = threading.Lock()
        integers = np.zeros(plain.INTEGERS, np.int64)
        integers[plain.DIM] = entry.spec.dim
        integers[plain.GROUPS] = self.model.groups
        integers[plain.OFFSETS] = self.model.offsets
        integers[plain.LISTS] = self.model.lists
        integers[plain.K] = k
        integers[plain.ROOM] = ROOM + ROOM_EACH * k
        integers[plain.METRIC] = METRICS[entry.spec.metric]
        integers[plain.PRECISION] = entry.form.code
        integers[plain.LEAST] = budget.least
        integers[plain.MOST] = self.model.lists
        self.integers = integers
        self.floats = np.array([budget.gap, budget.reach, budget.slack], np.float32)

    def run(self, wide: NDArray[np.float64], found: Found, part: slice) -> None:
        """Answer some of the queries."""
        queries = wide[part].astype(np.float32)
        model, missing = self.model, np.zeros(2 + MISSING, np.int64)
        none: NDArray[np.intp] = np.zeros(0, np.intp)
        with self.filling:
            lists, blocks, codes = self.lists(none), self.blocks(none), self.codes(none)
        first = 0
        while first < len(queries):
            first = self.call(
                queries,
                model.centred(queries),
                wide[part],
                self.integers,
                self.floats,
                model.reduction.values,
                model.reduction.scales,
                model.rotation.values,
                model.rotation.scales,
                model.centroids.values,
                model.centroids.scales,
                model.bias,
                model.patterns,
                lists,
                blocks,
                codes,
                self.seen.tail,
                self.mask,
                self.tail_mask,
                found.orders[part],
                found.scores[part],
                found.counts[part],
                found.stats[part],
                missing,
                first,
            )
            wanted = np.unique(missing[2 : 2 + missing[1]])
            with self.filling:
                if missing[0] == plain.LIST:
                    lists = self.lists(wanted)
                elif missing[0] == plain.CODES:
                    codes = self.codes(wanted)
                elif missing[0] == plain.BLOCK:
                    blocks = self.blocks(wanted)

    def lists(self, wanted: NDArray[np.intp]) -> NDArray[np.uint64]:
        """The table of lists, filled for some of them."""
        number, model = self.entry.number, self.model

        def check(value: memoryview, which: int) -> None:
            index_layout.check_codes(value, number, LIST, which, model.groups, model.offsets)

        prefix = layout.collection_key(number)
        return self.snapshot.addresses("lists", prefix, wanted, model.lists, check)

    def codes(self, wanted: NDArray[np.intp]) -> NDArray[np.uint64]:
        """The table of codes of blocks in the tail, filled for some of them."""
        number, model = self.entry.number, self.model

        def check(value: memoryview, block: int) -> None:
            first = block * layout.BLOCK_ROWS
            count = index_layout.check_codes(
                value, number, CODE_BLOCK, first, model.groups, model.offsets
            )
            held = self.state.open_rows if block == self.state.open_block else layout.BLOCK_ROWS
            if count != held:
                raise CorruptionError(
                    f"tiers: codes of block {block} of collection {number} are of {count} rows"
                )

        prefix = layout.tier_prefix(number, CODE_TIER)
        return self.snapshot.addresses("tiers", prefix, wanted, self.state.blocks, check)

    def blocks(self, wanted: NDArray[np.intp]) -> NDArray[np.uint64]:
        """The table of blocks, filled for some of them."""
        return rows.table(self.snapshot, self.entry.number, self.state, self.entry.form, wanted)
