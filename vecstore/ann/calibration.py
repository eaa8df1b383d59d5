"""How far must a search go for the recall that was asked for? Measured on queries, not guessed.

For queries whose exact answers are known, every true neighbour says what it takes to be found: how
far its list stands from the query (rank and distance), and how much its code may be off. The shares
of neighbours found with less are the curves from which a budget is read: the smallest one whose
one-sided 95 % lower bound of the mean recall reaches the target.

Half of the queries are rows that no list was trained on. The others are mixtures of two rows, which
stand for queries that are unlike the rows: farther from all of them, and between lists. Of inner
products as many are rows less their mean, with either sign: queries need not lie where rows do. The
hardest kind decides. Where enough real queries are known, they are one kind, and rows and mixtures
together are the other one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore.ann import codes
from vecstore.ann.codes import Codes
from vecstore.ann.model import Model
from vecstore.vectors import Vectors, lengths, unit

Floats = NDArray[np.float64]

LEVELS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
SIZES = (1, 10, 100)
# Of one row in so many the nearest stand for as many times more of all rows: what filters let
# through, and large answers, reach as far.
SAMPLES = (10, 100)
MIXTURE = 0.6
# Of the neighbours that may be missed, the share that may be missed for want of lists.
LISTS_SHARE = 0.5
# Those that lists miss and those that codes miss are partly the same: what each may miss adds up to
# so many times what both may, as long as the bound of what both find reaches the level.
EXCESSES = np.linspace(3.0, 1.0, 41)
Z_95 = 1.645
# A search rounds what it compares: by such a share of the reach, and by so much slack. Where all
# queries are so alike that they need the same, none must miss it by that.
REACH_ROUNDING, SLACK_ROUNDING = 0.0005, 0.03
# Squares of lengths below this are lost in float32: nothing is expected then, so that searches do
# without the index.
SHORT = 1e-15
# The same where the nearest rows differ by hardly more than what float32 rounds off, for so many
# queries: as in clusters that lie far from each other.
BLUR, BLURRED = 16 * np.finfo(np.float32).eps, 0.2
GAPS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
# Shares of the neighbours for which it is noted what they need: denser where few need much.
GRID = np.concatenate([np.linspace(0, 0.98, 393), 1 - np.geomspace(0.0198, 0.0002, 64), [1.0]])
# Codes are hardly ever off by more, nor fine codes: by these without any measurement.
MOST_SLACK, MOST_FINE = 6.0, 3.0
# Codes of a prefix may be off by any amount: a search allows for so much, and a neighbour that
# needs more is lost.
FARTHEST, LOST = 100.0, 200.0
# What rounding makes of a score, in parts of the largest.
ROUNDING = 1e-5
# Fine codes are taken to be off by as much as all but so few of some rows of each part are.
FINE_ROWS, FINE_MISSES, FINE_SAFETY = 64, 0.0005, 1.1
PAIRS_AT_ONCE = 8192
# Fewer real queries say too little.
LEAST_REAL = 32


def queries(vectors: Vectors, others: Vectors, metric: str) -> Vectors:
    """Queries to calibrate with: rows, float32 (n, dim), and as many mixtures with other rows."""
    mixed = MIXTURE * vectors + (1 - MIXTURE) * others
    both = np.concatenate([vectors, mixed]).astype(np.float32)
    return unit(both) if metric == "cosine" else both


@dataclass(frozen=True, slots=True)
class Asked:
    """The queries of a calibration.

    Attributes:
        queries: float32 (m, dim).
        own: int64 (m,), the row that each is, or -1.
        edges: Where each kind of queries ends, but for the last; the hardest kind decides.
    """

    queries: Vectors
    own: NDArray[np.int64]
    edges: list[int]

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
            made, count, known = queries(vectors, others, metric), len(vectors), np.tile(own, 2)
            if metric != "dot":
                return cls(made, known, [count])
            # Whoever asks for products may ask in any direction, also in one that all rows lack.
            centred = others - others.mean(axis=0)
            centred[::2] *= -1
            known = np.concatenate([known, np.full(count, -1, np.int64)])
            return cls(np.concatenate([made, centred]), known, [count, 2 * count])
        # Rows and mixtures are one half now: as many as before would cost more, and not tell more.
        count = -(-len(vectors) // 2)
        made = queries(vectors[:count], others[:count], metric)
        if metric == "cosine":
            real = unit(real)
        none = np.full(len(real), -1, np.int64)
        known = np.concatenate([np.tile(own[:count], 2), none])
        return cls(np.concatenate([made, real]), known, [len(made)])


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
        self.asked = model.aimed(asked)
        self.bases = (self.asked @ model.reducing.T) @ model.centres.T + model.bias
        self.rotated = model.rotate(self.asked)
        self.turned = model.turn(self.asked)
        self.sizes, self.whole = (
            np.sqrt(np.vecdot(part, part)) for part in (self.rotated, self.asked)
        )
        self.near = _Rows.none(len(asked), SIZES[-1])
        # How far off fine codes were, in lengths of the query times their scales.
        self.errors: list[Vectors] = []

    def add(self, part: Part) -> Vectors:
        """Compare the queries with more rows; return their scores, float32 (queries, rows)."""
        model = self.model
        vectors = model.centred(part.vectors)
        scores: Vectors = self.asked @ vectors.T
        if model.distances:
            scores -= (0.5 * np.vecdot(vectors, vectors)).astype(np.float32)
        self._note_errors(part, scores)
        # A row that is a query is not its own neighbour.
        scores[self.own[:, None] == part.codes.rows[None, :]] = -np.inf
        best = _largest(scores, SIZES[-1])
        found = np.take_along_axis(scores, best, 1)
        # Of the others no code has to be looked at.
        better = found > self.near.scores.min(axis=1, keepdims=True)
        likely = np.full_like(found, -np.inf)
        likely[better] = self._estimate_pairs(part, np.nonzero(better)[0], best[better])
        found[~better] = -np.inf
        self.near = self.near.joined(
            _Rows(found, likely, part.codes.scales[best], part.lists[best])
        )
        return scores

    def _estimate_pairs(
        self, part: Part, asked: NDArray[np.intp], rows: NDArray[np.intp]
    ) -> Vectors:
        """What codes say of the scores of some rows for a query each, float32 (n,)."""
        used, places = np.unique(rows, return_inverse=True)
        stands_for = self._decode(part.codes.take(used))
        products = np.empty(len(rows), np.float32)
        for at in range(0, len(rows), PAIRS_AT_ONCE):
            some = slice(at, at + PAIRS_AT_ONCE)
            np.vecdot(self.rotated[asked[some]], stands_for[places[some]], out=products[some])
        estimates = products * part.codes.scales[rows] + part.codes.offsets[rows]
        estimates += self.bases[asked, part.lists[rows]]
        found: Vectors = estimates.astype(np.float32, copy=False)
        return found

    def _decode(self, found: Codes) -> Vectors:
        """What codes stand for, but for their scales, float32 (n, coded)."""
        patterns = np.ascontiguousarray(self.model.patterns.T)
        numbers = patterns.take(found.groups, axis=0).reshape(len(found.rows), -1)
        return numbers[:, : self.model.coded]

    def estimate(self, part: Part) -> Vectors:
        """What the codes say of the scores, float32 (queries, rows)."""
        products = self.rotated @ self._decode(part.codes).T
        estimates = products * part.codes.scales + part.codes.offsets
        estimates += self.bases[:, part.lists]
        found: Vectors = estimates.astype(np.float32, copy=False)
        return found

    def _note_errors(self, part: Part, scores: Vectors) -> None:
        """Compare what fine codes say of some rows with their scores."""
        count = len(part.codes.rows)
        few = np.arange(0, count, max(1, count // FINE_ROWS))
        found = part.codes.take(few)
        products = self.turned @ codes.unpack_fine(found.fine, self.model.dim).T
        estimates = products * found.fine_scales + found.offsets + self.bases[:, part.lists[few]]
        units = self.whole[:, None] * found.fine_scales
        errors = np.abs(estimates - scores[:, few])
        self.errors.append(errors[units > 0] / units[units > 0])

    def finish(self) -> None:
        """Sort the neighbours, nearest first."""
        self.near = self.near.take(np.argsort(-self.near.scores, axis=1, kind="stable"))

    def slack(self, k: int) -> Floats:
        """What each of the k nearest needs to be narrowed, (queries, k)."""
        near = self.near
        # No k rows that are found score more than the nearest k do.
        off = near.scores[:, k - 1 : k].astype(np.float64) - near.likely[:, :k]
        units = near.scales[:, :k] * self.sizes[:, None].astype(np.float64)
        needed = np.divide(off, units, out=np.full_like(off, LOST), where=units > 0)
        needed[needed > FARTHEST] = LOST
        # A code with hardly a scale is right but for rounding, unless it is one of a prefix.
        rounded = off <= ROUNDING * self.largest(k)[:, None]
        clipped: Floats = np.clip(needed, 0.0, np.where(rounded, MOST_SLACK, LOST))
        return clipped

    def largest(self, k: int) -> Vectors:
        """The largest number that the scores of the k nearest are made of, (queries,)."""
        found: Vectors = np.abs(self.near.scores[:, :k]).max(axis=1)
        return found + self.whole**2 if self.model.distances else found

    def blurred(self, k: int) -> bool:
        """Whether float32 rounds off what tells the k nearest of many queries apart."""
        if k < 1:
            return False
        # Equal ones need not be told apart.
        spread = self.near.scores[:, 0] - self.near.scores[:, k - 1]
        lost = (spread > 0) & (spread < BLUR * self.largest(k))
        return float(lost.mean()) > BLURRED

    def fine(self) -> float:
        """By how much fine codes are off at most, but for a few."""
        errors = np.concatenate(self.errors)
        if not len(errors):
            return MOST_FINE
        return min(MOST_FINE, FINE_SAFETY * float(np.quantile(errors, 1 - FINE_MISSES)))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows for each query, arrays (queries, rows).

    Attributes:
        scores: float32, exact.
        likely: float32, what the codes say of the scores.
        scales: float32, of the codes.
        lists: intp.
    """

    scores: Vectors
    likely: Vectors
    scales: Vectors
    lists: NDArray[np.intp]

    @classmethod
    def none(cls, queries: int, count: int) -> _Rows:
        """So many that are worse than any."""
        shape = (queries, count)
        worst = np.full(shape, -np.inf, np.float32)
        return cls(worst, worst, np.ones_like(worst), np.zeros(shape, np.intp))

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
        return both.take(_largest(both.scores, self.scores.shape[1]))


