"""Which rotation makes prefixes of any vectors good small vectors?

An orthogonal matrix keeps every inner product of whole vectors, so it costs nothing at full length;
it decides only which numbers come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecstore.encoders.adapters import samples
from vecstore.encoders.adapters.adapter import Adapter, Affine
from vecstore.encoders.adapters.losses import Adam, Floats, nested_loss, wanted_shares
from vecstore.encoders.adapters.samples import Sampled
from vecstore.errors import UsageError
from vecstore.spec import show
from vecstore.vectors import Vectors

ROWS, STEPS, RATE = 50_000, 400, 1e-3
LEAST_ROWS = 16
# Of a batch: so many vectors, each with one of its nearest. Without near ones the loss would never
# see the differences that decide a ranking.
PAIRS, NEIGHBOURS, ANCHORS, LOOKED = 192, 8, 16_384, 8192
# The leading directions that are turned among each other; the others stay as they are.
LEAST_TURNED = 512
# What is kept to tell whether fitting gained anything.
HELD_SHARE, MOST_HELD, HELD_BATCHES = 5, 4096, 8
TOP, SHORTLIST, ASKED = 10, 100, 256
_AT_ONCE = 256
_DEFAULTS = (512, 256, 128, 64)

Matrix = NDArray[np.float64]


def fit_rotation(
    vectors: ArrayLike | Sampled,
    prefixes: Sequence[int] | None = None,
    *,
    steps: int = STEPS,
    rows: int = ROWS,
    seed: int = 0,
    progress: Callable[[float], object] | None = None,
) -> Adapter:
    """Fit an orthogonal matrix so that prefixes rank vectors as whole vectors do.

    It begins with the principal directions of a sample and descends, among matrices with
    orthonormal columns, along the gradient of a nested loss: what the similarities of each prefix
    lack of those of whole vectors. A fifth of the sample is not fitted to. On that part the vectors
    as they are, the principal directions and what was fitted are compared, and the best is taken;
    where nothing is better than the vectors as they are, that is the identity.

    Args:
        vectors: Numbers of shape (n, dim), or a collection of vectors or of text.
        prefixes: The lengths that matter; by default 512, 256, 128 and 64, as far as they are at
            most half of `dim`, or else half of it.
        steps: Steps of the descent; 0 for the principal directions alone.
        rows: Vectors in the sample.
        seed: Fixes the sample and the batches.
        progress: Called with the share that is done, 0 to 1.

    Returns:
        An adapter named "rotation" whose `mrl` are the prefixes and the whole. Its report has the
        loss on the part kept back ("loss": of "none", "principal" and "fitted"), which of them was
        taken ("chosen"), and for each prefix the share of the 10 nearest of whole vectors that are
        among the 100 nearest by prefix, before and after ("recall").

    Raises:
        UsageError: Prefixes that are none, or fewer than 16 different vectors.
        VectorError: Values that are not finite.
    """
    steps, rows = samples.whole(steps, "steps", 0), samples.whole(rows, "rows", LEAST_ROWS)
    seed = samples.whole(seed, "seed", 0)
    units = samples.distinct_units(samples.draw(vectors, rows, seed))
    sizes = _check_prefixes(prefixes, units.shape[1])
    if len(units) < LEAST_ROWS:
        raise UsageError(
            f"{len(units)} different vectors are too few to fit a rotation to; give at least"
            f" {LEAST_ROWS}, better some thousands"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(units))
    kept = min(max(len(units) // HELD_SHARE, 8), MOST_HELD)
    held, train = units[order[:kept]], units[order[kept:]]
    axes, spread = principal(train)
    fitted = _fit(train, axes, spread, sizes, steps, rng, progress or (lambda share: None))
    found = {"none": np.eye(len(axes)), "principal": axes, "fitted": fitted}
    losses = _losses(held, found, sizes, seed)
    chosen = min(losses, key=losses.__getitem__)
    matrix = found[chosen].astype(np.float32)
    return _adapter(matrix, chosen, losses, _recalls(train, held, matrix, sizes), sizes)


def _adapter(
    matrix: Vectors,
    chosen: str,
    losses: dict[str, float],
    recall: dict[str, list[float]],
    sizes: tuple[int, ...],
) -> Adapter:
    report = {"kind": "rotation", "chosen": chosen, "loss": losses, "recall": recall}
    dim = len(matrix)
    if chosen == "none":
        return Adapter(dim=dim, mrl=(*sizes, dim), reports=(report,))
    affine = Affine(matrix)
    return Adapter(
        dim=dim,
        documents=affine,
        queries=affine,
        mrl=(*sizes, dim),
        name="rotation",
        reports=(report,),
    )


def _check_prefixes(prefixes: Sequence[int] | None, dim: int) -> tuple[int, ...]:
    if prefixes is None:
        return tuple(sorted(size for size in _DEFAULTS if size <= dim // 2)) or (dim // 2,)
    # One that is no sequence is refused with those that are too long.
    listed = list(prefixes) if isinstance(prefixes, Iterable) else []
    if not listed or not all(type(size) is int and 0 < size < dim for size in listed):
        raise UsageError(
            f"prefixes={show(prefixes)} must be lengths between 1 and {dim - 1}, fewer than the"
            f" {dim} numbers of a vector"
        )
    return tuple(sorted(set(listed)))


def principal(vectors: Vectors) -> tuple[Matrix, NDArray[np.float64]]:
    """The eigenvectors of the second moment, as columns, largest first, and its eigenvalues.

    Each has its largest component positive, so that they are the same whatever LAPACK does.
    """
    moment = np.zeros((vectors.shape[1],) * 2)
    for at in range(0, len(vectors), 4096):
        wide = vectors[at : at + 4096].astype(np.float64)
        moment += wide.T @ wide
    values, columns = np.linalg.eigh(moment / max(len(vectors), 1))
    values, columns = values[::-1], columns[:, ::-1]
    largest = np.abs(columns).argmax(axis=0)
    signs = np.where(columns[largest, np.arange(len(values))] < 0, -1.0, 1.0)
    return columns * signs, np.maximum(values, 0)


def _fit(
    train: Vectors,
    axes: Matrix,
    spread: NDArray[np.float64],
    sizes: tuple[int, ...],
    steps: int,
    rng: np.random.Generator,
    progress: Callable[[float], object],
) -> Matrix:
    """An orthogonal matrix whose first columns were fitted, and whose others follow by variance."""
    turned = min(len(axes), max(2 * sizes[-1], LEAST_TURNED))
    batches = _Batches(train, rng)
    leading = (train @ axes[:, :turned].astype(np.float32)).astype(np.float32)
    columns = np.eye(turned, sizes[-1], dtype=np.float32)
    adam = Adam(RATE, max(steps, 1))
    for step in range(steps):
        picked = batches.next()
        points = leading[picked]
        wanted, logs = wanted_shares(train[picked])
        _, by_points = nested_loss(wanted, logs, points @ columns, sizes)
        gradient = along_columns(columns, points.T @ by_points)
        columns = nearest_orthonormal(columns - adam.step(gradient))
        progress((step + 1) / steps)
    basis = _complete(columns.astype(np.float64), spread[:turned])
    return np.hstack([axes[:, :turned] @ basis, axes[:, turned:]])


@dataclass
class _Batches:
    """Draws some vectors at random, and beside each one that is near."""

    train: Vectors
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self._anchors = self.rng.permutation(len(self.train))[:ANCHORS]
        self._near = _nearest(self.train, self._anchors, self.rng)

    def next(self) -> NDArray[np.intp]:
        """Places in the sample, without one twice."""
        picked = self.rng.permutation(len(self._anchors))[:PAIRS]
        beside = self.rng.integers(0, self._near.shape[1], len(picked))
        both = np.concatenate([self._anchors[picked], self._near[picked, beside]])
        return np.unique(both)


def _nearest(
    vectors: Vectors, anchors: NDArray[np.intp], rng: np.random.Generator
) -> NDArray[np.intp]:
    """The nearest of each anchor among as many unit vectors as is quick, itself left out."""
    looked = min(LOOKED, len(vectors))
    count = min(NEIGHBOURS, looked - 1)
    parts = []
    for at in range(0, len(anchors), _AT_ONCE):
        part = anchors[at : at + _AT_ONCE]
        # Others for each part, so that all of the sample takes part.
        among = rng.permutation(len(vectors))[:looked]
        scores = vectors[part] @ vectors[among].T
        scores[among == part[:, None]] = -np.inf
        parts.append(among[np.argpartition(-scores, count - 1, axis=1)[:, :count]])
    return np.concatenate(parts)


def along_columns(columns: Floats, gradient: Floats) -> Floats:
    """The part of a gradient along orthonormal matrices (Edelman, Arias and Smith 1998)."""
    inner = columns.T @ gradient
    found: Floats = gradient - columns @ ((inner + inner.T) / 2)
    return found


def nearest_orthonormal(columns: Floats) -> Floats:
    """The nearest matrix with orthonormal columns, of one that is almost so.

    Two steps of Newton and Schulz for the polar factor: each squares the error.
    """
    for _ in range(2):
        columns = 1.5 * columns - columns @ (columns.T @ columns) / 2
    return columns


def _complete(columns: Matrix, spread: NDArray[np.float64]) -> Matrix:
    """A square orthogonal matrix that begins with these columns, the others by their variance."""
    columns, count = nearest_orthonormal(columns), columns.shape[1]
    rest = np.linalg.qr(columns, mode="complete")[0][:, count:]
    rest -= columns @ (columns.T @ rest)
    turn = np.linalg.eigh(rest.T @ (spread[:, None] * rest))[1][:, ::-1]
    return nearest_orthonormal(np.hstack([columns, rest @ turn]))


def _losses(
    held: Vectors, found: dict[str, Matrix], sizes: tuple[int, ...], seed: int
) -> dict[str, float]:
    """The mean loss of each matrix on the same batches of vectors that were kept back."""
    batches = _Batches(held, np.random.default_rng(seed))
    picked = [batches.next() for _ in range(HELD_BATCHES)]
    losses = {}
    for name, matrix in found.items():
        first = matrix[:, : sizes[-1]].astype(np.float32)
        parts = [
            nested_loss(*wanted_shares(held[places]), held[places] @ first, sizes)[0]
            for places in picked
        ]
        losses[name] = round(float(np.mean(parts)), 6)
    return losses


def _recalls(
    rows: Vectors, held: Vectors, matrix: Vectors, sizes: tuple[int, ...]
) -> dict[str, list[float]]:
    """Of each prefix, how many true neighbours are in its shortlist: before and after."""
    asked = held[:ASKED]
    top = min(TOP, len(rows))
    true = np.argpartition(-(asked @ rows.T), top - 1, axis=1)[:, :top]
    first = matrix[:, : sizes[-1]]
    spaces = ((rows, asked), (rows @ first, asked @ first))
    return {
        str(size): [
            round(shortlist_recall(space[:, :size], there[:, :size], true, SHORTLIST), 4)
            for space, there in spaces
        ]
        for size in sizes
    }


def shortlist_recall(rows: Vectors, asked: Vectors, true: NDArray[np.intp], count: int) -> float:
    """The share of rows, (m, k) for each asked, that are among the nearest `count` by cosine."""
    sizes = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    scores = (asked @ rows.T) / np.where(sizes > 0, sizes, 1)
    count = min(count, len(rows))
    listed = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    hits = [np.isin(wanted, found).mean() for wanted, found in zip(true, listed, strict=True)]
    return float(np.mean(hits))
