"""How does a snapshot answer a query through the index? Tables of addresses, then one call.

The kernel, or its numpy twin while that is not compiled, gets the tables as far as they are filled.
Where it meets an entry that is missing it says so, exactly that one is filled, and it goes on.
"""

from __future__ import annotations

import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vecstore import index_layout, layout, plain, rows
from vecstore.ann import compiled, index
from vecstore.ann.index import Index
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError, VectorError
from vecstore.frames import SHARED, Frame, filled
from vecstore.layout import CODE_BLOCK, CODE_TIER, LIST, State
from vecstore.rows import Words
from vecstore.store import Snapshot
from vecstore.vectors import Vectors

METRICS = {"cosine": plain.COSINE, "dot": plain.DOT, "l2": plain.L2}
# Candidates that wait for their exact scores: so many, and so many for each hit wanted.
ROOM, ROOM_EACH = 1 << 18, 8
MISSING = 1024
# More are not held while rows are compared.
MOST_WANTED = 2000
# With fewer queries a second thread is not worth its start.
QUERIES_A_THREAD = 16


# Its arguments come from a frame, whose arrays have no types of their own.
_plain: Callable[..., int] = plain.search
# The arrays that all calls of a job share.
Shared = tuple[NDArray[Any], ...]


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


class Found(NamedTuple):
    """What a search through the index found, a list for each query.

    Attributes:
        orders: The records' orders, best first.
        scores: Their scores, exact.
        stats: STAGES numbers: lists and rows seen, rows narrowed and compared, time of each stage.
    """

    orders: list[list[int]]
    scores: list[list[float]]
    stats: list[list[int]]


class Call:
    """The arrays of one call: its queries, what it shares with others, and what it finds.

    Args:
        queries: float32 (m, dim).
        k: How many rows are wanted.
    """

    __slots__ = ("_outputs", "frame", "missing", "queries", "shared")

    def __init__(self, queries: Vectors, k: int) -> None:
        count = len(queries)
        self.queries = queries
        self.missing = np.empty(2 + MISSING, np.int64)
        self._outputs = (
            np.empty((count, k), np.uint64),
            np.empty((count, k)),
            np.empty(count, np.int64),
            np.empty((count, plain.STAGES), np.int64),
        )
        # None yet: not even what a job that shares nothing yet has.
        self.shared: Shared = ()
        self.frame: Frame

    def share(self, shared: Shared) -> None:
        """Take over what calls share."""
        self.frame = Frame((self.queries, *shared, *self._outputs, self.missing))
        self.shared = shared

    def found(self) -> Found:
        """What was found, as values of Python."""
        orders, scores, counts, stats = self._outputs
        ranked, scored = orders.tolist(), scores.tolist()
        for number, count in enumerate(counts.tolist()):
            del ranked[number][count:], scored[number][count:]
        return Found(ranked, scored, stats.tolist())


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


@dataclass(frozen=True, slots=True)
class Crowding:
    """How the rows of a mask are spread over lists.

    Attributes:
        weights: float32 (lists,), what share of its rows that is, beside the share of all lists
            that have any; at most 1, and 0 for a list without any.
        rows: How many rows these lists have, and the tail.
        sizes: intp (lists,), how many rows each list has.
        allowed: intp (lists,), how many of them are in the mask.
    """

    weights: Vectors
    rows: int
    sizes: NDArray[np.intp]
    allowed: NDArray[np.intp]


def crowding(snapshot: Snapshot, entry: Entry, seen: View, mask: Words) -> Crowding:
    """How the rows of a mask are spread over lists."""
    lists = seen.index.model.lists
    listed, sizes = _listed(snapshot, entry, seen)
    allowed = np.bincount(listed[rows.members(mask)], minlength=lists + 1)[:lists]
    there = allowed > 0
    held, found = int(sizes[there].sum()), int(allowed.sum())
    shares = allowed / np.maximum(sizes, 1) * (held / max(found, 1))
    tail = layout.BLOCK_ROWS * len(seen.tail)
    return Crowding(np.minimum(shares, 1).astype(np.float32), held + tail, sizes, allowed)


