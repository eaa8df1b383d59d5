"""What was learned from a sample of the vectors? Matrices, centroids and the shape of the codes.

A model is immutable and knows nothing of the file. Its matrices are int8 with a scale a row: what
they hold, and not what they were rounded from, is what rows are coded with, so nothing is lost but
a little of the bases' being orthonormal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore.ann import codes, kmeans, rotation
from vecstore.ann.codes import Codes
from vecstore.index_layout import CodeShape
from vecstore.lazy import lazy
from vecstore.spec import CODE_BITS, FINE_BITS, Metric, Tiers
from vecstore.vectors import Vectors, lengths, unit

Progress = Callable[[float], None]

# Centroids live in so many leading directions; more cost more than they tell lists apart.
COARSE = 128
# Rows and columns of matrices are filled up to multiples, and lie in blocks of so many rows and
# FOUR columns, for the kernels.
ROWS_AT_ONCE, COLUMNS_AT_ONCE, FOUR = 16, 16, 4
# The most dims that are turned by a matrix: beyond, it would be larger than what it turns.
DENSE = 1024
# The most rows that principal directions are computed from.
DIRECTIONS_SAMPLE = 50_000
CODED_AT_ONCE = 16_384
# What the mean is computed from: rows, and which of them lie too far out, in median distances.
MEAN_SAMPLE, FAR_OUT = 4096, 4.0
# Unit vectors point in much the same direction if, less their mean, their mean square is below.
PARALLEL = 0.5


@dataclass(frozen=True, slots=True)
class Matrix:
    """An int8 matrix with a scale a row, filled up with zeros.

    Attributes:
        values: uint8 (blocks of rows, fours of columns, 64): of each 4 columns the numbers of 16
            rows, row by row, plus 128.
        scales: float32 (rows with filling,).
        rows: How many rows are not filling.
        columns: How many columns are not.
    """

    values: NDArray[np.uint8]
    scales: Vectors
    rows: int
    columns: int

    @classmethod
    def of(cls, matrix: Vectors) -> Matrix:
        """Round a matrix, float32 (rows, columns)."""
        rows, columns = matrix.shape
        shape = (_fill(rows, ROWS_AT_ONCE), _fill(columns, COLUMNS_AT_ONCE))
        values, scales = np.zeros(shape, np.int16), np.zeros(shape[0], np.float32)
        largest = np.abs(matrix).max(axis=1, initial=0.0) / 127
        scales[:rows] = np.where(largest > 0, largest, 1.0)
        values[:rows, :columns] = np.rint(matrix / scales[:rows, None])
        blocks = (values + 128).astype(np.uint8).reshape(-1, ROWS_AT_ONCE, shape[1] // FOUR, FOUR)
        laid = blocks.transpose(0, 2, 1, 3).reshape(len(blocks), -1, ROWS_AT_ONCE * FOUR)
        return cls(np.ascontiguousarray(laid), scales, rows, columns)

    def floats(self) -> Vectors:
        """The matrix that this one stands for, float32 (rows, columns)."""
        return unpack(self.values)[: self.rows, : self.columns] * self.scales[: self.rows, None]


def unpack(values: NDArray[np.uint8]) -> Vectors:
    """The numbers of a matrix, float32 (rows with filling, columns with filling)."""
    blocks = values.reshape(*values.shape[:2], ROWS_AT_ONCE, FOUR).transpose(0, 2, 1, 3)
    return blocks.reshape(len(values) * ROWS_AT_ONCE, -1).astype(np.float32) - 128


def _fill(count: int, multiple: int) -> int:
    return max(1, -(-count // multiple)) * multiple


@dataclass(frozen=True)
class Model:
    """How vectors of a collection are put into lists and coded.

    Attributes:
        metric: The collection's metric.
        bits: Bits of code a dimension: 1, 2 or 4.
        coarse: How many dimensions centroids have.
        coded: How many dimensions are coded.
        directions: (any, dim): the first `coarse` ones are the dimensions of the centroids, the
            first `coded` ones those of the codes before they are turned. Where there are not so
            many, these are the first numbers of a vector.
        signs: int8 (rounds, dim), how what is coded is turned: see `rotation.turn`.
        centroids: (lists + 1, coarse); the last one is the mean, for rows in no list.
        mean: float32 (dim,), subtracted from vectors before they are put into lists and coded.
        closed: bool (lists,), lists that are empty and not in use.
        distances: Whether what codes estimate is minus half the squared distance, and not the
            inner product: under l2, and under cosine where vectors point in much the same
            direction. Unit vectors are ranked alike by both, but a code is off in proportion to
            the length of the query, and of a distance only to that of the query less the mean.
    """

    metric: Metric
    bits: int
    coarse: int
    coded: int
    directions: Matrix
    signs: NDArray[np.int8]
    centroids: Matrix
    mean: Vectors
    closed: NDArray[np.bool_]
    distances: bool

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return len(self.mean)

    @property
    def lists(self) -> int:
        """How many lists there are, closed ones too."""
        return self.centroids.rows - 1

    @property
    def groups(self) -> int:
        """Groups of 4 bits of a code."""
        return codes.groups_of(self.coded, self.bits)

    @property
    def schedule(self) -> Tiers:
        """Dims and bits of short codes, and of fine ones."""
        return (self.coded, self.bits), (self.dim, FINE_BITS)

    @property
    def shape(self) -> CodeShape:
        """What codes look like."""
        return CodeShape(self.groups, self.distances, self.dim)

    @lazy
    def patterns(self) -> Vectors:
        """What the 16 values of a group stand for, float32 (4 / bits, 16)."""
        return np.ascontiguousarray(codes.patterns(self.bits))

    @lazy
    def reducing(self) -> Vectors:
        """What makes vectors comparable with centroids, float32 (coarse, dim)."""
        return self._leading(self.coarse)

    def _leading(self, count: int) -> Vectors:
        """The first directions, float32 (count, dim)."""
        if self.directions.rows >= count:
            return self.directions.floats()[:count]
        return np.eye(count, self.dim, dtype=np.float32)

    @lazy
    def rotating(self) -> Vectors:
        """What makes vectors comparable with codes, float32 (coded, dim)."""
        return rotation.turn(np.ascontiguousarray(self._leading(self.coded).T), self.signs).T

    def rotate(self, vectors: Vectors) -> Vectors:
        """Vectors as codes describe them, float32 (n, coded)."""
        if self.coded <= DENSE:
            return vectors @ self.rotating.T
        first = vectors[:, : self.coded]
        if self.directions.rows >= self.coded:
            first = vectors @ self._leading(self.coded).T
        return rotation.turn(first, self.signs)

    @lazy
    def _turning(self) -> Vectors:
        return rotation.turn(np.eye(self.dim, dtype=np.float32), self.signs)

    def turn(self, vectors: Vectors) -> Vectors:
        """Vectors as fine codes describe them, float32 (n, dim)."""
        return vectors @ self._turning if self.dim <= DENSE else rotation.turn(vectors, self.signs)

    @property
    def turns(self) -> codes.Turns:
        """How residuals are turned before they are coded."""
        return codes.Turns(self.rotate, self.turn)

    @lazy
    def centres(self) -> Vectors:
        """The centroids in float32, (lists + 1, coarse)."""
        return self.centroids.floats()

    @lazy
    def bias(self) -> Vectors:
        """What is added to a query's product with each centroid, float32 (lists + 1,)."""
        bias = np.zeros(self.lists + 1)
        if self.distances:
            # Not their own lengths: rounded directions are a little off being orthonormal.
            wide, reducing = (part.astype(np.float64) for part in (self.centres, self.reducing))
            bias -= 0.5 * np.vecdot(wide @ (reducing @ reducing.T), wide)
        bias[:-1][self.closed] = -np.inf
        return bias.astype(np.float32)

    def centred(self, vectors: Vectors) -> Vectors:
        """Vectors as they are coded."""
        if self.metric == "cosine":
            # Stored with few bits they are off unit length by more than neighbours may differ by.
            vectors = unit(vectors)
        return vectors - self.mean

    def aimed(self, queries: Vectors) -> Vectors:
        """Queries as they are compared with codes: of a product the mean takes off a constant."""
        return queries - self.mean if self.distances else queries

    def assign(self, vectors: Vectors) -> NDArray[np.intp]:
        """The nearest list of each vector, (n,)."""
        open_lists = np.flatnonzero(~self.closed)
        centres = self.centres[:-1][open_lists]
        nearest = np.empty(len(vectors), np.intp)
        for at in range(0, len(vectors), CODED_AT_ONCE):
            part = self.centred(vectors[at : at + CODED_AT_ONCE]) @ self.reducing.T
            nearest[at : at + CODED_AT_ONCE] = kmeans.assign(part, centres)[0]
        return open_lists[nearest]

    def encode(
        self,
        vectors: Vectors,
        lists: NDArray[np.intp] | None,
        rows: NDArray[np.uint32],
        *,
        fine: bool = True,
    ) -> Codes:
        """Code vectors, each in its list; with None those that are in no list."""
        parts = []
        for at in range(0, len(vectors), CODED_AT_ONCE):
            part = slice(at, at + CODED_AT_ONCE)
            which = np.full(len(rows[part]), self.lists) if lists is None else lists[part]
            centres = self.centres[which] @ self.reducing
            residuals = self.centred(vectors[part]) - centres
            named = rows[part]
            parts.append(
                codes.encode(
                    residuals,
                    centres if self.distances else None,
                    self.turns,
                    self.bits,
                    named,
                    fine=fine,
                )
            )
        return codes.join([codes.empty(self.groups, self.dim), *parts])

    def with_lists(self, centres: Vectors, closed: NDArray[np.bool_]) -> Model:
        """The model with other lists: centroids, float32 (lists + 1, coarse)."""
        return replace(self, centroids=Matrix.of(centres), closed=closed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a model is to look like: (coded dims, bits) of the codes, and how many lists."""

    lists: int
    coded: int
    bits: int


def train(
    sample: Vectors,
    shape: Shape,
    metric: Metric,
    *,
    seed: int,
    directions: Vectors | None = None,
    progress: Progress | None = None,
) -> Model:
    """Learn a model from a sample, float32 (n, dim).

    `directions` are those of `principal`, if they are known.
    """
    dim = sample.shape[1]
    mean, distances = _middle(sample, metric)
    if directions is None:
        directions = principal(sample, metric)
    coarse = min(COARSE, dim)
    reducing = Matrix.of(directions[:coarse]).floats()
    reduced = np.ascontiguousarray((sample - mean) @ reducing.T, np.float32)
    centres = kmeans.train(reduced, shape.lists, seed=seed, progress=progress)
    return Model(
        metric=metric,
        bits=shape.bits,
        coarse=coarse,
        coded=shape.coded,
        directions=_wanted(directions, coarse, shape.coded),
        signs=rotation.signs(dim, seed),
        centroids=Matrix.of(np.concatenate([centres, np.zeros((1, coarse), np.float32)])),
        mean=mean,
        closed=np.zeros(shape.lists, bool),
        distances=distances,
    )


def principal(sample: Vectors, metric: Metric) -> Vectors:
    """The principal directions of a sample, float32 (dim, dim), as a model of it has them."""
    part = sample[:DIRECTIONS_SAMPLE]
    # What counts is where products come from: queries have the mean that vectors are taken less.
    return rotation.principal(part, centre=_middle(part, metric)[1])


def _middle(sample: Vectors, metric: Metric) -> tuple[Vectors, bool]:
    """The mean of a sample, and whether codes are to estimate distances.

    The mean is that of all but the rows far out: a few would pull it away from all others.
    """
    few = sample[:: max(1, len(sample) // MEAN_SAMPLE)]
    if not len(few):
        return np.zeros(sample.shape[1], np.float32), metric == "l2"
    away = lengths(few - np.median(few, axis=0).astype(np.float32))
    near = few[away <= FAR_OUT * np.median(away)]
    mean = near.mean(axis=0, dtype=np.float64).astype(np.float32)
    left = few - mean
    parallel = metric == "cosine" and bool(np.vecdot(left, left).mean() < PARALLEL)
    return mean, metric == "l2" or parallel


def recode(model: Model, directions: Vectors, coded: int, bits: int) -> Model:
    """The model with the same lists and other codes, of own numbers if directions are fewer."""
    wanted = _wanted(directions, model.coarse, coded)
    return replace(model, bits=bits, coded=coded, directions=wanted)


def own(model: Model) -> Model:
    """The model with the same lists, as far as the vectors' own first numbers tell them apart."""
    centres = model.centres @ model.reducing[:, : model.coarse]
    none = np.zeros((0, model.dim), np.float32)
    return replace(model, directions=Matrix.of(none), centroids=Matrix.of(centres))


def _wanted(directions: Vectors, coarse: int, coded: int) -> Matrix:
    """As many directions as centroids and codes need, if there are any."""
    # Codes of all dimensions need no principal ones: any rotation will do.
    return Matrix.of(directions[: coarse if coded == len(directions) else max(coarse, coded)])


def untrained(
    sample: Vectors, metric: Metric, *, seed: int, coded: int | None = None, bits: int = 1
) -> Model:
    """A model without lists: codes of own numbers. Of the sample it takes only the mean.

    `coded` are the leading dims that codes describe, by default all.
    """
    dim, (mean, distances) = sample.shape[1], _middle(sample, metric)
    return Model(
        metric=metric,
        bits=bits,
        coarse=1,
        coded=dim if coded is None else coded,
        directions=Matrix.of(np.zeros((0, dim), np.float32)),
        signs=rotation.signs(dim, seed),
        centroids=Matrix.of(np.zeros((1, 1), np.float32)),
        mean=mean,
        closed=np.zeros(0, bool),
        distances=distances,
    )


# As the file keeps it


MATRICES = "directions", "centroids"


def to_parts(model: Model) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A model as plain values, and arrays by name."""
    matrices = {name: getattr(model, name) for name in MATRICES}
    values = {
        "bits": model.bits,
        "coarse": model.coarse,
        "coded": model.coded,
        "distances": model.distances,
        "shapes": {name: [matrix.rows, matrix.columns] for name, matrix in matrices.items()},
    }
    arrays: dict[str, NDArray[Any]] = {
        "mean": model.mean,
        "closed": model.closed.astype(np.uint8),
        "signs": model.signs,
    }
    for name, matrix in matrices.items():
        arrays[name] = matrix.values
        arrays[f"{name}_scales"] = matrix.scales
    return values, arrays


def from_parts(metric: Metric, values: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Model:
    """The model of `to_parts`."""
    directions, centroids = (
        Matrix(arrays[name], arrays[f"{name}_scales"], *values["shapes"][name]) for name in MATRICES
    )
    return Model(
        metric=metric,
        bits=values["bits"],
        coarse=values["coarse"],
        coded=values["coded"],
        directions=directions,
        signs=arrays["signs"],
        centroids=centroids,
        mean=arrays["mean"],
        closed=arrays["closed"].astype(bool),
        distances=values.get("distances", metric == "l2"),
    )


def check(model: Model, dim: int) -> None:
    """Raise ValueError if the parts of a model do not fit one another, or vectors of `dim`."""
    counts = [model.bits, model.coarse, model.coded]
    for name in MATRICES:
        counts += [getattr(model, name).rows, getattr(model, name).columns]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"counts {counts}")
    parts = {
        "mean": (model.mean.shape, (dim,)),
        "signs": (model.signs.shape, (rotation.ROUNDS, dim)),
        "directions": (model.directions.columns, dim),
        "centroids": (model.centroids.columns, model.coarse),
        "closed": (model.closed.shape, (model.centroids.rows - 1,)),
    }
    for name, (found, wanted) in parts.items():
        if found != wanted:
            raise ValueError(f"{name} is {found}, not {wanted}")
    known = {"l2": (True,), "dot": (False,)}.get(model.metric, (True, False))
    if type(model.distances) is not bool or model.distances not in known:
        raise ValueError(f"distances={model.distances!r} under {model.metric}")
    if model.bits not in CODE_BITS or not 0 < model.coded <= dim:
        raise ValueError(f"{model.bits} bits of {model.coded} dims")
    if not 0 < model.coarse <= dim:
        raise ValueError(f"centroids of {model.coarse} dims")
    if model.signs.dtype != np.int8 or (np.abs(model.signs) != 1).any():
        raise ValueError(f"signs of {model.signs.dtype}, or some that are neither 1 nor -1")
    for name in MATRICES:
        _check_matrix(name, getattr(model, name))
    if model.mean.dtype != np.float32 or not np.isfinite(model.mean).all():
        raise ValueError(f"a mean of {model.mean.dtype}, or one that is not finite")


def _check_matrix(name: str, matrix: Matrix) -> None:
    rows, columns = _fill(matrix.rows, ROWS_AT_ONCE), _fill(matrix.columns, COLUMNS_AT_ONCE)
    shape = (rows // ROWS_AT_ONCE, columns // FOUR, ROWS_AT_ONCE * FOUR)
    if matrix.values.shape != shape or matrix.scales.shape != (rows,):
        raise ValueError(f"{name} has shape {matrix.values.shape}, not {shape}")
    if matrix.values.dtype != np.uint8 or matrix.scales.dtype != np.float32:
        raise ValueError(f"{name} is of {matrix.values.dtype} and {matrix.scales.dtype}")
    if not np.isfinite(matrix.scales).all():
        raise ValueError(f"{name} has a scale that is not finite")