class _Nearest:
    """The lists of the nearest rows of each query, of some rows alone."""

    def __init__(self, queries: int) -> None:
        self.scores = np.full((queries, SIZES[-1]), -np.inf, np.float32)
        self.lists = np.zeros((queries, SIZES[-1]), np.intp)

    def add(self, scores: Vectors, lists: NDArray[np.intp]) -> None:
        """Add more rows: their scores (queries, rows), and the list of each."""
        both = np.concatenate([self.scores, scores], axis=1)
        lists = np.concatenate([self.lists, np.broadcast_to(lists, scores.shape)], axis=1)
        best = _largest(both, SIZES[-1])
        self.scores = np.take_along_axis(both, best, 1)
        self.lists = np.take_along_axis(lists, best, 1)

    @property
    def complete(self) -> bool:
        """Whether enough rows were there for each query."""
        return bool(np.isfinite(self.scores).all())


def _sampled(rows: NDArray[np.uint32], every: int) -> NDArray[np.bool_]:
    """One row in so many, whichever order they came in."""
    # Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4).
    hashes = rows.astype(np.uint32) * np.uint32(2_654_435_769) >> np.uint32(8)
    chosen: NDArray[np.bool_] = hashes % every == 0
    return chosen


def _largest(values: Vectors, count: int) -> NDArray[np.intp]:
    """Places of the largest numbers of each row."""
    count = min(count, values.shape[1])
    return np.argpartition(-values, count - 1, axis=1)[:, :count]


