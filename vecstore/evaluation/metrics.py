"""How good is one ranking, or one list of scores? Figures from 0 to 1, and a correlation.

A ranking is ids, best first. Grades above 0 are relevant. Definitions are those of trec_eval and of
the BEIR benchmark: gains are the grades themselves, discounted by log2(rank + 1).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecstore.errors import UsageError

Floats = NDArray[np.float64]


def ndcg(ranking: Sequence[Hashable], relevant: Mapping[Hashable, float], k: int = 10) -> float:
    """Return the normalised discounted cumulative gain of the first k places.

    The sum of grade / log2(rank + 1) over the first k hits, divided by the largest sum that any
    ranking of all judged documents could have (Järvelin and Kekäläinen, 2002).

    Args:
        ranking: Ids of documents, best first, none twice.
        relevant: Grades by id. Documents without one, and those graded 0 or less, gain nothing.
        k: How many places count.

    Raises:
        UsageError: Nothing is relevant, an id stands twice, k is no positive int, or a grade is
            not finite.
    """
    _check(ranking, relevant, k)
    gains = [max(0.0, float(relevant.get(item, 0))) for item in ranking[:k]]
    ideal = sorted((float(grade) for grade in relevant.values() if grade > 0), reverse=True)
    # The same division on both sides: a perfect ranking is exactly 1, however large its grades.
    return min(1.0, _discounted(gains) / _discounted(ideal[:k]))


def mrr(ranking: Sequence[Hashable], relevant: Mapping[Hashable, float], k: int = 10) -> float:
    """Return 1 / rank of the first relevant document, 0 if none is among the first k.

    Its mean over queries is the mean reciprocal rank. Arguments and errors as of `ndcg`.
    """
    _check(ranking, relevant, k)
    ranks = (rank for rank, item in enumerate(ranking[:k], 1) if relevant.get(item, 0) > 0)
    return 1 / next(ranks, math.inf)


def recall(ranking: Sequence[Hashable], relevant: Mapping[Hashable, float], k: int = 10) -> float:
    """Return the share of the relevant documents that are among the first k.

    Where more than k are relevant it cannot reach 1. Arguments and errors as of `ndcg`.
    """
    _check(ranking, relevant, k)
    found = sum(relevant.get(item, 0) > 0 for item in ranking[:k])
    return found / sum(grade > 0 for grade in relevant.values())


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank.

    Args:
        first: Numbers of shape (n,), n at least 2.
        second: As many.

    Returns:
        -1 to 1; NaN where all values of a side are equal, which orders nothing.

    Raises:
        UsageError: Other shapes, fewer than 2 numbers, or one that is not finite.
    """
    sides = [np.asarray(side, np.float64) for side in (first, second)]
    shapes = [side.shape for side in sides]
    if sides[0].ndim != 1 or shapes[0] != shapes[1] or len(sides[0]) < 2:
        raise UsageError(f"spearman takes two rows of 2 numbers or more, got shapes {shapes}")
    for side in sides:
        finite = np.isfinite(side)
        if not finite.all():
            at = int(np.argmin(finite))
            raise UsageError(f"value {at} is {side[at]}, which has no rank")
    return correlation(*map(ranks, sides))


def ranks(values: Floats) -> Floats:
    """Return ranks from 1, the smallest first; equal values share the mean of theirs."""
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: Floats = (np.cumsum(counts) - (counts - 1) / 2)[groups]
    return shared


def correlation(first: Floats, second: Floats) -> float:
    """Pearson's correlation; NaN where a side is constant."""
    one, other = first - first.mean(), second - second.mean()
    spread = math.sqrt(float(one @ one) * float(other @ other))
    if spread == 0:
        return math.nan
    return min(1.0, max(-1.0, float(one @ other) / spread))


def _discounted(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def _check(ranking: Sequence[Hashable], relevant: Mapping[Hashable, float], k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise UsageError(f"k={k!r} must be a positive int")
    if len(set(ranking)) != len(ranking):
        raise UsageError("an id stands twice in the ranking")
    for item, grade in relevant.items():
        if not math.isfinite(grade):
            raise UsageError(f"the grade of {item!r} is {grade}")
    if not any(grade > 0 for grade in relevant.values()):
        raise UsageError("nothing is relevant: leave this query out of the mean")
