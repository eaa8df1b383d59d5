"""How is a query answered? The read path: resolve, plan, scan, settle, hydrate.

Exact search in two passes. A float32 scan gives every allowed row a score and a bound of its
error; the rows that could still be among the best are settled in float64. So the answer, and the
order of equal scores, does not depend on how the scan was blocked or on the BLAS at hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore import catalog, fields, planner, records, rows
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.fields import Mask
from vecstore.filters import Filter
from vecstore.hits import Hit, Hits, Plan
from vecstore.layout import BLOCK_ROWS, State
from vecstore.planner import Recall
from vecstore.rows import Run
from vecstore.spec import Include, Metric
from vecstore.store import Reader
from vecstore.vectors import UNIT_SLACK, Vectors, lengths, original

# Scores of one slice of queries take at most this many bytes.
SCORES_BYTES = 64 << 20
SETTLED_AT_ONCE = 4096
# Blocks are joined to matrices of this size for BLAS, so that they fit a cache.
BLAS_BYTES = 2 << 20
# With fewer allowed rows than this share of a run, they are copied out instead of scanned over.
SPARSE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a search was asked for, checked.

    Attributes:
        k: How many hits, at least 1.
        where: Which records may be hits.
        min_score: The least score of a hit, or None.
        offset: How many of the best hits to pass over.
        after: (score, order) of the hit after which to go on, or None.
        include: What hits carry.
        recall: The share of the true neighbours wanted, or "exact".
    """

    k: int
    where: Filter | None
    min_score: float | None
    offset: int
    after: tuple[float, int] | None
    include: frozenset[Include]
    recall: Recall


