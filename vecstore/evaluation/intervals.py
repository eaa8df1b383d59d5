"""How sure is a mean, or a difference? Bootstrap intervals over queries, the same for one seed.

Percentile intervals of Efron's bootstrap: as many queries as there are are drawn with replacement,
again and again, and the interval holds the middle 95 % of the figures found. Queries are drawn and
documents are not: it says how much a figure may change with other queries on the same documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecstore.errors import UsageError

CONFIDENCE = 0.95
SAMPLES = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the bounds of its interval.

    Attributes:
        value: The figure of all queries.
        low: The lower bound.
        high: The upper bound.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside: of a difference, that it is more than chance of the queries."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """Return the three numbers; None for what is not defined."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[Floats], float] | None = None,
    *,
    confidence: float = CONFIDENCE,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a figure of some rows with its bootstrap interval.

    Args:
        values: A number for each query, of shape (n,), or a row for each, of shape (n, m).
        statistic: What the figure is, from such an array; by default the mean. Where it is NaN for
            a sample, that sample is left out.
        confidence: The share of the samples that lies inside, between 0 and 1.
        samples: How often rows are drawn.
        seed: Rows of one length are drawn alike for one seed.

    Raises:
        UsageError: Nothing to draw from, numbers that are not finite, or an argument out of range.
    """
    rows = np.asarray(values, np.float64)
    if rows.ndim not in (1, 2) or len(rows) == 0:
        raise UsageError(f"values of shape {rows.shape} are no rows to draw from")
    if not np.isfinite(rows).all():
        raise UsageError("values hold NaN or infinity")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence={confidence!r} must lie between 0 and 1")
    if samples < 1:
        raise UsageError(f"samples={samples!r} must be at least 1")
    figure = _mean if statistic is None else statistic
    rng = np.random.default_rng(seed)
    draws = (rows[rng.integers(len(rows), size=len(rows))] for _ in range(samples))
    found = np.array([figure(draw) for draw in draws])
    found = found[np.isfinite(found)]
    outside = (1 - confidence) / 2
    low, high = np.quantile(found, (outside, 1 - outside)) if len(found) else (math.nan, math.nan)
    return Interval(float(figure(rows)), float(low), float(high))


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval:
    """Return how much larger the mean of `second` is, with its bootstrap interval.

    Both are drawn together, query by query: what is hard for both cancels out.

    Args:
        first: A number for each query, of shape (n,).
        second: Those of the same queries in the same order.
        confidence: As of `bootstrap_interval`.
        samples: As of `bootstrap_interval`.
        seed: As of `bootstrap_interval`.

    Raises:
        UsageError: They are not as many, or as of `bootstrap_interval`.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.ndim != 1 or one.shape != other.shape:
        raise UsageError(f"shapes {one.shape} and {other.shape} are no pairs of numbers")
    return bootstrap_interval(other - one, confidence=confidence, samples=samples, seed=seed)


def _mean(rows: Floats) -> float:
    return float(rows.mean())
