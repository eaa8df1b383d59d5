"""Which vectors is an adapter fitted to? A sample of an array or of a collection."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecstore.errors import UsageError
from vecstore.spec import MAX_DIM, MIN_DIM, show
from vecstore.vectors import Vectors, as_vectors, lengths

_AT_ONCE = 4096


@runtime_checkable
class Sampled(Protocol):
    """Anything that gives a sample of its vectors, as a collection does."""

    def sample(self, count: int, *, seed: int = 0) -> Vectors:
        """Return at most `count` vectors drawn at random, float32 (n, dim)."""


def draw(vectors: ArrayLike | Sampled, count: int, seed: int) -> Vectors:
    """Return at most `count` vectors at random, float32 (n, dim), in the order they stand in.

    Raises:
        UsageError: Not vectors of one length of at least 2.
        VectorError: Values that are not finite.
    """
    # A table of pandas has a method of that name too, and is an array.
    if isinstance(vectors, Sampled) and not hasattr(vectors, "__array__"):
        drawn = vectors.sample(count, seed=seed)
        if drawn.dtype != np.float32:
            raise UsageError("the collection holds binary vectors, which no adapter maps")
        return drawn
    array = matrix(vectors, "vectors")
    if len(array) > count:
        picked = np.random.default_rng(seed).permutation(len(array))[:count]
        array = array[np.sort(picked)]
    return as_vectors(array, array.shape[1])


def matrix(values: Any, what: str) -> NDArray[Any]:
    """Return numbers as float32 (n, dim); errors as in `draw`, without a look at the values."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise UsageError(f"{what} must all be of one length: shape (n, dim)") from None
    if array.dtype.kind not in "fiu" or array.ndim != 2 or not MIN_DIM <= array.shape[1] <= MAX_DIM:
        raise UsageError(
            f"{what} of shape {array.shape} and dtype {array.dtype}: expected numbers of shape"
            f" (n, dim), with {MIN_DIM} to {MAX_DIM} numbers each"
        )
    return array


def distinct_units(vectors: Vectors) -> Vectors:
    """Return the vectors scaled to unit length, each direction once; zeros are left out."""
    sizes, units = lengths(vectors), np.empty_like(vectors)
    for at in range(0, len(vectors), _AT_ONCE):
        part = sizes[at : at + _AT_ONCE, None]
        units[at : at + _AT_ONCE] = vectors[at : at + _AT_ONCE] / np.where(part > 0, part, 1)
    # The first of those that are the same, bit for bit.
    first: dict[bytes, int] = {}
    for place in np.flatnonzero(sizes > 0).tolist():
        first.setdefault(hashlib.blake2b(units[place], digest_size=16).digest(), place)
    return units[np.fromiter(first.values(), np.intp, len(first))]


def whole(value: object, name: str, least: int) -> int:
    """Return a whole number of an argument; UsageError if it is none, or below `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name}={show(value)} must be an int of at least {least}")
    return value