def run(reader: Reader, entry: Entry, queries: Vectors, request: Request) -> list[Hits]:
    """Answer queries, float32 (m, dim), inside one transaction."""
    state = catalog.state(reader, entry.number)
    mask = fields.resolve(reader, entry.number, state, request.where)
    plan = planner.plan(
        rows=state.records,
        allowed=mask.count,
        filtered=request.where is not None,
        recall=request.recall,
    )
    if plan.method == "none":
        return [Hits([], plan=plan, complete="exhausted") for _ in queries]
    found: list[Hits] = []
    step = max(1, SCORES_BYTES // (8 * BLOCK_ROWS * state.blocks))
    for at in range(0, len(queries), step):
        search = _Exact(reader, entry, state, mask, queries[at : at + step])
        found += [search.answer(i, request, plan) for i in range(len(search.queries))]
    return found


class _Exact:
    """The exact search of a few queries over the allowed rows."""

    def __init__(
        self, reader: Reader, entry: Entry, state: State, mask: Mask, queries: Vectors
    ) -> None:
        self.reader, self.entry, self.state = reader, entry, state
        self.metric: Metric = entry.spec.metric
        self.dim = entry.spec.dim
        self.queries = queries.astype(np.float64)
        sizes = lengths(queries)
        if self.metric == "cosine":
            self.queries /= sizes[:, None]
            sizes = np.ones_like(sizes)
        self.rows = rows.members(mask.words)
        self.scores, self.slack = self._scan(mask, sizes)

    def _scan(
        self, mask: Mask, sizes: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Score the allowed rows in float32.

        Returns:
            Scores (m, allowed) that sort like the metric's, and bounds of their errors, of the
            same shape or one that broadcasts to it.
        """
        scores = np.empty((len(sizes), len(self.rows)))
        norms = np.empty(len(self.rows))
        queries = self.queries.astype(np.float32)
        blocks = np.flatnonzero(mask.words)
        for run in rows.runs(self.reader, self.entry.number, self.state, self.dim, blocks):
            low, high = np.searchsorted(
                self.rows, (run.blocks[0] * BLOCK_ROWS, (run.blocks[-1] + 1) * BLOCK_ROWS)
            )
            _score_run(run, self.rows[low:high], queries, scores[:, low:high])
            if self.metric != "cosine":
                norms[low:high] = _norms(run, self.rows[low:high])
        # An inner product of d float32 terms is off by less than d * 2^-24 |x| |q| (Higham,
        # Accuracy and Stability of Numerical Algorithms, 3.1); twice that, for the conversions.
        unit = (self.dim + 8) * 2.0**-23
        if self.metric == "cosine":
            return scores, np.full((len(sizes), 1), unit + 2 * UNIT_SLACK)
        # A product below float32's normal range may be lost whole.
        slack = unit * sizes[:, None] * norms[None, :] + self.dim * 2.0**-125
        if self.metric == "l2":
            # |x - q|^2 falls as <x, q> - |x|^2 / 2 rises.
            scores -= norms**2 / 2
            # Where one length dwarfs the other, the float64 distances themselves are rounded more
            # than the products: rows that tie there must all be settled.
            rounding = (self.dim + 8) * 2.0**-51
            slack += rounding * norms**2
            slack += rounding * sizes[:, None] ** 2
        return scores, slack

    def answer(self, number: int, request: Request, plan: Plan) -> Hits:
        """The hits of one query."""
        wanted = request.offset + request.k
        best, orders, places = self._best(number, wanted, request.after)
        if request.min_score is not None:
            keep = best >= request.min_score
            best, orders, places = best[keep], orders[keep], places[keep]
        part = slice(request.offset, wanted)
        hits = self._hydrate(best[part], orders[part], self.rows[places[part]], request.include)
        return Hits(hits, plan=plan, complete="exact" if len(hits) == request.k else "exhausted")

    def _best(
        self, number: int, wanted: int, after: tuple[float, int] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.uint64], NDArray[np.intp]]:
        """Exact scores, orders and places in `self.rows` of the best, best first."""
        scores = self.scores[number]
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
        return exact[sequence], orders[sequence], places[sequence]

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
            orders[part], _, stored = rows.gather(
                self.reader, self.entry.number, self.state, self.dim, self.rows[places[part]]
            )
            exact[part] = score(stored, self.queries[number], self.metric)
        return exact, orders

    def _hydrate(
        self,
        scores: NDArray[np.float64],
        orders: NDArray[np.uint64],
        found: NDArray[np.intp],
        include: frozenset[Include],
    ) -> list[Hit]:
        vectors: Iterable[Any] = [None] * len(found)
        if "vector" in include:
            _, norms, stored = rows.gather(
                self.reader, self.entry.number, self.state, self.dim, found
            )
            vectors = original(stored, norms, self.metric)
        hits = []
        for value, order, row, vector in zip(
            scores.tolist(), orders.tolist(), found.tolist(), vectors, strict=True
        ):
            record = records.read(self.reader, self.entry.number, order)
            if record.row != row:
                raise CorruptionError(
                    f"records: row {row} leads to id {record.id!r}, whose row is {record.row}"
                )
            hits.append(
                Hit(
                    id=record.id,
                    score=value,
                    distance=1.0 - value if self.metric == "cosine" else 0.0 - value,
                    text=record.text if "text" in include else None,
                    metadata=record.metadata if "metadata" in include else None,
                    vector=vector,
                    order=order,
                )
            )
        return hits


def _score_run(
    run: Run,
    allowed: NDArray[np.intp],
    queries: Vectors,
    scores: NDArray[np.float64],
) -> None:
    """Write the inner products, (m, n), of queries (m, dim) and the n allowed rows of a run."""
    if len(allowed) == run.orders.size:
        scores[:] = _products(run.vectors, queries)
        return
    which, inside = np.searchsorted(run.blocks, allowed >> 6), allowed & 63
    if len(allowed) < SPARSE * run.orders.size:
        scores[:] = _products(run.vectors[which, inside][None], queries)
    else:
        scores[:] = _products(run.vectors, queries)[:, which * run.orders.shape[1] + inside]


def _norms(run: Run, allowed: NDArray[np.intp]) -> NDArray[np.float64]:
    """The norms of the allowed rows of a run, (n,)."""
    if len(allowed) == run.orders.size:
        return run.norms.reshape(-1)
    norms: NDArray[np.float64] = run.norms[np.searchsorted(run.blocks, allowed >> 6), allowed & 63]
    return norms


def _products(vectors: Vectors, queries: Vectors) -> Vectors:
    """Inner products, float32 (m, b * rows), of queries (m, dim) and vectors (b, rows, dim)."""
    blocks, held, dim = vectors.shape
    if len(queries) == 1:
        # Near the memory's speed, and without BLAS's threads, which stall on a busy machine.
        dots: Vectors = np.vecdot(vectors, queries[0]).reshape(1, -1)
        return dots
    dots = np.empty((len(queries), blocks * held), np.float32)
    step = max(1, BLAS_BYTES // (held * dim * 4))
    for at in range(0, blocks, step):
        part = np.ascontiguousarray(vectors[at : at + step]).reshape(-1, dim)
        np.matmul(queries, part.T, out=dots[:, at * held : at * held + len(part)])
    return dots


def score(vectors: Vectors, query: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """Exact scores, float64 (n,), of stored vectors (n, dim) against one query (dim,).

    Under cosine the query has unit length. Larger is better: the cosine, the inner product, or
    minus the Euclidean distance.
    """
    wide = vectors.astype(np.float64)
    scores: NDArray[np.float64]
    if metric == "l2":
        scores = 0.0 - np.sqrt(((wide - query) ** 2).sum(axis=1))
    else:
        scores = (wide * query).sum(axis=1)
    if metric == "cosine":
        scores = np.clip(scores / np.sqrt((wide**2).sum(axis=1)), -1.0, 1.0)
    return scores
