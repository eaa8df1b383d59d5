"""How are near binary vectors found in their buckets? Exactly, and only while that is worth it.

Let there be m bands. Of two vectors that differ in at most m * a + c bits, with c < m, either one
of the first c + 1 bands differs in at most a bits or one of the others in less than a: else they
would differ in (c + 1) * (a + 1) + (m - c - 1) * a bits, which is more (Norouzi, Punjani and Fleet,
Fast exact search in Hamming space with multi-index hashing, 2014). So level a looks up the buckets
whose numbers differ from the query's in a bits, and after it all rows within m * (a + 1) - 1 bits
are known. The search goes on to the next level until the wanted rows are among those, or until
comparing all rows is faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vecstore import index_layout, layout, rows
from vecstore.ann import bits, compiled, index
from vecstore.ann.buckets import Buckets
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.exact import ExactBits
from vecstore.fields import Mask
from vecstore.layout import BLOCK_ROWS, HEADER, State
from vecstore.rows import Rows
from vecstore.store import Reader, Snapshot
from vecstore.vectors import Bits, as_words, count_bits

# Nanoseconds that it takes to compare a row where all are compared, and for each word of it; to
# look up anything, to look into a bucket, and to find a row there and compare it.
NUMPY_COSTS, COMPILED_COSTS = (50.0, 5.0), (1.5, 0.9)
START_COST, BUCKET_COST, FOUND_COST = 250_000.0, 20.0, 220.0
# What of the cost of comparing all is spent where it is hardly enough: nearer rows may turn up.
HOPE = 0.1


@lru_cache
def _flips(width: int) -> NDArray[np.int64]:
    """All numbers of so many bits, int64 (2^width,), those of fewer bits set first."""
    numbers = np.arange(1 << width)
    return numbers[np.argsort(np.bitwise_count(numbers), kind="stable")]


def _flips_of(width: int, bits: int) -> NDArray[np.int64]:
    """The numbers of so many bits of which `bits` are set."""
    first = sum(math.comb(width, fewer) for fewer in range(bits))
    return _flips(width)[first : first + math.comb(width, bits)]


@dataclass(slots=True)
class Found:
    """The nearest rows so far, nearest first; equally near ones in the order of their records.

    Attributes:
        bits: In how many bits they differ from the query, int64 (n,).
        orders: The records' orders, uint64 (n,).
        buckets: How many buckets were looked into.
        scanned: How many rows were found there, as often as they were.
        compared: How many rows were compared, each once.
    """

    bits: NDArray[np.int64]
    orders: NDArray[np.uint64]
    buckets: int = 0
    scanned: int = 0
    compared: int = 0

    def add(self, bits: NDArray[np.int64], orders: NDArray[np.uint64], wanted: int) -> None:
        """Take rows that are not here yet; keep the best."""
        bits, orders = np.concatenate([self.bits, bits]), np.concatenate([self.orders, orders])
        best = np.lexsort((orders, bits))[:wanted]
        self.bits, self.orders = bits[best], orders[best]

    def cut(self, radius: int) -> None:
        """Drop rows that differ in more bits."""
        end = int(np.searchsorted(self.bits, radius, side="right"))
        self.bits, self.orders = self.bits[:end], self.orders[:end]


class Job:
    """A way to look up the rows of one version of the file that a filter allows.

    Args:
        snapshot: Of which version.
        entry: The collection.
        state: Its counters.
        found: Its buckets.
        mask: The rows that may be found.
        wanted: How many of each query.

    Attributes:
        comparison: What compares all rows instead; None if that is numpy.
    """

    def __init__(
        self,
        snapshot: Reader,
        entry: Entry,
        state: State,
        found: Buckets,
        mask: Mask,
        wanted: int,
    ) -> None:
        self.entry, self.state, self.found, self.bands = entry, state, found, found.bands
        self.wanted = wanted
        self.listed = mask.words * found.listed
        rest = mask.words ^ self.listed
        self.tail = Mask(rest, rows.count(rest))
        self.comparison = bits.comparison(snapshot, entry, state, mask.words, wanted)
        few = min(wanted, self.tail.count)
        self.tail_comparison = bits.comparison(snapshot, entry, state, rest, few)
        # What each level costs on average.
        self.levels = [self._cost(level) for level in range(int(self.bands.widths.max()) + 1)]

    def _cost(self, level: int) -> float:
        total, widths = 0.0, self.bands.widths.tolist()
        for width in set(widths):
            each = BUCKET_COST + FOUND_COST * self.found.rows / (1 << width)
            total += widths.count(width) * math.comb(width, level) * each
        return total

    def limit(self) -> float:
        """What comparing all rows of the buckets would cost."""
        known = self.comparison is not None and compiled.loaded(self.comparison.kernel)
        row, word = COMPILED_COSTS if known else NUMPY_COSTS
        return (row + word * self.entry.form.width) * rows.count(self.listed)

    def search(self, snapshot: Snapshot, queries: Bits, radius: int) -> list[Found | None]:
        """Find the rows nearest to each query.

        Args:
            snapshot: Where to read; of the version that the job was made for.
            queries: uint8 (m, dim / 8).
            radius: In how many bits they may differ.

        Returns:
            What was found, exactly; None where comparing all rows is faster.

        Raises:
            CorruptionError: The buckets are not what docs/layout.md says.
        """
        limit = self.limit()
        if limit < START_COST:
            return [None] * len(queries)
        words, tables = as_words(queries), _Tables(snapshot, self.entry, self.found)
        numbers = self.bands.numbers(words).astype(np.int64)
        nearest, answers = self._compare_tail(snapshot, queries), list[Found | None]()
        for query, own, found in zip(words, numbers, nearest, strict=True):
            look = _Look(self, snapshot, tables, query, own, self.wanted, radius, limit, found)
            answers.append(found if look.run() else None)
        return answers

    def _compare_tail(self, snapshot: Snapshot, queries: Bits) -> list[Found]:
        """The nearest rows of the tail."""
        count, comparison = self.tail.count, self.tail_comparison
        if not count:
            return [Found(np.zeros(0, np.int64), np.zeros(0, np.uint64)) for _ in queries]
        if comparison is not None and comparison.ready(len(queries)):
            orders, scores, _ = comparison.compare(snapshot, queries, 1)
            best = [
                (np.array(scores[number]), np.array(orders[number], np.uint64))
                for number in range(len(queries))
            ]
        else:
            exact = ExactBits(snapshot, self.entry, self.state, self.tail, queries, None)
            best = [exact.best(number, self.wanted, None)[:2] for number in range(len(queries))]
        return [Found((-scores).astype(np.int64), found, compared=count) for scores, found in best]


@dataclass(slots=True)
class _Look:
    """One query on its way from level to level."""

    job: Job
    snapshot: Snapshot
    tables: _Tables
    query: NDArray[np.uint64]
    numbers: NDArray[np.int64]
    wanted: int
    radius: int
    limit: float
    found: Found
    spent: float = field(default_factory=lambda: START_COST)
    # Rows that were compared, ascending.
    known: Rows = field(default_factory=lambda: np.zeros(0, np.intp))

    def run(self) -> bool:
        """Look further and further; return whether all was found before it became too much."""
        count, level = self.job.bands.count, 0
        while self.radius >= count * level and not self._done(count * level - 1):
            if not self._worth(level):
                return False
            bands = min(count, self.radius - count * level + 1)
            begins, ends = self.tables.buckets(self.numbers, bands, level)
            total = int((ends - begins).sum())
            self.spent += BUCKET_COST * len(begins) + FOUND_COST * total
            if self.spent > self.limit:
                return False
            self.found.buckets += len(begins)
            self.found.scanned += total
            self._compare(self.tables.rows(begins, ends))
            level += 1
        self.found.cut(self.radius)
        return True

    def _done(self, known: int) -> bool:
        """Whether the wanted rows are among those within so many bits, which are all known."""
        bits = self.found.bits
        return len(bits) >= self.wanted and bool(bits[self.wanted - 1] <= known)

    def _worth(self, level: int) -> bool:
        """Whether to look further, or to compare all rows."""
        levels, near, limit = self.job.levels, self.found.bits, self.limit
        if self.spent + sum(levels[level : level + 1]) <= HOPE * limit:
            return True
        # No farther than where the worst of those found is, if so many are found.
        last = self.radius if len(near) < self.wanted else min(int(near[-1]), self.radius)
        last = max(level, last // self.job.bands.count)
        return self.spent + sum(levels[level : last + 1]) <= limit

    def _compare(self, found: Rows) -> None:
        """Compare rows of buckets with the query: allowed ones, each once."""
        job, words = self.job, self.job.listed
        if len(found) and int(found.max()) >= len(words) * BLOCK_ROWS:
            with index.mendable():
                raise CorruptionError(
                    f"lists: buckets of collection {job.entry.number} name row {found.max()},"
                    " which is not"
                )
        inside = words[found >> 6] >> (found & 63).astype(np.uint64) & np.uint64(1)
        fresh = rows.distinct(found[inside != 0])
        if len(self.known):
            places = np.searchsorted(self.known, fresh)
            fresh = fresh[self.known[np.minimum(places, len(self.known) - 1)] != fresh]
        if not len(fresh):
            return
        self.known = np.sort(np.concatenate([self.known, fresh])) if len(self.known) else fresh
        where = self.snapshot, job.entry.number, job.state, job.entry.form
        bits = count_bits(rows.gather_numbers(*where, fresh) ^ self.query).astype(np.int64)
        self.found.compared += len(fresh)
        bound = self.radius
        if len(self.found.bits) == self.wanted:
            bound = min(bound, int(self.found.bits[-1]))
        elif len(bits) > self.wanted:
            bound = min(bound, int(np.partition(bits, self.wanted - 1)[self.wanted - 1]))
        near = np.flatnonzero(bits <= bound)
        if len(near):
            orders = rows.gather_packed(*where, fresh[near]).orders
            self.found.add(bits[near], orders, self.wanted)


class _Tables:
    """The buckets of all bands, through one window over the map that spans them all."""

    @index.mendable()
    def __init__(self, snapshot: Snapshot, entry: Entry, found: Buckets) -> None:
        self.number, self.found, self.bands = entry.number, found, found.bands
        widths = self.bands.widths

        def check(value: memoryview, band: int) -> None:
            index_layout.check_band(value, entry.number, band, int(widths[band]), found.rows)

        prefix = layout.collection_key(entry.number)
        wanted = np.arange(len(widths))
        table = snapshot.addresses("lists", prefix, wanted, len(widths), check)
        addresses = table[: len(widths)].astype(np.int64)
        first = int(addresses.min())
        length = int((addresses + found.bytes_of()).max()) + HEADER.size - first
        # Bulk values all lie at equal places of their lines of 64 bytes.
        self.whole = rows.window(first, length).view("<u4")
        self.offsets = (addresses - first + HEADER.size) // 4
        self.named = self.offsets + (1 << widths) + 1

    @index.mendable()
    def buckets(
        self, numbers: NDArray[np.int64], bands: int, level: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the rows of buckets begin and end in the window, int64 (n,) each.

        Args:
            numbers: int64 (count,), the query's bits of each band.
            bands: How many bands to look into, the first ones.
            level: In how many bits the buckets' numbers differ from the query's.

        Raises:
            CorruptionError: Buckets do not lie one behind the other.
        """
        places, named = [], []
        widths = self.bands.widths[:bands]
        for width in set(widths.tolist()):
            chosen = np.flatnonzero(widths == width)
            looked = numbers[chosen, None] ^ _flips_of(width, level)
            places.append((looked + self.offsets[chosen, None]).ravel())
            named.append(np.repeat(self.named[chosen], looked.shape[1]))
        at, start = np.concatenate(places), np.concatenate(named)
        begins, ends = self.whole[at].astype(np.int64), self.whole[at + 1].astype(np.int64)
        if (begins > ends).any() or (ends > self.found.rows).any():
            raise CorruptionError(f"lists: buckets of collection {self.number} overlap")
        return start + begins, start + ends

    def rows(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> Rows:
        """The rows of some buckets, a copy."""
        sizes = ends - begins
        filled = sizes > 0
        begins, sizes = begins[filled], sizes[filled]
        shifts = begins - (np.cumsum(sizes) - sizes)
        places = np.repeat(shifts, sizes) + np.arange(int(sizes.sum()))
        return self.whole[places].astype(np.intp)
