"""How does one vector come from many token vectors? Pooling, in numpy.

Every function takes tokens, float32 (batch, sequence, dim), and mask, float32 (batch, sequence) of
ones and zeros with at least one one in each row, and returns float32 (batch, dim).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def _cls(tokens: Floats, mask: Floats) -> Floats:
    return _rows(tokens, np.argmax(mask, axis=1))


def _last(tokens: Floats, mask: Floats) -> Floats:
    last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
    return _rows(tokens, last)


def _rows(tokens: Floats, places: NDArray[np.intp]) -> Floats:
    picked: Floats = tokens[np.arange(len(tokens)), places]
    return picked


def _max(tokens: Floats, mask: Floats) -> Floats:
    highest: Floats = np.where(mask[:, :, None] > 0, tokens, np.float32(-np.inf)).max(axis=1)
    return highest


def _sum(tokens: Floats, mask: Floats) -> Floats:
    total: Floats = np.einsum("bsd,bs->bd", tokens, mask)
    return total


def _mean(tokens: Floats, mask: Floats) -> Floats:
    mean: Floats = _sum(tokens, mask) / mask.sum(axis=1, keepdims=True)
    return mean


def _mean_sqrt(tokens: Floats, mask: Floats) -> Floats:
    mean: Floats = _sum(tokens, mask) / np.sqrt(mask.sum(axis=1, keepdims=True))
    return mean


def _weighted_mean(tokens: Floats, mask: Floats) -> Floats:
    weights = mask * np.arange(1, mask.shape[1] + 1, dtype=np.float32)
    mean: Floats = _sum(tokens, weights) / weights.sum(axis=1, keepdims=True)
    return mean


# In the order in which sentence-transformers concatenates them where several are declared.
POOLINGS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


# Other names for the same.
_SYNONYMS = {"last": "lasttoken"}


def is_pooling(mode: object) -> bool:
    """Whether a mode is the name of a pooling, or several names joined with "+"."""
    return isinstance(mode, str) and all(
        _SYNONYMS.get(name, name) in POOLINGS for name in mode.split("+")
    )


def pool(tokens: Floats, mask: Floats, modes: Sequence[str]) -> Floats:
    """Return the pooled vectors, float32 (batch, dim * len(modes)), joined in the order of `modes`.

    A mode such as "cls+mean" is the average of what the named ones give, of dim numbers.
    """
    return np.concatenate([_one(mode, tokens, mask) for mode in modes], axis=1)


def _one(mode: str, tokens: Floats, mask: Floats) -> Floats:
    names = [_SYNONYMS.get(name, name) for name in mode.split("+")]
    total = sum(POOLINGS[name](tokens, mask) for name in names)
    average: Floats = np.asarray(total / np.float32(len(names)), dtype=np.float32)
    return average
