"""How well do cosines agree with people? Spearman's correlation over scored pairs, by prefix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vecstore.evaluation.intervals import Floats, Interval
from vecstore.evaluation.labelled import Pairs
from vecstore.evaluation.metrics import correlation, ranks, spearman
from vecstore.evaluation.retrieval import Vectors, prefixes
from vecstore.evaluation.setups import Sweep


@dataclass(frozen=True, slots=True)
class Correlation:
    """What was measured of a prefix.

    Attributes:
        dims: Numbers of each vector.
        spearman: Correlation of the ranks of cosines and scores, -1 to 1.
        cosines: The cosine of each pair, float64 of shape (pairs,).
    """

    dims: int
    spearman: Interval
    cosines: Floats = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the cosines."""
        return {"dims": self.dims, "spearman": self.spearman.to_dict()}


def correlate(
    pairs: Pairs, first: Vectors, second: Vectors, sizes: list[int], sweep: Sweep
) -> list[Correlation]:
    """Compare the cosines of pairs with their scores.

    Args:
        pairs: The scores.
        first: Vectors of one side, float32 of shape (pairs, dim).
        second: Those of the other.
        sizes: Lengths of prefixes.
        sweep: How intervals are drawn.

    Raises:
        UsageError: A prefix of a vector is all zeros.
    """
    found = []
    for size in sizes:
        sides = []
        for vectors, texts in ((first, pairs.first), (second, pairs.second)):
            cut = prefixes(vectors, size, lambda row, texts=texts: f"{texts[row]!r:.60}")  # type: ignore[misc]
            long = cut.astype(np.float64)
            sides.append(long / np.linalg.norm(long, axis=1, keepdims=True))
        cosines: Floats = (sides[0] * sides[1]).sum(axis=1)
        rows = np.column_stack([cosines, pairs.scores])
        interval = sweep.interval(rows, lambda drawn: spearman(*drawn.T))
        found.append(Correlation(size, interval, cosines))
    return found


def difference(pairs: Pairs, first: Correlation, second: Correlation, sweep: Sweep) -> Interval:
    """How much larger the correlation of `second` is; both are drawn together, pair by pair."""
    rows = np.column_stack([first.cosines, second.cosines, pairs.scores])

    def figure(drawn: Floats) -> float:
        one, other, scores = (ranks(column) for column in drawn.T)
        return correlation(other, scores) - correlation(one, scores)

    return sweep.interval(rows, figure)
