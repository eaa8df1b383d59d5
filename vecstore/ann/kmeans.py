"""Which lists do vectors fall into? k-means under the Euclidean distance, and what keeps it level.

Lloyd's algorithm (1982). Scores are matrix products of float32 in slices that stay in the cache;
means and inertia are float64. Everything follows from the seed: no clock, no thread, no global
generator. Rows are finite and no longer than `vectors.LONGEST`; that is the caller's promise.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecstore.vectors import Vectors, lengths

Labels = NDArray[np.intp]
Progress = Callable[[float], None]

# Rows to train a list with: as many as wanted while they are not too many, and never fewer than
# the least while there are any.
WANTED_A_LIST = 256
LEAST_A_LIST = 64
AMPLE = 1 << 18
# From here on, rows meet only the centroids near to where they are.
MANY = 1024
# How many: those of a list in each iteration, and those of a region in the first.
NEAR_LIST = 128
NEAR_REGION = 512
# Training ends when an iteration lowers the inertia by less than this share.
TOLERANCE = 1e-4
# A list of more than so many times the mean size is split, at the cost of one of less than that.
LARGE = 2.0
SMALL = 0.5
# Scores of a slice: 1,024 rows against 512 centroids are 2 MiB.
SLICE_ROWS = 1024
SLICE_CENTROIDS = 512
SPLIT_ROUNDS = 8


def sample_size(rows: int, count: int) -> int:
    """How many of `rows` to train `count` lists with: 256 a list, 64 if lists are thousands."""
    return min(rows, max(LEAST_A_LIST * count, min(WANTED_A_LIST * count, AMPLE)))


def train(
    sample: Vectors,
    count: int,
    *,
    seed: int,
    iterations: int = 12,
    progress: Progress | None = None,
) -> Vectors:
    """Find the centres of lists by Lloyd's algorithm.

    Large lists are split, and empty or small ones given up for that, so that no list is much
    larger than the mean unless its rows are equal. Where the sample has no more than `count` rows,
    they are the centroids, repeated as often as needed.

    Args:
        sample: float32 (n, dim), at least one row.
        count: How many lists, at least 1.
        seed: Equal seeds give equal centroids.
        iterations: At most so many, at least 1.
        progress: Called with the share of the work that is done, ascending, at last 1.0.

    Returns:
        float32 (count, dim).
    """
    tell = progress or (lambda done: None)
    if count >= len(sample):
        centroids = sample[np.arange(count) % len(sample)]
    else:
        job = _Job(sample, lengths(sample) ** 2, np.random.default_rng(seed))
        centroids = _train(job, count, iterations, tell)
    tell(1.0)
    return centroids


def assign(vectors: Vectors, centroids: Vectors) -> tuple[Labels, Vectors]:
    """Find the nearest centroid of each row.

    Args:
        vectors: float32 (n, dim).
        centroids: float32 (count, dim), at least one; among equal ones the first is taken.

    Returns:
        intp (n,), and the squared distances, float32 (n,).
    """
    labels = _nearest(vectors, *_scorer(centroids))
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
    if len(vectors) < 2:
        return np.zeros(len(vectors), np.bool_)
    return _two_means(vectors, -(-len(vectors) // 4), seed)


def _two_means(vectors: Vectors, least: int, seed: int) -> NDArray[np.bool_]:
    """Split two rows or more by 2-means from either side of their mean, at least `least` each."""
    centred = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    largest = float(np.abs(centred).max())
    if largest > 0:
        # Squares of very small or large numbers leave float32's range.
        centred /= largest
    shape = (vectors.shape[1],)
    axis: Vectors = np.random.default_rng(seed).standard_normal(shape, np.float32)
    for _ in range(2):
        axis = _unit(centred.T @ (centred @ axis))
    second = np.zeros(len(vectors), np.bool_)
    for _ in range(SPLIT_ROUNDS):
        before, second = second, _beyond_middle(centred @ axis, second, least)
        if (second == before).all():
            break
        axis = _unit(centred[second].mean(axis=0) - centred[~second].mean(axis=0))
    return second


def _beyond_middle(along: Vectors, before: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    """Which rows are nearer to the mean of the second half, as far as the least size allows."""
    n = len(along)
    middle = 0.0
    if before.any():
        middle = float(along[before].mean() + along[~before].mean()) / 2
    size = n // 2
    if along.min() < along.max():
        size = min(max(int(np.count_nonzero(along > middle)), least), n - least)
    second = np.zeros(n, np.bool_)
    second[np.argsort(along, kind="stable")[n - size :]] = True
    return second


def _unit(vector: Vectors) -> Vectors:
    """The direction of a vector; zero stays zero."""
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length > 0 else vector


# Lloyd's algorithm


@dataclass(frozen=True, slots=True)
class _Job:
    """What to train with.

    Attributes:
        rows: float32 (n, dim).
        squares: Their squared lengths, float64 (n,).
        rng: Where all chance comes from.
    """

    rows: Vectors
    squares: NDArray[np.float64]
    rng: np.random.Generator


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


def _train(job: _Job, count: int, iterations: int, tell: Progress) -> Vectors:
    # k-means++ on a sub-sample lowered the inertia of real embeddings by less than 0.4 %, and did
    # not raise recall beyond what another seed does.
    start = np.sort(job.rng.choice(len(job.rows), count, replace=False))
    centroids, best = job.rows[start], np.inf
    lists = _regions(job, centroids) if count >= MANY else None
    for iteration in range(1, iterations + 1):
        # Half-way one comparison with all brings home the rows that are far from their list.
        if lists is None or count < MANY or 2 * iteration in (iterations, iterations + 1):
            labels = _nearest(job.rows, *_scorer(centroids))
        else:
            labels = _nearest_about(job, centroids, lists)
        lists = _summarise(job, labels, centroids)
        # A list that has just been split has to settle before the end.
        centroids, moved = _level(job, lists, LARGE if iteration < iterations else np.inf)
        inertia = float(lists.spreads.sum())
        if not moved and inertia >= best * (1 - TOLERANCE):
            break
        best = inertia
        if iteration < iterations:
            tell(iteration / iterations)
    return centroids


def _regions(job: _Job, centroids: Vectors) -> _Lists:
    """Gather the rows about some of the centroids, as if these were all."""
    few = job.rng.choice(len(centroids), round(len(centroids) ** 0.5), replace=False)
    parents = centroids[np.sort(few)]
    return _summarise(job, _nearest(job.rows, *_scorer(parents)), parents)


def _nearest_about(job: _Job, centroids: Vectors, lists: _Lists) -> Labels:
    """The nearest centroid of each row, among those about the list where it is."""
    directions, offsets = _scorer(centroids)
    labels = np.empty(len(job.rows), np.intp)
    # Rows rarely change to a list far away: inertia comes within 1 % of that of all comparisons.
    wanted = NEAR_LIST if len(lists.means) == len(centroids) else NEAR_REGION
    near = _closest(lists.means, directions, offsets, wanted)
    for number in np.flatnonzero(np.diff(lists.edges)).tolist():
        members, others = lists.members(number), near[number]
        found = _nearest(job.rows[members], directions[others], offsets[others])
        labels[members] = others[found]
    return labels


def _scorer(centroids: Vectors) -> tuple[Vectors, Vectors]:
    """What makes the nearest centroid of x that of the largest x.direction - offset.

    |x - c|^2 without |x|^2, halved, about an origin amid the centroids, where products round less,
    and divided by a scale, so that no square leaves float32's range.
    """
    origin = centroids.mean(axis=0, dtype=np.float64)
    centred = centroids - origin
    scale = 1 / (float(np.abs(centred).max()) or 1.0)
    offsets = (np.vecdot(centred, centred) / 2 + centred @ origin) * scale
    return (centred * scale).astype(np.float32), offsets.astype(np.float32)


def _nearest(rows: Vectors, directions: Vectors, offsets: Vectors) -> Labels:
    labels = np.empty(len(rows), np.intp)
    for at in range(0, len(rows), SLICE_ROWS):
        part = slice(at, at + SLICE_ROWS)
        labels[part] = _nearest_in_cache(rows[part], directions, offsets)
    return labels


def _nearest_in_cache(rows: Vectors, directions: Vectors, offsets: Vectors) -> Labels:
    every = np.arange(len(rows))
    labels, best = [], []
    for at in range(0, len(offsets), SLICE_CENTROIDS):
        few = slice(at, at + SLICE_CENTROIDS)
        scores = rows @ directions[few].T
        scores -= offsets[few]
        first: Labels = scores.argmax(axis=1)
        if len(offsets) <= SLICE_CENTROIDS:
            return first
        labels.append(first + at)
        best.append(scores[every, first])
    found: Labels = np.stack(labels)[np.argmax(best, axis=0), every]
    return found


def _closest(
    points: NDArray[np.float64], directions: Vectors, offsets: Vectors, wanted: int
) -> Labels:
    """The nearest centroids of each point, as many as wanted, ascending by number."""
    wanted = min(wanted, len(offsets))
    found = np.empty((len(points), wanted), np.intp)
    for at in range(0, len(points), SLICE_ROWS):
        distances = offsets - points[at : at + SLICE_ROWS].astype(np.float32) @ directions.T
        found[at : at + SLICE_ROWS] = np.argpartition(distances, wanted - 1)[:, :wanted]
    # Among equal scores the lowest number is to win, as it does among all.
    found.sort(axis=1)
    return found


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
    # What is left of equal rows is rounding.
    spreads[spreads < 1e-12 * squares] = 0.0
    return _Lists(order, edges, means, spreads)


# Sizes


def _level(job: _Job, lists: _Lists, large: float) -> tuple[Vectors, bool]:
    """Split lists of more than `large` times the mean, and others while there are empty ones.

    Returns:
        The means with those of the halves among them, float32 (count, dim), and whether any list
        was split.
    """
    centroids = lists.means.astype(np.float32)
    sizes = np.diff(lists.edges)
    limit = large * len(job.rows) / len(sizes)
    givers = _givers(sizes)
    # No number stands twice in the queue, so members are never compared.
    queue = [(-int(sizes[n]), n, lists.members(n)) for n in np.flatnonzero(sizes > limit).tolist()]
    heapq.heapify(queue)
    moved = False
    while queue and givers:
        _, number, members = heapq.heappop(queue)
        for to, half in _part(job, members, centroids, number, givers):
            moved = True
            if len(half) > limit:
                heapq.heappush(queue, (-len(half), to, half))
    rest = np.flatnonzero((sizes <= limit) & (lists.spreads > 0))
    for number in rest[np.argsort(-lists.spreads[rest], kind="stable")].tolist():
        if not givers or sizes[givers[-1]]:
            break
        if _part(job, lists.members(number), centroids, number, givers):
            moved = True
    return centroids, moved


def _part(
    job: _Job, members: Labels, centroids: Vectors, number: int, givers: list[int]
) -> list[tuple[int, Labels]]:
    """Split a list between its own number and one given up: the halves, or none of equal rows."""
    rows = job.rows[members]
    if (rows == rows[0]).all():
        return []
    second = _two_means(rows, 1, seed=int(job.rng.integers(1 << 32)))
    halves = [(number, ~second), (givers.pop(), second)]
    for to, half in halves:
        centroids[to] = rows[half].mean(axis=0, dtype=np.float64)
    return [(to, members[half]) for to, half in halves]


def _givers(sizes: Labels) -> list[int]:
    """Empty and small lists, the smallest last."""
    order = np.argsort(sizes, kind="stable")
    few = max(SMALL * float(sizes.mean()), 1.0)
    found: list[int] = order[sizes[order] < few][::-1].tolist()
    return found
