"""Along which axes are vectors coded? Orthogonal matrices: principal directions and random ones.

A matrix is applied as `vectors @ matrix.T`: its rows are the new axes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vecstore.vectors import Vectors

# Up to here one QR decomposition is affordable.
DENSE = 1024
BLOCK = 512
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
    _, directions = np.linalg.eigh(_moments(sample, centre))
    basis = directions.T[::-1]
    largest = np.abs(basis).argmax(axis=1)
    signs = np.where(basis[np.arange(len(basis)), largest] < 0, -1.0, 1.0)
    return np.ascontiguousarray(basis * signs[:, None], np.float32)


def energy(sample: Vectors, basis: Vectors) -> NDArray[np.float64]:
    """The share of the sample's second moment along each row of a basis, float64 (directions,).

    Of an orthogonal basis they add up to 1; of a sample of zeros they are zero.
    """
    moments = _moments(sample, centre=False)
    wide = basis.astype(np.float64)
    along = np.maximum(np.vecdot(wide @ moments, wide), 0.0)
    total = np.trace(moments)
    return along / total if total > 0 else np.zeros(len(basis))


def _moments(sample: Vectors, centre: bool) -> NDArray[np.float64]:
    """The second moments, float64 (dim, dim)."""
    dim = sample.shape[1]
    middle = sample.mean(axis=0, dtype=np.float64) if centre else np.zeros(dim)
    moments = np.zeros((dim, dim))
    for at in range(0, len(sample), SLICE_ROWS):
        wide = sample[at : at + SLICE_ROWS] - middle
        moments += wide.T @ wide
    return moments


def orthogonal(dim: int, seed: int) -> Vectors:
    """A random orthogonal matrix, float32 (dim, dim).

    Up to 1,024 dims it is uniformly distributed (Haar's measure): Q of the QR decomposition of a
    Gaussian matrix, with the signs of R's diagonal (Mezzadri 2007, arXiv math-ph/0609050). Beyond,
    that takes minutes, so it is the product of three rounds, each a random permutation and a Haar
    matrix of every 512 dims: the sparse structure of fast Johnson-Lindenstrauss transforms (Ailon
    and Chazelle 2009), with dense blocks in place of Hadamard's, so that no dim needs padding.
    """
    rng = np.random.default_rng(seed)
    if dim <= DENSE:
        return _haar(dim, rng).astype(np.float32)
    matrix = np.eye(dim, dtype=np.float32)
    for _ in range(ROUNDS):
        matrix = matrix[rng.permutation(dim)]
        # Even blocks: a last one of a few dims would hardly mix them.
        for rows in np.array_split(np.arange(dim), -(-dim // BLOCK)):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            matrix[part] = _haar(len(rows), rng).astype(np.float32) @ matrix[part]
    return matrix


def _haar(dim: int, rng: np.random.Generator) -> NDArray[np.float64]:
    q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
    return q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
