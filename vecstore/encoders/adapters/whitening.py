"""Which map makes all directions of a set of vectors count alike?

Where vectors crowd around a few directions, all cosines are high and say little. Removing the mean
and dividing by the spread of each principal direction mends that (Su et al. 2021, "Whitening
sentence representations"). It also raises directions that carry noise, which shrinkage restrains.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecstore.encoders.adapters import samples
from vecstore.encoders.adapters.adapter import Adapter, Affine
from vecstore.encoders.adapters.samples import Sampled
from vecstore.errors import UsageError
from vecstore.spec import show
from vecstore.vectors import Vectors

Whitening = Literal["zca", "pca"]

ROWS = 50_000
# A direction with less of the largest variance than this does not vary but by rounding.
LEAST_SPREAD = 1e-9

Matrix = NDArray[np.float64]


def whiten(
    vectors: ArrayLike | Sampled,
    *,
    kind: Whitening = "zca",
    dim: int | None = None,
    shrinkage: float | None = None,
    rows: int = ROWS,
    seed: int = 0,
) -> Adapter:
    """Fit a map that removes the mean of a sample and makes its covariance that of a sphere.

    "zca" turns back to the coordinates that there were: of all whitening maps it changes vectors
    least, so what a coordinate means stays (Kessy et al. 2018). "pca" leaves the principal
    directions for coordinates, largest variance first, so that `dim` of them may be kept. Cosines
    of whole vectors are the same with both.

    The covariance is shrunk towards a sphere before it is inverted, by default as much as brings it
    nearest to the true one in expectation (Ledoit and Wolf 2004): much where rows are few, hardly
    at all where they are many. With 1 only the mean is removed. Directions in which the sample
    does not vary are dropped if nothing is shrunk.

    Args:
        vectors: Numbers of shape (n, dim), or a collection.
        kind: "zca" or "pca".
        dim: Numbers to keep, under "pca"; all of them by default.
        shrinkage: 0 (none) to 1; None to estimate it.
        rows: Vectors in the sample.
        seed: Fixes the sample.

    Returns:
        An adapter named "whitening", for documents and queries alike. The mean square of the
        lengths of what it makes of the sample is 1; single vectors have any length.

    Raises:
        UsageError: Arguments out of range, or fewer than 2 different vectors.
        VectorError: Values that are not finite.
    """
    rows, seed = samples.whole(rows, "rows", 2), samples.whole(seed, "seed", 0)
    sample = samples.draw(vectors, rows, seed)
    kept = _check(kind, dim, shrinkage, sample.shape[1])
    mean, covariance, estimate = _moments(sample)
    share = estimate if shrinkage is None else float(shrinkage)
    values, columns = np.linalg.eigh(covariance)
    values, columns = np.maximum(values[::-1], 0), columns[:, ::-1]
    if not len(sample) or values[0] <= 0:
        raise UsageError(
            f"{len(sample)} vectors that are all the same cannot be whitened; give different ones"
        )
    matrix = _whitener(values, columns, share, kept, kind)
    offset = (-mean @ matrix).astype(np.float32)
    affine = Affine(matrix.astype(np.float32), offset)
    return Adapter(
        dim=sample.shape[1],
        documents=affine,
        queries=affine,
        name="whitening",
        reports=({"kind": kind, "rows": len(sample), "shrinkage": round(share, 6)},),
    )


def _check(kind: str, dim: int | None, shrinkage: float | None, width: int) -> int:
    """Return how many numbers are kept; UsageError where arguments are out of range."""
    if kind not in get_args(Whitening):
        raise UsageError(f'kind={show(kind)} is unknown; use "zca" or "pca"')
    if not isinstance(shrinkage, int | float | None) or not 0 <= (shrinkage or 0) <= 1:
        raise UsageError(f"shrinkage={show(shrinkage)} must be between 0 and 1")
    if dim is None:
        return width
    if samples.whole(dim, "dim", 2) > width:
        raise UsageError(f"dim={dim} is over the {width} numbers of a vector")
    if kind == "zca" and dim != width:
        raise UsageError(f'dim={dim}: "zca" keeps all {width} numbers; use kind="pca"')
    return dim


def _moments(sample: Vectors) -> tuple[NDArray[np.float64], Matrix, float]:
    """Mean, covariance, and how much Ledoit and Wolf would shrink it, 0 to 1."""
    count, dim = sample.shape
    mean = sample.mean(axis=0, dtype=np.float64) if count else np.zeros(dim)
    covariance, fourth = np.zeros((dim, dim)), 0.0
    for at in range(0, count, 4096):
        centred = sample[at : at + 4096] - mean
        covariance += centred.T @ centred
        fourth += float((np.einsum("ij,ij->i", centred, centred) ** 2).sum())
    covariance /= max(count, 1)
    level = np.trace(covariance) / dim
    squares = float((covariance * covariance).sum())
    # How far the sample's is from a sphere, and how far it is expected to be from the true one.
    apart = squares - dim * level * level
    off = (fourth / max(count, 1) - squares) / max(count, 1)
    return mean, covariance, float(np.clip(off / apart, 0, 1)) if apart > 0 else 1.0


def _whitener(
    values: NDArray[np.float64], columns: Matrix, share: float, kept: int, kind: Whitening
) -> Matrix:
    """The linear part: principal directions, each divided by its spread."""
    shrunk = (1 - share) * values + share * values.mean()
    varying = shrunk > LEAST_SPREAD * values[0]
    factors = np.where(varying, 1 / np.sqrt(np.where(varying, shrunk, 1)), 0)[:kept]
    # Variance there is, where it is divided by more.
    factors /= np.sqrt((factors * factors * values[:kept]).sum())
    matrix: Matrix = columns[:, :kept] * factors
    return matrix @ columns.T if kind == "zca" else matrix
