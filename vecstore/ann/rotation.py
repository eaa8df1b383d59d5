"""Along which axes are vectors coded? Orthogonal matrices: principal directions and random ones.

A matrix is applied as `vectors @ matrix.T`: its rows are the new axes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vecstore.vectors import Vectors

# Rounds of flipping signs and transforming; with fewer, traces of single dimensions remain.
ROUNDS = 3
SLICE_ROWS = 4096


def principal(sample: Vectors, *, centre: bool = False) -> Vectors:
    """Find the principal directions of a sample, largest variance first.

    The eigenvectors of the second moments, by default not centred; each has its largest component
    positive. Directions in which the sample does not vary complete the basis.

    Args:
        sample: float32 (n, dim).
        centre: Subtract the mean first.

    Returns:
        float32 (dim, dim); the rows are the directions.
    """
    count, dim = sample.shape
    middle = sample.mean(axis=0, dtype=np.float64) if centre and count else np.zeros(dim)
    basis = _of_few(sample - middle) if count < dim else _of_many(sample, middle)
    largest = np.abs(basis).argmax(axis=1)
    signs = np.where(basis[np.arange(len(basis)), largest] < 0, -1.0, 1.0)
    return np.ascontiguousarray(basis * signs[:, None], np.float32)


def _of_many(sample: Vectors, middle: NDArray[np.float64]) -> NDArray[np.float64]:
    """The directions as rows, float64 (dim, dim), by the second moments."""
    dim = sample.shape[1]
    moments = np.zeros((dim, dim))
    for at in range(0, len(sample), SLICE_ROWS):
        wide = sample[at : at + SLICE_ROWS] - middle
        moments += wide.T @ wide
    _, directions = np.linalg.eigh(moments)
    basis: NDArray[np.float64] = directions.T[::-1]
    return basis


def _of_few(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same of fewer vectors than dims, whose products are a smaller matrix than the moments."""
    dim = vectors.shape[1]
    squares, shares = np.linalg.eigh(vectors @ vectors.T)
    least = dim * np.finfo(np.float64).eps * squares.max(initial=0.0)
    varying = np.flatnonzero(squares > least)[::-1]
    if len(varying) == 0:
        return np.eye(dim)
    # Orthogonal but for rounding; and what completes a basis.
    basis, _ = np.linalg.qr(vectors.T @ shares[:, varying], mode="complete")
    return np.ascontiguousarray(basis.T)


def signs(dim: int, seed: int) -> NDArray[np.int8]:
    """Random signs to turn vectors with, int8 (rounds, dim): 1 or -1."""
    rng = np.random.default_rng(seed)
    return (2 * rng.integers(0, 2, (ROUNDS, dim)) - 1).astype(np.int8)


def turn(vectors: Vectors, signs: NDArray[np.int8]) -> Vectors:
    """Turn vectors at random, in n log n steps.

    In each round signs are flipped, and Hadamard transforms are applied to as many of the first
    dims as are a power of two, to as many of the rest, and so on (the fast transform of Ailon and
    Chazelle 2009). Between rounds the dims change places, so that those of one transform meet
    others in the next. All together is a product with an orthogonal matrix.

    Args:
        vectors: float32 (n, dim).
        signs: int8 (rounds, dim or more); the first ones are used.

    Returns:
        float32 (n, dim).
    """
    turned, dim = vectors, vectors.shape[1]
    places = np.arange(dim) * stride(dim) % dim
    for number, flips in enumerate(signs[:, :dim]):
        if number:
            turned = turned[:, places]
        turned, at = turned * flips, 0
        while at < dim:
            size = 1 << ((dim - at).bit_length() - 1)
            factor = np.float32(1) / np.sqrt(np.float32(size))
            turned[:, at : at + size] = _transform(turned[:, at : at + size] * factor)
            at += size
    return turned


def stride(dim: int) -> int:
    """How far apart dims lie that the next round puts side by side; it has no divisor of dim."""
    found = max(1, dim * 3 // 8)
    while math.gcd(found, dim) > 1:
        found += 1
    return found


def _transform(vectors: Vectors) -> Vectors:
    """Multiply vectors by Hadamard's matrix, in steps that all look alike (Pease 1968)."""
    for _ in range(vectors.shape[1].bit_length() - 1):
        even, odd = vectors[:, ::2], vectors[:, 1::2]
        vectors = np.concatenate([even + odd, even - odd], axis=1)
    return vectors
