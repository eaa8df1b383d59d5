"""Which lists do vectors fall into? k-means under the Euclidean distance, and what keeps it level.

Lloyd's algorithm (1982). Distances are matrix products of float32 in slices that stay in the cache;
means and inertia are float64. Everything follows from the seed: no clock, no thread, no global
generator. Rows are finite and no longer than `vectors.LONGEST`; that is the caller's promise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecstore.vectors import Vectors, lengths

Labels = NDArray[np.intp]
Progress = Callable[[float], None]

# Rows of the sample that a list gets if there are that many, and those that it must have.
WANTED_A_LIST = 256
LEAST_A_LIST = 64
# From here on, regions of the sample are trained one by one.
TWO_LEVELS = 1024
# How many centroids the rows of a region meet when the lists of all regions are refined.
NEAR = 512
REFINEMENTS = 2
# Training ends when an iteration lowers the inertia by less than this share.
TOLERANCE = 1e-4
# A list of more than so many times the mean size is split, at the cost of a list of less than that.
LARGE = 2.0
SMALL = 0.5
# Scores of a slice: 1,024 rows against 512 centroids are 2 MiB.
SLICE_ROWS = 1024
SLICE_CENTROIDS = 512
SPLIT_ROUNDS = 8


def sample_size(rows: int, count: int) -> int:
    """How many of `rows` to train `count` lists with: 256 a list, or all if they are fewer."""
    return min(rows, WANTED_A_LIST * count)


def train(
    sample: Vectors,
    count: int,
    *,
    seed: int,
    iterations: int = 12,
    progress: Progress | None = None,
) -> Vectors:
    """Find the centres of lists by Lloyd's algorithm.

    Where the sample has no more than `count` rows, they are the centroids, repeated as often as
    needed. Thousands of lists are trained in two levels.

    Args:
        sample: float32 (n, dim), at least one row.
        count: How many lists, at least 1.
        seed: Equal seeds give equal centroids.
        iterations: At most so many; in two levels, so many in each.
        progress: Called with the share of the work that is done, up to 1.0.

    Returns:
        float32 (count, dim).
    """
    tick = _Ticker(progress)
    if count >= len(sample):
        centroids = sample[np.arange(count) % len(sample)]
    else:
        rng = np.random.default_rng(seed)
        job = _Job(sample, lengths(sample) ** 2, rng)
        if count < TWO_LEVELS:
            centroids = _flat(job, count, iterations, tick.part(0.0, 1.0))
        else:
            centroids = _two_levels(job, count, iterations, tick)
    tick(1.0)
    return centroids


def assign(vectors: Vectors, centroids: Vectors) -> tuple[Labels, Vectors]:
    """Find the nearest centroid of each row.

    Args:
        vectors: float32 (n, dim).
        centroids: float32 (count, dim), at least one; among equal ones the first is taken.

    Returns:
        intp (n,), and the squared distances, float32 (n,).
    """
    labels = _nearest(vectors, centroids)
    distances = np.empty(len(vectors), np.float32)
    for at in range(0, len(vectors), SLICE_ROWS):
        part = slice(at, at + SLICE_ROWS)
        # |x|^2 - 2 x.c + |c|^2 would lose the distances of rows that are close to their centroid.
        differences = vectors[part] - centroids[labels[part]]
        np.vecdot(differences, differences, out=distances[part])
    return labels, distances


def split(vectors: Vectors, *, seed: int) -> NDArray[np.bool_]:
    """Split rows in two by 2-means, neither half below a quarter; equal rows are halved.

    Args:
        vectors: float32 (n, dim).
        seed: Equal seeds give equal halves.

    Returns:
        bool (n,): which rows go to the second half; two rows or more are always parted.
    """
    n = len(vectors)
    second = np.zeros(n, np.bool_)
    if n < 2:
        return second
    centred = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    largest = float(np.abs(centred).max())
    if largest > 0:
        # Squares of very small or large numbers leave float32's range.
        centred /= largest
    shape = (vectors.shape[1],)
    axis: Vectors = np.random.default_rng(seed).standard_normal(shape, np.float32)
    for _ in range(2):
        axis = _unit(centred.T @ (centred @ axis))
    least = -(-n // 4)
    for _ in range(SPLIT_ROUNDS):
        before = second
        along = centred @ axis
        middle = 0.0
        if before.any():
            middle = float(along[before].mean() + along[~before].mean()) / 2
        beyond = int(np.count_nonzero(along > middle))
        size = min(max(beyond, least), n - least) if along.min() < along.max() else n // 2
        second = np.zeros(n, np.bool_)
        second[np.argsort(along, kind="stable")[n - size :]] = True
        if (second == before).all():
            break
        axis = _unit(centred[second].mean(axis=0) - centred[~second].mean(axis=0))
    return second


def _unit(vector: Vectors) -> Vectors:
    """The direction of a vector; zero stays zero."""
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length > 0 else vector


# Lloyd's algorithm


@dataclass(frozen=True, slots=True)
class _Job:
    """Rows to train with.

    Attributes:
        rows: float32 (n, dim).
        squares: Their squared lengths, float64 (n,).
        rng: Where all chance comes from.
    """

    rows: Vectors
    squares: NDArray[np.float64]
    rng: np.random.Generator

    def part(self, members: Labels) -> _Job:
        """The same of some rows."""
        return _Job(self.rows[members], self.squares[members], self.rng)


@dataclass(frozen=True, slots=True)
class _Lists:
    """What Lloyd's second step knows of the lists.

    Attributes:
        order: Rows, list by list.
        edges: Where each list begins in `order`, and the end, intp (count + 1,).
        means: float64 (count, dim); an empty list keeps its centroid.
        spreads: Sums of squared distances to the mean, float64 (count,).
    """

    order: Labels
    edges: Labels
    means: NDArray[np.float64]
    spreads: NDArray[np.float64]

    def members(self, number: int) -> Labels:
        """The rows of a list."""
        return self.order[self.edges[number] : self.edges[number + 1]]


class _Ticker:
    """Reports progress, never backwards."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0.0

    def __call__(self, done: float) -> None:
        if self._progress is not None and done > self._done:
            self._done = done
            self._progress(done)

    def part(self, start: float, stop: float) -> Progress:
        """The progress of a part of the work."""
        return lambda done: self(start + (stop - start) * done)