def costs(model: Model, asked: Vectors, own: NDArray[np.int64], part: Part) -> tuple[float, float]:
    """How much of a part a query has to look at to find nearly all of its neighbours.

    Returns:
        How many rows are narrowed, and how many are in the lists that are scanned.
    """
    truth = _Truth(model, asked, own)
    truth.add(part)
    truth.finish()
    k = min(10, max(1, int(np.isfinite(truth.near.scores).sum(axis=1).min())))
    slack = float(np.quantile(truth.slack(k), 0.995))
    hopes = truth.estimate(part) + slack * truth.sizes[:, None] * part.codes.scales
    narrowed = float((hopes >= truth.near.scores[:, k - 1 : k]).sum(axis=1).mean())
    if slack > FARTHEST:
        narrowed = float(len(part.vectors))
    ranks, _ = _order(model, truth)
    reach = np.quantile(np.take_along_axis(ranks, truth.near.lists[:, :k], 1), 0.95)
    sizes = np.bincount(part.lists, minlength=model.lists)
    scanned = float(((ranks[:, : model.lists] <= reach) * sizes).sum(axis=1).mean())
    return narrowed, max(1.0, scanned)


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
        Plain values for `read`: "gap", "fine", and for each size of answer the levels of recall
        with the least reach and slack.
    """
    truth = _Truth(model, asked.queries, asked.own)
    ranks, far = _order(model, truth)
    samples = {every: _Nearest(len(asked.queries)) for every in SAMPLES}
    for part in parts:
        scores = truth.add(part)
        for every, nearest in samples.items():
            chosen = _sampled(part.codes.rows, every)
            nearest.add(scores[:, chosen], part.lists[chosen])
    truth.finish()
    short = bool(np.median(lengths(asked.queries - model.mean)) < SHORT)
    there = int(np.isfinite(truth.near.scores).sum(axis=1).min())
    unknown = short or truth.blurred(min(10, there))
    gap = _choose_gap(truth, ranks, far, sizes, min(10, there))
    budgets: dict[str, Any] = {
        "gap": gap,
        "fine": truth.fine(),
        "levels": list(LEVELS),
        "sizes": {},
    }
    for k in SIZES:
        if k > there:
            break
        needed = _needed(ranks, far, gap, truth.near.lists[:, :k])
        budgets["sizes"][str(k)] = _levels(needed, truth.slack(k), asked.edges)
    for every, nearest in samples.items():
        if nearest.complete:
            needed = _needed(ranks, far, gap, nearest.lists)
            curve = _levels(needed, truth.slack(SIZES[-1]), asked.edges)
            budgets["sizes"][str(every * SIZES[-1])] = curve
    if unknown:
        for curve in budgets["sizes"].values():
            for values in curve:
                values[2] = 0.0
    budgets["scanned"] = _scanned(np.log1p(ranks) + gap * far, sizes, budgets["sizes"])
    return budgets


def _needed(ranks: NDArray[np.intp], far: Floats, gap: float, lists: NDArray[np.intp]) -> Floats:
    """How far a search has to reach for rows in some lists, (queries, rows)."""
    found: Floats = np.take_along_axis(np.log1p(ranks) + gap * far, lists, 1)
    return found


def _scanned(
    needed: Floats, sizes: NDArray[np.intp], curves: dict[str, list[list[float]]]
) -> dict[str, list[float]]:
    """How many rows the lists have that a search scans, for each size and level."""
    lists = needed.shape[1] - 1
    order = np.argsort(needed[:, :lists], axis=None)
    reaches = needed[:, :lists].reshape(-1)[order]
    totals = np.append(0, np.cumsum(np.tile(sizes[:lists], len(needed))[order])) / len(needed)
    return {
        size: totals[np.searchsorted(reaches, [reach for reach, *_ in curve], "right")].tolist()
        for size, curve in curves.items()
    }


def unmeasured(model: Model) -> dict[str, Any]:
    """Budgets for codes in row order, of a collection with too few rows to measure any.

    Codes are hardly ever off by so much, and all of them are scanned. What those of a prefix miss
    is not known: no recall is expected of them, so that searches do without.
    """
    curve = [[0.0, MOST_SLACK, level * (model.coded == model.dim)] for level in LEVELS]
    budgets = {"gap": 0.0, "fine": MOST_FINE, "levels": list(LEVELS), "sizes": {"1": curve}}
    return {**budgets, "measured": False}


def _order(model: Model, truth: _Truth) -> tuple[NDArray[np.intp], Floats]:
    """Rank of each list for each query, and how much farther than the nearest it is.

    Both are zero for the rows in no list, which every search scans: the last column.
    """
    return _ordered(model, truth.asked, truth.bases[:, : model.lists].astype(np.float64))


def _ordered(model: Model, asked: Vectors, bases: Floats) -> tuple[NDArray[np.intp], Floats]:
    """As `_order`, with the scores of lists, (queries, lists); minus infinity for one left out."""
    none = np.zeros((len(bases), 1))
    if model.lists == 0:
        return none.astype(np.intp), none
    order = np.argsort(-bases, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(model.lists)[None], 1)
    top = bases.max(axis=1, keepdims=True)
    far = np.where(np.isfinite(bases), top - bases, 1e30)
    far /= _spans(model, asked, top[:, 0])[:, None]
    return np.append(ranks, none.astype(np.intp), axis=1), np.append(far, none, axis=1)


def _spans(model: Model, asked: Vectors, top: Floats) -> Floats:
    """What distances to lists are measured in, of each query, (queries,)."""
    whole = np.vecdot(asked, asked).astype(np.float64)
    if not model.distances and model.metric != "dot":
        return np.ones(len(whole))
    spans: Floats = np.sqrt(np.maximum(whole - 2 * top * model.distances, 1e-30))
    return spans


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


def _levels(needed: Floats, slack: Floats, edges: list[int]) -> list[list[float]]:
    """For each level of recall reach, slack and expected recall."""
    grid, steps = (np.unique(np.quantile(part, GRID)) for part in (needed, slack))
    steps = np.unique(np.minimum(steps, FARTHEST))
    reaches, slacks = _bounds(needed, grid, edges), _bounds(slack, steps, edges)
    found = []
    for level in LEVELS:
        for excess in EXCESSES:
            missed = excess * (1 - level)
            reach = _least(grid, reaches, 1 - LISTS_SHARE * missed) * (1 + REACH_ROUNDING)
            most = _least(steps, slacks, 1 - (1 - LISTS_SHARE) * missed) + SLACK_ROUNDING
            both = ((needed <= reach) & (slack <= most)).mean(axis=1)
            kinds = np.split(both, edges)
            if min(map(_bound, kinds)) >= level:
                break
        expected = min(float(kind.mean()) for kind in kinds)
        found.append([reach, most, expected])
    return found


def _bound(recalls: Floats) -> float:
    """The one-sided lower bound of the mean recall of some queries, with 95 % confidence."""
    return float(recalls.mean() - Z_95 * recalls.std() / max(1, len(recalls)) ** 0.5)


def _bounds(needed: Floats, grid: Floats, edges: list[int]) -> Floats:
    """Lower bounds of the mean recall at each value of a grid, of the hardest kind of queries."""
    bounds = []
    for kind in np.split(needed, edges):
        # How many neighbours of each query need at most each value.
        place = np.searchsorted(grid, kind, side="left")
        queries = np.arange(len(kind))[:, None] * (len(grid) + 1)
        counts = np.bincount((queries + place).ravel(), minlength=len(kind) * (len(grid) + 1))
        table = counts.reshape(len(kind), -1)[:, :-1].cumsum(axis=1) / kind.shape[1]
        bounds.append(table.mean(axis=0) - Z_95 * table.std(axis=0) / max(1, len(kind)) ** 0.5)
    lowest: Floats = np.min(bounds, axis=0)
    return lowest


def _least(grid: Floats, bounds: Floats, level: float) -> float:
    """The least value whose bound reaches a level of recall; the largest if none does."""
    enough = np.flatnonzero(bounds >= level)
    return float(grid[enough[0]] if len(enough) else grid[-1])


@dataclass(frozen=True, slots=True)
class Reading:
    """What the curves say.

    Attributes:
        gap: As those of `engine.Budget`, so reach, slack and fine.
        recall: What is expected.
        scanned: How many rows the lists have that are scanned; infinite if that is not known.
    """

    gap: float
    reach: float
    slack: float
    fine: float
    recall: float
    scanned: float = np.inf


def read(budgets: dict[str, Any], recall: float, k: int) -> Reading:
    """Read the budget for a recall and a size of answer off the curves.

    Between the levels, and between the sizes that were measured, it is interpolated; beyond the
    largest size the reach grows on as it did before.
    """
    # A dozen numbers are interpolated faster without numpy.
    levels, scanned = budgets["levels"], budgets.get("scanned", {})
    low, high, share = _between(levels, recall)
    sizes = sorted(map(int, budgets["sizes"]))
    at = []
    for size in sizes:
        first, second = (budgets["sizes"][str(size)][which] for which in (low, high))
        counts = scanned.get(str(size))
        rows = (math.inf, math.inf) if counts is None else (counts[low], counts[high])
        # What grows with the size by a factor is interpolated by its logarithm.
        pairs = [*zip(first, second, strict=True), (math.log1p(rows[0]), math.log1p(rows[1]))]
        at.append([_mixed(one, other, share) for one, other in pairs])
    logs, place = list(map(math.log, sizes)), math.log(max(k, 1))
    if len(at) > 1 and place > logs[-1]:
        grown = (place - logs[-1]) / (logs[-1] - logs[-2])
        nearer, farther = at[-2:]
        reach, rows_ = (
            farther[i]
            + (grown * max(0.0, farther[i] - nearer[i]) if farther[i] < math.inf else 0.0)
            for i in (0, 3)
        )
        slack, expected = max(farther[1], nearer[1]), farther[2]
    else:
        low, high, share = _between(logs, place)
        reach, slack, expected, rows_ = (_mixed(at[low][i], at[high][i], share) for i in range(4))
    return Reading(
        budgets["gap"],
        reach,
        slack,
        budgets["fine"],
        expected,
        math.expm1(rows_) if rows_ < 700 else math.inf,
    )


def _between(values: list[float], value: float) -> tuple[int, int, float]:
    """The places of two of ascending values, and how far one is between them; at ends one twice."""
    high = bisect_left(values, value)
    if high == 0 or high == len(values):
        end = min(high, len(values) - 1)
        return end, end, 0.0
    low = high - 1
    return low, high, (value - values[low]) / (values[high] - values[low])


def _mixed(first: float, second: float, share: float) -> float:
    """A number between two; either may be infinite."""
    if first == second or share >= 1:
        return float(second)
    return float(first + (second - first) * share)
