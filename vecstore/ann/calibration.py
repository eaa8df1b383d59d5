"""How far must a search go for the recall that was asked for? Measured on queries, not guessed.

For queries whose exact answers are known, every true neighbour says what it takes to be found: how
far its list stands from the query (rank and distance), and how much its code may be off. The shares
of neighbours found with less are the curves from which a budget is read: the smallest one whose
one-sided 95 % lower bound of the mean recall reaches the target.

Half of the queries are rows that no list was trained on. The others are mixtures of two rows, which
stand for queries that are unlike the rows: farther from all of them, and between lists. The harder
half decides. Where enough real queries are known, they are one half, and rows and mixtures together
are the other one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore.ann.codes import Codes
from vecstore.ann.model import Model
from vecstore.vectors import Vectors, lengths

Floats = NDArray[np.float64]

LEVELS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
SIZES = (1, 10, 100)
# Neighbours kept of each query, so many more than wanted: codes bring others to the front.
KEPT = 400
MIXTURE = 0.6
# Of the neighbours that may be missed, the share that may be missed for want of lists.
LISTS_SHARE = 0.8
Z_95 = 1.645
GAPS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
GRID = 96
SLACKS = np.concatenate([np.arange(0.0, 2.0, 0.05), np.arange(2.0, 6.25, 0.25)])
# Fewer real queries say too little.
LEAST_REAL = 32


def queries(vectors: Vectors, others: Vectors, metric: str) -> Vectors:
    """Queries to calibrate with: rows, float32 (n, dim), and as many mixtures with other rows."""
    mixed = MIXTURE * vectors + (1 - MIXTURE) * others
    if metric == "cosine":
        sizes = np.sqrt(np.vecdot(mixed, mixed))[:, None]
        mixed = mixed / np.where(sizes > 0, sizes, 1.0)
    return np.concatenate([vectors, mixed]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Asked:
    """The queries of a calibration.

    Attributes:
        queries: float32 (m, dim).
        own: int64 (m,), the row that each is, or -1.
        first: How many of them are the first of the two halves, of which the harder one decides.
    """

    queries: Vectors
    own: NDArray[np.int64]
    first: int

    @classmethod
    def of(
        cls,
        vectors: Vectors,
        others: Vectors,
        own: NDArray[np.int64],
        metric: str,
        real: Vectors | None,
    ) -> Asked:
        """Rows, mixtures with other rows, and real queries, if there are enough of them."""
        if real is None or len(real) < LEAST_REAL:
            return cls(queries(vectors, others, metric), np.tile(own, 2), len(vectors))
        # Rows and mixtures are one half now: as many as before would cost more, and not tell more.
        count = -(-len(vectors) // 2)
        made = queries(vectors[:count], others[:count], metric)
        if metric == "cosine":
            real = (real / lengths(real)[:, None]).astype(np.float32)
        none = np.full(len(real), -1, np.int64)
        known = np.concatenate([np.tile(own[:count], 2), none])
        return cls(np.concatenate([made, real]), known, len(made))


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of the collection: what is in them, and how they are coded.

    Attributes:
        vectors: float32 (n, dim).
        lists: The list of each, (n,); the number of lists stands for none.
        codes: Their codes.
    """

    vectors: Vectors
    lists: NDArray[np.intp]
    codes: Codes


