"""How do a user's arrays become safe? dtype, shape, finite values, length, stored form."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecstore.errors import VectorError
from vecstore.spec import Metric

Vectors = NDArray[np.float32]

# Beyond this length an inner product of two vectors could overflow float32.
LONGEST = 1e18
# A vector this close to unit length is stored as it is: scores divide by its true length anyway.
UNIT_SLACK = 1e-6
WIDENED_AT_ONCE = 64
_QUIET = contextlib.nullcontext()


def as_vectors(values: ArrayLike, dim: int, what: str = "vectors") -> Vectors:
    """Return vectors as a C-contiguous float32 array of shape (n, dim), copied only if needed.

    Raises:
        VectorError: Wrong shape, a dtype without numbers, NaN, infinity, or a value that float32
            cannot hold; the message names the first offender.
    """
    array = _as_array(values, what)
    if array.ndim != 2:
        raise VectorError(f"{what}: shape {array.shape}; expected (n, {dim})")
    if array.shape[1] != dim:
        raise VectorError(f"{what}: {array.shape[1]} numbers each, the collection has dim={dim}")
    with _QUIET if array.dtype == np.float32 else np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(result).all():
        _refuse_infinite(array, result, what)
    return result


def as_vector(values: ArrayLike, dim: int, what: str = "the vector") -> Vectors:
    """Return one vector as float32 of shape (dim,); checks as in `as_vectors`."""
    array = _as_array(values, what)
    if array.ndim != 1:
        raise VectorError(f"{what} has shape {array.shape}; expected ({dim},)")
    if array.shape[0] != dim:
        raise VectorError(f"{what} has {array.shape[0]} numbers, the collection has dim={dim}")
    vector: Vectors = as_vectors(array[None, :], dim, what)[0]
    return vector


def store_form(vectors: Vectors, metric: Metric) -> tuple[Vectors, NDArray[np.float64]]:
    """Return vectors as they are stored, and their original lengths.

    Under cosine the stored vectors have unit length: `stored * norms[:, None]` gives the
    originals. Under dot and l2 they are stored as they are.

    Returns:
        float32 (n, dim), which may be `vectors` itself, and float64 (n,).

    Raises:
        VectorError: Zero length under cosine, or a length over 1e18 under dot and l2.
    """
    norms = check_lengths(vectors, metric, "vector")
    if metric != "cosine":
        return vectors, norms
    far = np.abs(norms - 1.0) > UNIT_SLACK
    if not far.any():
        return vectors, np.ones_like(norms)
    norms[~far] = 1.0
    # Dividing by 1.0 keeps the bits.
    return (vectors / norms[:, None]).astype(np.float32), norms


def check_lengths(vectors: Vectors, metric: Metric, what: str) -> NDArray[np.float64]:
    """Return the lengths of vectors, having checked that the metric can compare them.

    Raises:
        VectorError: Zero length under cosine, or a length over 1e18 under dot and l2.
    """
    norms = lengths(vectors)
    if metric == "cosine" and not norms.all():
        raise VectorError(
            f"{what} {int(np.argmin(norms))} is zero; it has no direction, so cosine cannot"
            " compare it. Leave it out or use metric 'dot' or 'l2'"
        )
    if metric != "cosine" and len(norms) and norms.max() > LONGEST:
        worst = int(np.argmax(norms))
        raise VectorError(
            f"{what} {worst} has length {norms[worst]:.3g}; metric {metric!r} takes lengths up to"
            f" {LONGEST:g}, scale the vectors down"
        )
    return norms


def original(stored: Vectors, norms: NDArray[np.float64], metric: Metric) -> Vectors:
    """Return the user's vectors again: the inverse of `store_form`, to float32's precision."""
    if metric != "cosine":
        return stored.copy()
    return (stored * norms[..., None]).astype(np.float32)


def lengths(vectors: Vectors) -> NDArray[np.float64]:
    """Euclidean lengths, float64 (n,), of float32 vectors (n, dim), without overflow."""
    squares = np.empty(len(vectors))
    # Squares of float32 numbers cannot overflow float64. A few rows at a time stay in the cache.
    for at in range(0, len(vectors), WIDENED_AT_ONCE):
        wide = vectors[at : at + WIDENED_AT_ONCE].astype(np.float64)
        np.vecdot(wide, wide, out=squares[at : at + WIDENED_AT_ONCE])
    return np.sqrt(squares)


def _as_array(values: ArrayLike, what: str) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise VectorError(f"{what}: not an array of numbers: {error}") from None
    if array.dtype == object or array.dtype.kind not in "fiub":
        raise VectorError(
            f"{what}: dtype {array.dtype}; expected float32, or numbers that convert to it"
        )
    if array.dtype.kind == "b":
        raise VectorError(f"{what}: booleans; convert them to 0.0 and 1.0 if that is meant")
    return array


def _refuse_infinite(array: NDArray[Any], result: Vectors, what: str) -> None:
    bad = np.argwhere(~np.isfinite(result))
    if len(bad) == 0:
        return
    row, column = bad[0].tolist()
    raise VectorError(
        f"{what}: row {row} holds {array[row, column]} at position {column}; every value must be"
        " finite and within float32's range (3.4e38)"
    )
