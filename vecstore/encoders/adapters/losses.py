"""How far is a map from what it is to be? Losses, and their gradients written out.

Every function works in the dtype of its arguments: float32 to fit, float64 to be tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]

TEMPERATURE = 0.05
# How much an error of a similarity counts beside one of the order.
SQUARES = 5.0


def scaled(points: Floats) -> tuple[Floats, Floats]:
    """Return rows at unit length, and their lengths as a column; zeros stay."""
    sizes = np.sqrt(np.einsum("ij,ij->i", points, points))[:, None]
    sizes[sizes == 0] = 1
    return points / sizes, sizes


def unscaled_gradient(gradient: Floats, units: Floats, sizes: Floats) -> Floats:
    """The gradient by rows before `scaled`, from that by the units."""
    along = np.einsum("ij,ij->i", gradient, units)[:, None]
    found: Floats = (gradient - along * units) / sizes
    return found


def log_softmax(scores: Floats) -> Floats:
    """Logarithms of the shares of each row's exponentials; -inf takes no share."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def wanted_shares(units: Floats) -> tuple[Floats, Floats]:
    """What the prefixes are to reproduce: similarities and logarithms of their shares, (n, n)."""
    wanted = units @ units.T
    return wanted, _log_shares(wanted)


def _log_shares(similarities: Floats) -> Floats:
    scores = similarities / np.asarray(TEMPERATURE, similarities.dtype)
    # A vector's likeness to itself says nothing.
    np.fill_diagonal(scores, -np.inf)
    logs = log_softmax(scores)
    np.fill_diagonal(logs, 0)
    return logs


def nested_loss(
    wanted: Floats, logs: Floats, points: Floats, sizes: Sequence[int]
) -> tuple[float, Floats]:
    """How badly prefixes reproduce the similarities of whole vectors (Kusupati et al. 2022).

    The mean Kullback-Leibler divergence of each row's shares, exponentials of similarity over
    temperature, plus `SQUARES` times the mean square of the error, summed over the prefixes.

    Args:
        wanted: (n, n), similarities of the whole vectors.
        logs: (n, n), logarithms of their shares; see `wanted_shares`.
        points: (n, at least the longest prefix), whose prefixes are compared by cosine.
        sizes: The prefix lengths.

    Returns:
        The loss, and its gradient by `points`.
    """
    count = len(points)
    shares = np.exp(logs)
    np.fill_diagonal(shares, 0)
    total, gradient = 0.0, np.zeros_like(points)
    for size in sizes:
        units, lengths = scaled(points[:, :size])
        found = units @ units.T
        found_logs = _log_shares(found)
        errors = found - wanted
        np.fill_diagonal(errors, 0)
        pairs = count * (count - 1)
        total += float((shares * (logs - found_logs)).sum() / count)
        total += float(SQUARES * (errors * errors).sum() / pairs)
        found_shares = np.exp(found_logs)
        np.fill_diagonal(found_shares, 0)
        steps = (found_shares - shares) / (TEMPERATURE * count) + errors * (2 * SQUARES / pairs)
        by_units = (steps + steps.T) @ units
        gradient[:, :size] += unscaled_gradient(by_units, units, lengths)
    return total, gradient


def contrastive_loss(
    matrix: Floats,
    queries: Floats,
    documents: Floats,
    right: NDArray[np.intp],
    barred: NDArray[np.bool_],
    *,
    both: bool,
) -> tuple[float, Floats]:
    """How badly queries find their documents among others (InfoNCE, van den Oord et al. 2018).

    Args:
        matrix: (dim, dim), which queries are multiplied by, and documents too if `both`.
        queries: (n, dim).
        documents: (m, dim), all that a query may find.
        right: (n,), which document each query is to find.
        barred: (n, m), documents that do not count, such as others that are relevant.
        both: Whether documents are mapped too.

    Returns:
        The mean loss, and its gradient by `matrix`.
    """
    asked, asked_sizes = scaled(queries @ matrix)
    found, found_sizes = scaled(documents @ matrix if both else documents)
    scores = asked @ found.T / np.asarray(TEMPERATURE, matrix.dtype)
    scores[barred] = -np.inf
    logs = log_softmax(scores)
    rows = np.arange(len(queries))
    steps = np.exp(logs)
    steps[rows, right] -= 1
    steps /= np.asarray(TEMPERATURE * len(queries), matrix.dtype)
    gradient = queries.T @ unscaled_gradient(steps @ found, asked, asked_sizes)
    if both:
        gradient += documents.T @ unscaled_gradient(steps.T @ asked, found, found_sizes)
    return float(-logs[rows, right].mean()), gradient


class Adam:
    """Steps along a gradient, of like size in every direction (Kingma and Ba 2015).

    Args:
        rate: The first step's length; later ones shrink along a cosine to zero.
        steps: How many there will be.
    """

    _MEAN, _SQUARE, _TINY = 0.9, 0.999, 1e-8

    def __init__(self, rate: float, steps: int) -> None:
        self._rate, self._steps, self._done = rate, steps, 0
        self._mean: Floats | float = 0.0
        self._square: Floats | float = 0.0

    def step(self, gradient: Floats) -> Floats:
        """What is to be subtracted from the parameters, of the gradient's shape and dtype."""
        rate = self._rate * (1 + np.cos(np.pi * self._done / self._steps)) / 2
        self._done += 1
        self._mean = self._MEAN * self._mean + (1 - self._MEAN) * gradient
        self._square = self._SQUARE * self._square + (1 - self._SQUARE) * gradient * gradient
        mean = self._mean / (1 - self._MEAN**self._done)
        square = self._square / (1 - self._SQUARE**self._done)
        found: Floats = (rate * mean / (np.sqrt(square) + self._TINY)).astype(gradient.dtype)
        return found