def _nearest(rows: Vectors, centroids: Vectors) -> Labels:
    """The nearest centroid of each row: the one with the largest x.c - |c|^2 / 2."""
    origin = centroids.mean(axis=0, dtype=np.float64)
    centred = centroids - origin
    # Distances from an origin amid the centroids round less, and unit scale cannot overflow.
    scale = 1 / (np.abs(centred).max() or 1.0)
    offsets = (np.vecdot(centred, centred) / 2 + centred @ origin) * scale
    columns, offsets = (centred * scale).astype(np.float32).T, offsets.astype(np.float32)
    labels = np.empty(len(rows), np.intp)
    for at in range(0, len(rows), SLICE_ROWS):
        part = slice(at, at + SLICE_ROWS)
        labels[part] = _largest(rows[part], columns, offsets)
    return labels


def _largest(rows: Vectors, columns: Vectors, offsets: Vectors) -> Labels:
    best = np.full(len(rows), -np.inf, np.float32)
    labels = np.zeros(len(rows), np.intp)
    every = np.arange(len(rows))
    for at in range(0, len(offsets), SLICE_CENTROIDS):
        scores = rows @ columns[:, at : at + SLICE_CENTROIDS]
        scores -= offsets[at : at + SLICE_CENTROIDS]
        first = scores.argmax(axis=1)
        found = scores[every, first]
        better = found > best
        best[better] = found[better]
        labels[better] = first[better] + at
    return labels


def _summarise(job: _Job, labels: Labels, centroids: Vectors) -> _Lists:
    """Lloyd's second step: the mean of each list."""
    count = len(centroids)
    # numpy sorts 16-bit integers by radix.
    keys = labels.astype(np.uint16) if count <= 1 << 16 else labels
    order = np.argsort(keys, kind="stable")
    sizes = np.bincount(labels, minlength=count)
    edges = np.concatenate(([0], np.cumsum(sizes)))
    means = centroids.astype(np.float64)
    for number in np.flatnonzero(sizes).tolist():
        members = order[edges[number] : edges[number + 1]]
        means[number] = job.rows[members].sum(axis=0, dtype=np.float64) / len(members)
    squares = np.bincount(labels, job.squares, count)
    # Huygens: the rows' squares about the origin are those about the mean, and the mean's.
    spreads = squares - sizes * np.vecdot(means, means)
    spreads[spreads < 1e-12 * squares] = 0.0
    return _Lists(order, edges, means, spreads)


def _flat(job: _Job, count: int, iterations: int, tick: Progress) -> Vectors:
    """Train all lists at once, beginning with random rows."""
    start = job.rng.choice(len(job.rows), count, replace=False)
    return _lloyd(job, job.rows[np.sort(start)], iterations, _nearest, tick)