class _Truth:
    """The nearest rows of each query, as far as rows were seen."""

    def __init__(self, model: Model, asked: Vectors, own: NDArray[np.int64]) -> None:
        self.model, self.own = model, own
        self.asked = model.centred(asked)
        self.bases = (self.asked @ model.reducing.T) @ model.centres.T + model.bias
        self.rotated = self.asked @ model.rotating.T
        self.sizes = np.sqrt(np.vecdot(self.rotated, self.rotated))
        self.near = _Rows.none(len(asked), KEPT)
        # Rows that the codes put before the neighbours; they stand in a search's way.
        self.front = _Rows.none(len(asked), SIZES[-1])
        # Of both together, once all rows were seen: what the codes say, and how unsure they are.
        self.likely = self.noises = self.near.likely
        self.bounds: dict[float, Vectors] = {}

    def add(self, part: Part) -> None:
        """Compare the queries with more rows."""
        model = self.model
        vectors = model.centred(part.vectors)
        scores: Vectors = self.asked @ vectors.T
        if model.metric == "l2":
            scores -= (0.5 * np.vecdot(vectors, vectors)).astype(np.float32)
        likely = self._estimate(part)
        # A row that is a query is not its own neighbour.
        own = self.own[:, None] == part.codes.rows[None, :]
        scores[own] = likely[own] = -np.inf
        self.near = self.near.joined(_picked(scores, scores, likely, part, KEPT))
        self.front = self.front.joined(_picked(likely, scores, likely, part, SIZES[-1]))

    def _estimate(self, part: Part) -> Vectors:
        """What the codes say of the scores, float32 (queries, rows)."""
        model = self.model
        shape = (len(part.codes.rows), -1)
        patterns = np.ascontiguousarray(model.patterns.T)
        stands_for = patterns.take(part.codes.groups, axis=0).reshape(shape)
        products = self.rotated @ stands_for[:, : model.rotation.rows].T
        estimates = products * part.codes.scales + part.codes.offsets
        estimates += self.bases[:, part.lists]
        found: Vectors = estimates.astype(np.float32, copy=False)
        return found

    def finish(self) -> None:
        """Sort the neighbours, nearest first."""
        near, front = self.near.take(np.argsort(-self.near.keys, axis=1, kind="stable")), self.front
        # A row is to be counted once.
        twice = np.array([np.isin(*rows) for rows in zip(front.rows, near.rows, strict=True)])
        beside = np.where(twice, -np.inf, front.likely)
        self.near, self.likely = near, np.concatenate([near.likely, beside], axis=1)
        self.noises = np.concatenate([near.scales, front.scales], axis=1) * self.sizes[:, None]

    def slack(self, k: int) -> Floats:
        """What each of the k nearest needs to be compared exactly, (queries, k)."""
        needed = np.full((len(self.likely), k), np.inf)
        for slack in SLACKS[::-1].tolist():
            hope = self.likely[:, :k] + slack * self.noises[:, :k]
            # Candidates are held against the k-th exact score too, as soon as there is one.
            bound = np.maximum(self.bound(slack, k), self.near.scores[:, k - 1 : k])
            needed[hope >= bound] = slack
        return needed

    def bound(self, slack: float, k: int) -> Vectors:
        """What a candidate has to reach: what k others score at least, (queries, 1)."""
        bounds = self.bounds.get(slack)
        if bounds is None:
            most = np.partition(slack * self.noises - self.likely, SIZES[-1] - 1, axis=1)
            bounds = self.bounds[slack] = -np.sort(most[:, : SIZES[-1]], axis=1)
        return bounds[:, k - 1 : k]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows for each query, arrays (queries, rows).

    Attributes:
        keys: float32, what the largest of were picked.
        scores: float32, exact.
        likely: float32, what the codes say of the scores.
        scales: float32, of the codes.
        lists: intp.
        rows: int64, or -1.
    """

    keys: Vectors
    scores: Vectors
    likely: Vectors
    scales: Vectors
    lists: NDArray[np.intp]
    rows: NDArray[np.int64]

    @classmethod
    def none(cls, queries: int, count: int) -> _Rows:
        """So many that are worse than any."""
        shape = (queries, count)
        worst = np.full(shape, -np.inf, np.float32)
        numbers = np.full(shape, -1, np.int64)
        return cls(worst, worst, worst, np.ones_like(worst), np.zeros_like(numbers), numbers)

    def columns(self) -> list[NDArray[Any]]:
        """The arrays."""
        return [getattr(self, field.name) for field in fields(self)]

    def take(self, places: NDArray[np.intp]) -> _Rows:
        """Rows at places, (queries, count)."""
        return _Rows(*(np.take_along_axis(column, places, 1) for column in self.columns()))

    def joined(self, others: _Rows) -> _Rows:
        """As many as before, the best of both."""
        pairs = zip(self.columns(), others.columns(), strict=True)
        both = _Rows(*(np.concatenate(pair, axis=1) for pair in pairs))
        return both.take(_largest(both.keys, self.keys.shape[1]))


def _largest(values: Vectors, count: int) -> NDArray[np.intp]:
    """Places of the largest numbers of each row."""
    count = min(count, values.shape[1])
    return np.argpartition(-values, count - 1, axis=1)[:, :count]


def _picked(keys: Vectors, scores: Vectors, likely: Vectors, part: Part, count: int) -> _Rows:
    """The rows of a part with the largest keys."""
    best, pick = _largest(keys, count), np.take_along_axis
    return _Rows(
        pick(keys, best, 1),
        pick(scores, best, 1),
        pick(likely, best, 1),
        part.codes.scales[best],
        part.lists[best],
        part.codes.rows[best].astype(np.int64),
    )


def compared(model: Model, asked: Vectors, own: NDArray[np.int64], part: Part) -> float:
    """How many vectors of a part a query has to compare to find nearly all of its neighbours."""
    truth = _Truth(model, asked, own)
    truth.add(part)
    truth.finish()
    k = min(10, max(1, int(np.isfinite(truth.near.scores).sum(axis=1).min())))
    slack = float(np.quantile(np.minimum(truth.slack(k), SLACKS[-1]), 0.99))
    hope = truth.likely + slack * truth.noises
    return float((hope >= truth.bound(slack, k)).sum(axis=1).mean())


def calibrate(
    model: Model, asked: Asked, parts: Iterable[Part], sizes: NDArray[np.intp]
) -> dict[str, Any]:
    """Measure the budgets for all levels of recall.

    Args:
        model: The model that rows are coded with.
        asked: The queries.
        parts: All rows of the collection.
        sizes: Rows of each list, (lists,).

    Returns:
        Plain values for `budget`: "gap", and for each size of answer the levels of recall with the
        least reach and slack.
    """
    truth = _Truth(model, asked.queries, asked.own)
    for part in parts:
        truth.add(part)
    truth.finish()
    there = int(np.isfinite(truth.near.scores).sum(axis=1).min())
    ranks, far = _order(model, truth)
    gap = _choose_gap(truth, ranks, far, sizes, min(10, there))
    budgets: dict[str, Any] = {"gap": gap, "levels": list(LEVELS), "sizes": {}}
    for k in SIZES:
        if k > there:
            break
        near = truth.near.lists[:, :k]
        rank = np.take_along_axis(ranks, near, 1)
        needed = np.log1p(rank) + gap * np.take_along_axis(far, near, 1)
        budgets["sizes"][str(k)] = _levels(needed, truth.slack(k), asked.first)
    return budgets


def unmeasured() -> dict[str, Any]:
    """Budgets for codes in row order, of a collection with too few rows to measure any.

    Codes are hardly ever off by so much, and all of them are scanned.
    """
    curve = [[0.0, float(SLACKS[-1]), level] for level in LEVELS]
    return {"gap": 0.0, "levels": list(LEVELS), "sizes": {"1": curve}, "measured": False}


def _order(model: Model, truth: _Truth) -> tuple[NDArray[np.intp], Floats]:
    """Rank of each list for each query, and how much farther than the nearest it is.

    Both are zero for the rows in no list, which every search scans: the last column.
    """
    bases = truth.bases[:, : model.lists].astype(np.float64)
    none = np.zeros((len(bases), 1))
    if model.lists == 0:
        return none.astype(np.intp), none
    order = np.argsort(-bases, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(model.lists)[None], 1)
    top = bases.max(axis=1, keepdims=True)
    far = np.where(np.isfinite(bases), top - bases, 1e30)
    whole = np.vecdot(truth.asked, truth.asked)[:, None].astype(np.float64)
    if model.metric == "dot":
        far /= np.sqrt(np.maximum(whole, 1e-30))
    elif model.metric == "l2":
        far /= np.sqrt(np.maximum(whole - 2 * top, 1e-30))
    return np.append(ranks, none.astype(np.intp), axis=1), np.append(far, none, axis=1)


def _choose_gap(
    truth: _Truth, ranks: NDArray[np.intp], far: Floats, sizes: NDArray[np.intp], k: int
) -> float:
    """The weight of distance beside rank with which fewest rows are scanned at a recall of 0.95."""
    lists = far.shape[1] - 1
    if lists < 2 or k < 1:
        return 0.0
    near = truth.near.lists[:, :k]
    spread = float(np.median(np.sort(far[:, :lists], axis=1)[:, min(32, lists - 1)]))
    best = (np.inf, 0.0)
    for weight in GAPS:
        gap = weight / spread if spread > 0 else 0.0
        needed = np.log1p(ranks) + gap * far
        reach = np.quantile(np.take_along_axis(needed, near, 1), 0.95)
        scanned = float(((needed[:, :lists] <= reach) * sizes[:lists]).sum(axis=1).mean())
        best = min(best, (scanned, gap))
    return best[1]


def _levels(needed: Floats, slack: Floats, first: int) -> list[list[float]]:
    """For each level of recall reach, slack and expected recall."""
    grid = np.unique(np.quantile(needed, np.linspace(0.0, 1.0, GRID)))
    reaches, slacks = _bounds(needed, grid, first), _bounds(slack, SLACKS, first)
    found = []
    for level in LEVELS:
        reach = _least(grid, reaches, 1 - LISTS_SHARE * (1 - level))
        most = _least(SLACKS, slacks, 1 - (1 - LISTS_SHARE) * (1 - level))
        both = ((needed <= reach) & (slack <= most)).mean(axis=1)
        expected = min(float(half.mean()) for half in (both[:first], both[first:]))
        found.append([reach, most, expected])
    return found


def _bounds(needed: Floats, grid: Floats, first: int) -> Floats:
    """Lower bounds of the mean recall at each value of a grid, of the harder half of queries."""
    bounds = []
    for half in (needed[:first], needed[first:]):
        # How many neighbours of each query need at most each value.
        place = np.searchsorted(grid, half, side="left")
        queries = np.arange(len(half))[:, None] * (len(grid) + 1)
        counts = np.bincount((queries + place).ravel(), minlength=len(half) * (len(grid) + 1))
        table = counts.reshape(len(half), -1)[:, :-1].cumsum(axis=1) / half.shape[1]
        bounds.append(table.mean(axis=0) - Z_95 * table.std(axis=0) / max(1, len(half)) ** 0.5)
    lowest: Floats = np.minimum(*bounds)
    return lowest


def _least(grid: Floats, bounds: Floats, level: float) -> float:
    """The least value whose bound reaches a level of recall; the largest if none does."""
    enough = np.flatnonzero(bounds >= level)
    return float(grid[enough[0]] if len(enough) else grid[-1])


@dataclass(frozen=True, slots=True)
class Reading:
    """What the curves say: see `engine.Budget`; and the recall expected."""

    gap: float
    reach: float
    slack: float
    recall: float


def read(budgets: dict[str, Any], recall: float, k: int) -> Reading:
    """Read the budget for a recall and a size of answer off the curves.

    Between the levels, and between the sizes that were measured, it is interpolated; beyond the
    largest size the reach grows on as it did before.
    """
    levels = np.array(budgets["levels"])
    sizes = sorted((int(size), np.array(curve)) for size, curve in budgets["sizes"].items())
    at = [
        (np.log(size), [float(np.interp(recall, levels, curve[:, i])) for i in range(3)])
        for size, curve in sizes
    ]
    place = np.log(max(k, 1))
    if len(at) > 1 and place > at[-1][0]:
        (low, first), (high, second) = at[-2:]
        grown = (place - high) / (high - low)
        reach = second[0] + grown * max(0.0, second[0] - first[0])
        return Reading(budgets["gap"], reach, max(second[1], first[1]), second[2])
    logs = np.array([log for log, _ in at])
    reach, slack, expected = (
        float(np.interp(place, logs, [values[i] for _, values in at])) for i in range(3)
    )
    return Reading(budgets["gap"], reach, slack, expected)