def _listed(
    snapshot: Snapshot, entry: Entry, seen: View
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The list of each row, and how many rows each list has; remembered by the version.

    The number of lists stands for none.
    """
    key = ("listed", entry.number)
    known: tuple[NDArray[np.intp], NDArray[np.intp]] | None = snapshot.cache.get(key)
    if known is None:
        lists = seen.index.model.lists
        column = index.read_lists_of_rows(snapshot, entry.number, seen.index)
        listed = np.minimum(column, lists).astype(np.intp)
        sizes = np.bincount(listed, minlength=lists + 1)[:lists]
        known = snapshot.cache[key] = (listed, sizes)
    return known


class Calls(ABC):
    """Calls of a kernel for one version of the file; their queries share all but themselves.

    Args:
        entry: The collection.
        state: Its counters.
        k: How many rows are wanted.
    """

    kernel: compiled.Name

    def __init__(self, entry: Entry, state: State, k: int) -> None:
        self.entry, self.state, self.k = entry, state, k
        # Threads share the snapshot, which is one transaction.
        self.filling = threading.Lock()
        # All that a call gets and that does not depend on its queries; None before the first one.
        self.shared: Shared | None = None
        # Calls of one query that are over; making their arrays takes longer than using them.
        self.idle: list[Call] = []

    @abstractmethod
    def fill(self, snapshot: Snapshot, kind: int, wanted: NDArray[np.intp]) -> Shared:
        """What calls share, with entries that were missing in a table of this kind."""

    def search(self, snapshot: Snapshot, queries: Vectors, threads: int = 1) -> Found:
        """Find the nearest rows.

        Args:
            snapshot: Where to read; of the version that the job was made for.
            queries: float32 (m, dim), which the metric can compare (`vectors.check_queries`).
            threads: How many threads may share the queries.
        """
        if len(queries) == 1:
            return self._sound(self.search_one(snapshot, queries))
        shares = min(threads, len(queries) // QUERIES_A_THREAD)
        if shares < 2:
            return self._search(snapshot, queries)
        # Imported here, because `import vecstore` need not wait for it.
        from concurrent.futures import ThreadPoolExecutor

        edges = np.linspace(0, len(queries), shares + 1).astype(int).tolist()
        parts = [queries[start:end] for start, end in itertools.pairwise(edges)]
        with ThreadPoolExecutor(shares) as pool:
            found = list(pool.map(lambda part: self._search_held(snapshot, part), parts))
        return Found(*(list(itertools.chain(*columns)) for columns in zip(*found, strict=True)))

    def _search_held(self, snapshot: Snapshot, queries: Vectors) -> Found:
        with snapshot.held():
            return self._search(snapshot, queries)

    def _search(self, snapshot: Snapshot, queries: Vectors) -> Found:
        call = Call(np.ascontiguousarray(queries), self.k)
        return self._sound(call.found() if self._run(snapshot, call) else None)

    def _sound(self, found: Found | None) -> Found:
        """What was found of queries that were checked before."""
        if found is None:
            raise VectorError("a query changed after it was checked, to what cannot be compared")
        return found

    def search_one(self, snapshot: Snapshot, query: Vectors) -> Found | None:
        """As `search`, for an array of one query; None if the metric cannot compare it.

        What is searched for is a copy of it.
        """
        try:
            call = self.idle.pop()
        except IndexError:
            call = Call(np.empty_like(query, order="C"), self.k)
        call.queries[:] = query
        search = compiled.ready(self.kernel)
        # Mostly there is nothing to fill, and all is done in one call.
        if search is None or call.shared is not self.shared:
            sound = self._run(snapshot, call)
        else:
            sound = search(call.frame.address, 0) == 1
            if not sound and call.missing[0] != plain.UNSOUND:
                self._fill(snapshot, call.missing, int(call.missing[0]))
                sound = self._run(snapshot, call)
        found = call.found() if sound else None
        self.idle.append(call)
        return found

    def _run(self, snapshot: Snapshot, call: Call) -> bool:
        """Answer all queries; return whether the metric could compare them."""
        search, first = compiled.ready(self.kernel), 0
        while True:
            shared = self.shared or self._fill(snapshot, call.missing, plain.NOTHING)
            if call.shared is not shared:
                call.share(shared)
            frame = call.frame
            if search is not None:
                first = search(frame.address, first)
            else:
                first = _plain(*frame.arrays, first)
            if first == len(call.queries):
                return True
            if call.missing[0] == plain.UNSOUND:
                return False
            self._fill(snapshot, call.missing, int(call.missing[0]))

    def _fill(self, snapshot: Snapshot, missing: NDArray[np.int64], kind: int) -> Shared:
        """What calls share, with what was missing in one of the tables."""
        none: NDArray[np.intp] = np.zeros(0, np.intp)
        wanted = none if kind == plain.NOTHING else np.unique(missing[2 : 2 + missing[1]])
        with self.filling:
            self.shared = shared = self.fill(snapshot, kind, wanted)
        return shared

    def blocks(self, snapshot: Snapshot, wanted: NDArray[np.intp]) -> NDArray[np.uint64]:
        """The table of blocks, filled for some of them."""
        return rows.table(snapshot, self.entry.number, self.state, self.entry.form, wanted)


class Comparing(Calls):
    """Calls that compare all rows of a mask; numpy's comparison has the same answers.

    Args:
        entry: The collection.
        state: Its counters.
        mask: uint64 (blocks,), the rows that may be found.
        k: How many are wanted.
        row_bytes: How many bytes numpy would compare for each row, in bytes of float32.

    Attributes:
        mask: As given.
        integers: int64 (INTEGERS,), the parameters; DIM and K are set.
        useless: Whether most queries had to be left to numpy.
    """

    def __init__(self, entry: Entry, state: State, mask: Words, k: int, row_bytes: int) -> None:
        super().__init__(entry, state, k)
        self.mask, self.useless = mask, False
        self.integers = np.zeros(plain.INTEGERS, np.int64)
        self.integers[plain.DIM], self.integers[plain.K] = entry.spec.dim, k
        self._size = row_bytes * rows.count(mask)

    def compare(self, snapshot: Snapshot, queries: Any, threads: int) -> Found:
        """As `search`, for queries as the collection's metric has them."""
        return self.search(snapshot, queries, threads)

    def ready(self, queries: int) -> bool:
        """Whether so many queries are to be answered by the kernel."""
        size = self._size * queries
        return not self.useless and compiled.ready_after(self.kernel, size) is not None

    def frame(
        self,
        blocks: NDArray[np.uint64],
        coded: NDArray[np.uint64] | None = None,
        asked: NDArray[np.int64] | None = None,
    ) -> Shared:
        """What calls share: few of the arrays of a frame, the others empty.

        Args:
            blocks: The table of blocks.
            coded: That of what stands for them, in the place of codes.
            asked: The rows to compare, in the place of the tail.
        """
        given = {"integers": self.integers, "blocks": blocks, "mask": self.mask}
        if coded is not None:
            given["codes"] = coded
        if asked is not None:
            given["tail"] = asked
        return tuple(filled(SHARED, given))


class Job(Calls):
    """A way to search one version of the file through its index.

    Args:
        entry: The collection.
        state: Its counters.
        seen: Its index.
        mask: uint64 (blocks,), the rows that may be found.
        k: How many are wanted.
        budget: How far to go.
        crowding: How many of the rows in each list may be found, where not all may.
    """

    kernel: compiled.Name = "search"

    def __init__(
        self,
        entry: Entry,
        state: State,
        seen: View,
        mask: Words,
        k: int,
        budget: Budget,
        crowding: Crowding | None = None,
    ) -> None:
        super().__init__(entry, state, k)
        self.model = model = seen.index.model
        integers = np.zeros(plain.INTEGERS, np.int64)
        integers[plain.DIM] = entry.spec.dim
        integers[plain.DIRECTIONS] = model.directions.rows
        integers[plain.COARSE] = model.coarse
        integers[plain.CODED] = model.coded
        integers[plain.GROUPS] = model.groups
        integers[plain.OFFSETS] = model.distances
        integers[plain.LISTS] = model.lists
        integers[plain.K] = k
        integers[plain.ROOM] = min(state.rows, ROOM) + ROOM_EACH * k
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
        self.weights = np.zeros(0, np.float32) if crowding is None else crowding.weights
        self.excerpts = np.zeros(0, np.uint64)
        self.masks = (seen.tail, mask, mask & seen.tail_words if len(seen.tail) else mask)

    def fill(self, snapshot: Snapshot, kind: int, wanted: NDArray[np.intp]) -> Shared:
        """As `Calls.fill`."""
        none = wanted[:0]
        tables = (
            self.lists(snapshot, wanted if kind == plain.LIST else none),
            self.blocks(snapshot, wanted if kind == plain.BLOCK else none),
            self.codes(snapshot, wanted if kind == plain.CODES else none),
        )
        return (*self.learnt, *tables, *self.masks, self.weights, self.excerpts)

    @index.mendable()
    def lists(self, snapshot: Snapshot, wanted: NDArray[np.intp]) -> NDArray[np.uint64]:
        """The table of lists, filled for some of them."""
        number, model = self.entry.number, self.model

        def check(value: memoryview, which: int) -> None:
            index_layout.check_codes(value, number, LIST, which, model.shape)

        prefix = layout.collection_key(number)
        return snapshot.addresses("lists", prefix, wanted, model.lists, check)

    @index.mendable()
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