def _lloyd(
    job: _Job,
    centroids: Vectors,
    iterations: int,
    nearest: Callable[[Vectors, Vectors], Labels],
    tick: Progress,
) -> Vectors:
    best = np.inf
    for iteration in range(iterations):
        lists = _summarise(job, nearest(job.rows, centroids), centroids)
        # Lists that change places have to settle before the end.
        settled = iteration + 2 >= iterations
        centroids, moved = _level(job, lists, SMALL if not settled else 0.0)
        inertia = float(lists.spreads.sum())
        tick((iteration + 1) / iterations)
        if not moved and inertia >= best * (1 - TOLERANCE):
            break
        best = inertia
    return centroids


def _level(job: _Job, lists: _Lists, small: float) -> tuple[Vectors, bool]:
    """Split large lists, and let empty or small ones be the other halves."""
    centroids = lists.means.astype(np.float32)
    moved = False
    for giver, taker in _exchanges(lists, small):
        members = lists.members(taker)
        rows = job.rows[members]
        second = split(rows, seed=int(job.rng.integers(1 << 32)))
        centroids[taker] = rows[~second].mean(axis=0, dtype=np.float64)
        centroids[giver] = rows[second].mean(axis=0, dtype=np.float64)
        moved = True
    return centroids, moved


def _exchanges(lists: _Lists, small: float) -> Iterator[tuple[int, int]]:
    """Pairs of a list that is given up and one that is split."""
    sizes = np.diff(lists.edges)
    mean = sizes.sum() / len(sizes)
    givers = np.argsort(sizes, kind="stable")
    givers = givers[(sizes[givers] == 0) | (sizes[givers] < small * mean)]
    splittable = np.flatnonzero((sizes > 1) & (lists.spreads > 0))
    large = splittable[sizes[splittable] > LARGE * mean]
    large = large[np.argsort(-sizes[large], kind="stable")]
    yield from zip(givers.tolist(), large.tolist(), strict=False)
    # Empty lists are never left over while there is anything to part.
    empty = givers[len(large) :][sizes[givers[len(large) :]] == 0]
    rest = np.setdiff1d(splittable, large)
    rest = rest[np.argsort(-lists.spreads[rest], kind="stable")]
    yield from zip(empty.tolist(), rest.tolist(), strict=False)


# Two levels


def _two_levels(job: _Job, count: int, iterations: int, tick: _Ticker) -> Vectors:
    """Train regions, the lists inside each, and then all lists against their neighbours."""
    regions = round(count**0.5)
    few = job.rng.choice(len(job.rows), sample_size(len(job.rows), regions), replace=False)
    parents = _flat(job.part(np.sort(few)), regions, iterations, tick.part(0.0, 0.1))
    inside = _summarise(job, _nearest(job.rows, parents), parents)
    shares = _allot(np.diff(inside.edges), count)
    lists = []
    for region, share in enumerate(shares.tolist()):
        part = job.part(inside.members(region))
        begin = 0.1 + 0.6 * region / regions
        if share == len(part.rows):
            lists.append(part.rows)
        elif share:
            ticker = tick.part(begin, begin + 0.6 / regions)
            lists.append(_flat(part, share, iterations, ticker))
    centroids = np.concatenate(lists)

    def nearest(rows: Vectors, centroids: Vectors) -> Labels:
        labels = np.empty(len(rows), np.intp)
        for region in range(regions):
            members = inside.members(region)
            near = _closest(inside.means[region], centroids)
            labels[members] = near[_nearest(rows[members], centroids[near])]
        return labels

    return _lloyd(job, centroids, REFINEMENTS, nearest, tick.part(0.7, 1.0))


def _closest(centre: NDArray[np.float64], centroids: Vectors) -> Labels:
    """The centroids that are nearest to the middle of a region, ascending."""
    if len(centroids) <= NEAR:
        return np.arange(len(centroids))
    differences = centroids - centre.astype(np.float32)
    found = np.argpartition(np.vecdot(differences, differences), NEAR)[:NEAR]
    return np.sort(found)


def _allot(sizes: Labels, count: int) -> Labels:
    """Share `count` lists out to regions in proportion to their rows, by largest remainders."""
    exact = sizes * (count / sizes.sum())
    shares: Labels = np.minimum(exact.astype(np.intp), sizes)
    while (left := count - int(shares.sum())) > 0:
        # A region of fewer rows than lists cannot take more.
        wishes = np.where(shares < sizes, exact - shares, -np.inf)
        shares[np.argsort(-wishes, kind="stable")[: min(left, int((shares < sizes).sum()))]] += 1
    return shares
