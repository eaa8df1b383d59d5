"""How is every allowed row compared? The exact search, and the oracle of all others.

Two passes. A float32 scan gives every allowed row a score and a bound of its error; the rows that
could still be among the best are settled in float64. So the answer, and the order of equal scores,
does not depend on how the scan was blocked or on the BLAS at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore import rows
from vecstore.catalog import Entry
from vecstore.fields import Mask
from vecstore.layout import BLOCK_ROWS, Packed, State
from vecstore.rows import Run
from vecstore.spec import Metric
from vecstore.store import Reader
from vecstore.vectors import (
    UNIT_SLACK,
    Bits,
    Vectors,
    as_compared,
    as_words,
    count_bits,
    widen,
)

SETTLED_AT_ONCE = 4096
# So few rows, on average so few of a block, are compared in float64 at once: to look at each block
# takes longer.
FEW, FEW_A_BLOCK = 1024, 2
# Rows are copied together to matrices of this size for BLAS.
BLAS_BYTES = 16 << 20
# What is not compared where it lies is copied in pieces of this size, which stay in the cache.
PIECE_BYTES = 512 << 10
# Squares of numbers below this length are lost in float32.
LOST = 1e-15
# With fewer allowed rows than this share of a run, they are copied out instead of scanned over.
SPARSE = 0.25


class Exact:
    """The exact search of a few queries over the allowed rows."""

    def __init__(
        self,
        reader: Reader,
        entry: Entry,
        state: State,
        mask: Mask,
        queries: Vectors | Bits,
        dims: int | None,
    ) -> None:
        self.reader, self.entry, self.state = reader, entry, state
        self.metric: Metric = entry.spec.metric
        self.prefix = dims is not None
        self.dim = entry.spec.dim if dims is None else dims
        self.blocks = np.flatnonzero(mask.words)
        self.rows = rows.members(mask.words)
        self.queries = self._prepare(queries)
        scattered = len(self.rows) < FEW_A_BLOCK * len(self.blocks)
        if scattered and len(self.rows) * len(queries) <= FEW:
            # Nothing is known of their scores yet: all are settled.
            self.scores = np.zeros((len(queries), len(self.rows)))
            self.slack = np.full((len(queries), 1), np.inf)
        else:
            self.scores, self.slack = self._scan()

    def _prepare(self, queries: Vectors | Bits) -> NDArray[Any]:
        return as_compared(queries, self.metric)

    def _runs(self) -> Iterator[tuple[Run, slice]]:
        """The runs that hold the allowed rows, and which of `self.rows` each holds."""
        form = self.entry.form
        for run in rows.runs(self.reader, self.entry.number, self.state, form, self.blocks):
            ends = (run.blocks[0] * BLOCK_ROWS, (run.blocks[-1] + 1) * BLOCK_ROWS)
            yield run, slice(*np.searchsorted(self.rows, ends).tolist())

    def _scan(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Score the allowed rows in float32.

        Returns:
            Scores (m, allowed) that sort like the metric's, and bounds of their errors, of the
            same shape or one that broadcasts to it.
        """
        norms = np.empty(len(self.rows))
        # Lengths of other forms than float32 are too far from 1 to be left out; those of prefixes
        # are not stored.
        uneven = self.prefix or self.entry.spec.precision != "float32"
        measured = uneven if self.metric == "cosine" else self.prefix and self.metric == "l2"
        products = _Products(self.queries.astype(np.float32), len(self.rows), sizes=measured)
        for run, part in self._runs():
            products.add(run, self.rows[part])
            if self.metric != "cosine":
                norms[part] = _norms(run, self.rows[part])
        scores = products.finish()
        # An inner product of d float32 terms is off by less than d * 2^-24 |x| |q| (Higham,
        # Accuracy and Stability of Numerical Algorithms, 3.1); twice that, for the conversions.
        unit = (self.dim + 8) * 2.0**-23
        if self.metric != "cosine":
            return scores, self._weigh(scores, norms, products.sizes, unit)
        if products.sizes is not None:
            return scores, _divide(scores, products.sizes, unit)
        return scores, np.full((len(scores), 1), unit + 2 * UNIT_SLACK)

    def _weigh(
        self,
        scores: NDArray[np.float64],
        norms: NDArray[np.float64],
        measured: NDArray[np.float64] | None,
        unit: float,
    ) -> NDArray[np.float64]:
        """Make scores of products (m, n) in place, under dot and l2; return the errors' bounds.

        `norms` are those of whole rows; `measured` are those of prefixes, in float32's precision.
        """
        sizes = np.sqrt((self.queries**2).sum(axis=1))
        # A product below float32's normal range may be lost whole.
        slack: NDArray[np.float64] = unit * sizes[:, None] * norms + self.dim * 2.0**-125
        if self.metric == "l2":
            # |x - q|^2 falls as <x, q> - |x|^2 / 2 rises.
            scores -= (norms if measured is None else measured) ** 2 / 2
            if measured is not None:
                slack += unit * measured**2
            # Where one length dwarfs the other, the float64 distances themselves are rounded more
            # than the products: rows that tie there must all be settled.
            rounding = (self.dim + 8) * 2.0**-51
            slack += rounding * norms**2
            slack += rounding * sizes[:, None] ** 2
        return slack

    def best(
        self, number: int, wanted: int, after: tuple[float, int] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.uint64], NDArray[np.intp]]:
        """Exact scores, orders and rows of the best of one query, best first.

        Args:
            number: Which query.
            wanted: How many.
            after: (score, order) of the hit after which to go on, or None.
        """
        scores, asked = self.scores[number], wanted
        slack = np.broadcast_to(self.slack[number], scores.shape)
        places = np.arange(len(scores))
        if after is not None:
            # Rows that are surely before the cursor; those near it are settled below.
            bound, margin = self._scan_score(number, after[0])
            places = np.flatnonzero(scores - slack <= bound + margin)
            wanted += int(np.count_nonzero(scores[places] + slack[places] >= bound - margin))
        if wanted < len(places):
            low = scores[places] - slack[places]
            threshold = np.partition(low, len(low) - wanted)[len(low) - wanted]
            places = places[scores[places] + slack[places] >= threshold]
        exact, orders = self._settle(number, places)
        if after is not None:
            keep = (exact < after[0]) | ((exact == after[0]) & (orders > after[1]))
            exact, orders, places = exact[keep], orders[keep], places[keep]
        sequence = np.lexsort((orders, -exact))
        chosen = sequence[:asked]
        return exact[chosen], orders[chosen], self.rows[places[chosen]]

    def _scan_score(self, number: int, score: float) -> tuple[float, float]:
        """The scan's score of a hit's score, and how far off it may be."""
        if self.metric != "l2":
            return score, 0.0
        size = float(self.queries[number] @ self.queries[number])
        return (size - score * score) / 2, 1e-12 * (size + score * score)

    def _settle(
        self, number: int, places: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
        """Scores in float64, and orders, of some of the allowed rows."""
        exact, orders = np.empty(len(places)), np.empty(len(places), np.uint64)
        for at in range(0, len(places), SETTLED_AT_ONCE):
            part = slice(at, at + SETTLED_AT_ONCE)
            found = rows.gather_packed(
                self.reader, self.entry.number, self.state, self.entry.form, self.rows[places[part]]
            )
            orders[part], exact[part] = found.orders, self._score(found.packed, number)
        return exact, orders

    def _score(self, packed: Packed, number: int) -> NDArray[np.float64]:
        """Exact scores, float64 (n,), of stored vectors against one of the queries."""
        return score(widen(packed)[:, : self.dim], self.queries[number], self.metric)


class ExactBits(Exact):
    """The exact search of a few queries over binary vectors: counts of bits need no settling."""

    def _prepare(self, queries: Vectors | Bits) -> NDArray[Any]:
        """The queries in whole words, uint64 (m, words)."""
        bits = queries.astype(np.uint8, copy=False)
        self.mask = as_words(np.full_like(bits[:1], 255)) if self.prefix else None
        return as_words(bits)

    def _differing(self, numbers: NDArray[Any], number: int) -> NDArray[np.uint16]:
        """How many bits of stored words (n, words) differ from one of the queries, (n,)."""
        query = self.queries[number]
        found = numbers[:, : len(query)] ^ query
        return count_bits(found if self.mask is None else found & self.mask)

    def _scan(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Score the allowed rows, with bounds of zero."""
        scores = np.empty((len(self.queries), len(self.rows)))
        for run, part in self._runs():
            held, words = run.orders.shape[1], self.queries.shape[1]
            step, at = max(1, PIECE_BYTES // (held * words * 8)), part.start
            for first in range(0, len(run.blocks), step):
                piece = _cut(run, slice(first, first + step), self.rows[part], words).numbers
                piece = piece.reshape(-1, words)
                for number in range(len(scores)):
                    scores[number, at : at + len(piece)] = self._differing(piece, number)
                at += len(piece)
        return 0.0 - scores, np.zeros((len(scores), 1))

    def _score(self, packed: Packed, number: int) -> NDArray[np.float64]:
        """Minus the counts of differing bits."""
        return 0.0 - self._differing(packed.numbers, number).astype(np.float64)


class _Products:
    """The inner products, float64 (m, n), of queries (m, dim) and allowed rows, run by run.

    One query is compared with each run where it lies: near the memory's speed, and without BLAS's
    threads. Several are compared by BLAS, with rows copied together to large matrices: on a busy
    machine each call costs the waiting of its threads for one another. What has to be widened, or
    to be measured, is copied in any case.
    """

    def __init__(self, queries: Vectors, count: int, *, sizes: bool) -> None:
        self.sizes = np.empty(count) if sizes else None
        self._queries = queries
        self._scores = np.empty((len(queries), count))
        self._parts: list[Vectors] = []
        self._held = 0
        self._done = 0

    def add(self, run: Run, allowed: NDArray[np.intp]) -> None:
        """Take the allowed rows of the next run."""
        one, numbers = len(self._queries) == 1, run.packed.numbers
        if one and numbers.dtype == np.float32 and self.sizes is None:
            products = _one_query(run, allowed, self._queries[0])
            self._scores[0, self._done : self._done + len(allowed)] = products
            self._done += len(allowed)
            return
        held, width = numbers.shape[1], self._queries.shape[1]
        step = max(1, (PIECE_BYTES if one else BLAS_BYTES) // (held * width * 4))
        for at in range(0, len(run.blocks), step):
            self._take(widen(_cut(run, slice(at, at + step), allowed, width)), at_once=one)

    def finish(self) -> NDArray[np.float64]:
        """The products of all rows that were added."""
        self._multiply()
        return self._scores

    def _take(self, part: Vectors, *, at_once: bool) -> None:
        width = part.shape[-1]
        first, count = self._done + self._held, part.size // width
        if self.sizes is not None:
            self.sizes[first : first + count] = np.sqrt(np.vecdot(part, part)).reshape(-1)
        if at_once:
            products = np.vecdot(part, self._queries[0])
            self._scores[0, first : first + count] = products.reshape(-1)
            self._done += count
            return
        self._parts.append(part.reshape(-1, width))
        self._held += count
        if self._held * width * 4 >= BLAS_BYTES:
            self._multiply()

    def _multiply(self) -> None:
        if self._held:
            together = np.concatenate(self._parts)
            products = self._queries @ together.T
            self._scores[:, self._done : self._done + self._held] = products
            self._done += self._held
        self._parts, self._held = [], 0


def _divide(
    scores: NDArray[np.float64], sizes: NDArray[np.float64], unit: float
) -> NDArray[np.float64]:
    """Divide products (m, n) by the lengths of rows (n,) in place; return the errors' bounds."""
    sound = sizes > LOST
    scores /= np.where(sound, sizes, np.inf)
    # The length is off by half as much as the product, relative to it.
    bounds = np.where(sound, 2 * unit, 1.0 + 2 * unit)
    return np.broadcast_to(bounds, scores.shape)


def _cut(run: Run, part: slice, allowed: NDArray[np.intp], width: int) -> Packed:
    """Leading numbers of the allowed rows of some blocks: (n,), or (b, rows) if all are allowed."""
    blocks, packed = run.blocks[part], run.packed.take(part)
    packed = replace(packed, numbers=packed.numbers[..., :width])
    low, high = np.searchsorted(allowed, (blocks[0] * BLOCK_ROWS, (blocks[-1] + 1) * BLOCK_ROWS))
    if high - low == packed.norms.size:
        return packed
    chosen = allowed[low:high]
    return packed.take((np.searchsorted(blocks, chosen >> 6), chosen & 63))


def _one_query(run: Run, allowed: NDArray[np.intp], query: Vectors) -> Vectors:
    """Inner products, float32 (n,), of one query (dim,) and the n allowed rows of a run."""
    products: Vectors
    vectors = run.vectors[..., : len(query)]
    if len(allowed) == run.orders.size:
        products = np.vecdot(vectors, query).reshape(-1)
        return products
    which, inside = np.searchsorted(run.blocks, allowed >> 6), allowed & 63
    if len(allowed) < SPARSE * run.orders.size:
        products = np.vecdot(vectors[which, inside], query)
    else:
        products = np.vecdot(vectors, query)[which, inside]
    return products


def _norms(run: Run, allowed: NDArray[np.intp]) -> NDArray[np.float64]:
    """The norms of the allowed rows of a run, (n,)."""
    if len(allowed) == run.orders.size:
        return run.norms.reshape(-1)
    norms: NDArray[np.float64] = run.norms[np.searchsorted(run.blocks, allowed >> 6), allowed & 63]
    return norms


def score(vectors: Vectors, query: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """Exact scores, float64 (n,), of stored vectors (n, dim) against one query (dim,).

    Under cosine the query has unit length. Larger is better: the cosine, the inner product, or
    minus the Euclidean distance. A vector of zeros has a cosine of 0 with every other.
    """
    wide = vectors.astype(np.float64)
    scores: NDArray[np.float64]
    if metric == "l2":
        scores = 0.0 - np.sqrt(((wide - query) ** 2).sum(axis=1))
    else:
        scores = (wide * query).sum(axis=1)
    if metric == "cosine":
        sizes = np.sqrt((wide**2).sum(axis=1))
        scores = np.clip(scores / np.where(sizes > 0, sizes, 1.0), -1.0, 1.0)
    return scores
