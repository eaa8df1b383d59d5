"""How does a query run where nothing is compiled? The numpy twin of `kernels.py`.

`search` takes what the kernel takes, visits the same lists, keeps the same candidates and finds the
same hits with the same float64 scores. Where the order of additions decides the last bit of a
float32 it may choose otherwise between candidates that are equal to within it. Products that the
kernel adds without rounding between are computed in float64, which holds them exactly.

The names of what both are told and tell are here, since importing the kernels imports numba.
"""

from __future__ import annotations

import bisect
import ctypes
import heapq
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore import layout, vectors
from vecstore.layout import FLOAT16, FLOAT32, INT8, TILE_ROWS
from vecstore.spec import Metric

# Entries of the integer and float parameters.
(
    DIM, DIRECTIONS, COARSE, CODED, GROUPS, OFFSETS, LISTS, K, ROOM, METRIC, PRECISION, LEAST,
    INTEGERS,
) = range(13)  # fmt: skip
GAP, REACH, SLACK, FINE = range(4)
COSINE, DOT, L2 = range(3)
_METRICS: tuple[Metric, ...] = ("cosine", "dot", "l2")
# What a search reports of each query, and which table it found an entry missing in.
(
    LISTS_SEEN, ROWS_SEEN, NARROWED, RESCORED, COARSE_TIME, SCAN_TIME, SETTLE_TIME, STAGES,
) = range(8)  # fmt: skip
NOTHING, LIST, CODES, BLOCK, UNSOUND = range(5)
# Squares of longer queries are not compared.
LONGEST_SQUARED = vectors.LONGEST**2 * (1 + 1e-9)

HEADER, COLUMNS, SCALES = layout.HEADER.size, layout.COLUMNS_BYTES, layout.SCALES_BYTES
# Where a header says how many rows its value has.
ROWS_AT = 8
# Tiles that are scanned before their candidates are narrowed.
TILES_A_STEP = 8
# Numbers of a fine code that lie together, and what a code of zero stands for.
FINE_DIMS, FINE_LEAST = 64, np.float32(-7.5)
# Lists are ordered by their distance in so many steps.
STEPS = 256
# Distances count from the nearest list that has so large a weight: nearer ones may have some of the
# rows that are wanted, and say little about where the others are.
CROWDED = np.float32(0.5)
# More lists than this are not left in the first step, if they can be told apart.
CROWD = 16

Array = NDArray[Any]
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Words = NDArray[np.uint64]
Wide = NDArray[np.float64]


# Damaged codes may hold any numbers, which the kernel does not complain of either.
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def search(
    queries: Floats,
    integers: Integers,
    floats: Floats,
    mean: Floats,
    directions: NDArray[np.uint8],
    direction_scales: Floats,
    signs: NDArray[np.int8],
    centroids: NDArray[np.uint8],
    centroid_scales: Floats,
    bias: Floats,
    patterns: Floats,
    lists: Words,
    blocks: Words,
    codes: Words,
    tail: Integers,
    mask: Words,
    tail_mask: Words,
    weights: Floats,
    excerpts: Words,
    orders: Words,
    scores: Wide,
    counts: Integers,
    stats: Integers,
    missing: Integers,
    first: int,
) -> int:
    """Answer queries from `first` on; return the number of the first that is not answered.

    That is the number of queries, or a query that met entries missing in a table, or one that the
    metric cannot compare: the kind of what is missing is UNSOUND then.

    Args:
        queries: float32 (m, dim), which the metric can compare.
        integers: int64 (INTEGERS,), DIM ... LEAST.
        floats: float32 (4,), GAP, REACH, SLACK and FINE of the budget.
        mean: float32 (dim,), what vectors are taken less before they are coded, and queries where
            rows have offsets, before they are compared with codes.
        directions: As `model.Matrix` keeps its values: the first COARSE rows are the dimensions of
            the centroids, the first CODED ones those of the codes before they are turned. Where
            there are not so many rows, these are the first numbers of a vector.
        direction_scales: float32, what the rows are multiplied with.
        signs: int8 (rounds, dim), how codes are turned.
        centroids: As `directions`, (lists + 1, COARSE); the last belongs to the tail.
        centroid_scales: float32, as `direction_scales`.
        bias: float32 (lists + 1,), added to the centroids' products.
        patterns: float32 (dims of a group, 16), what its 4 bits stand for.
        lists: uint64 (lists,), addresses of the lists' values; 0 is missing.
        blocks: uint64 (blocks,), of the blocks of the full tier.
        codes: uint64 (blocks,), of the codes of blocks that are in no list.
        tail: int64 (t,), blocks that are in no list.
        mask: uint64 (blocks,), rows that may be found in lists.
        tail_mask: uint64 (blocks,), rows that may be found in the tail.
        weights: float32 (lists,), for how many lists each counts in the rank of those behind it, 0
            for one that is passed over; or (0,), where each counts for one.
        excerpts: uint64 (lists,), addresses of what is scanned in the place of a list, see
            `kernels.excerpt`, 0 where it is the list itself; or (0,), where it always is.
        orders: uint64 (m, k) out, the records' orders, best first.
        scores: float64 (m, k) out.
        counts: int64 (m,) out, how many were found.
        stats: int64 (m, STAGES) out; times are nanoseconds here, cycles in the kernel.
        missing: int64 (2 + room,) out, the kind of the entries that are missing, how many they are
            and their numbers.
        first: Where to begin.
    """
    missing[:2] = NOTHING, 0
    told = _Told(*integers[:INTEGERS].tolist(), *floats[: FINE + 1])
    coarse = _Coarse(
        _Matrix(directions, direction_scales),
        signs,
        _Matrix(centroids, centroid_scales),
        bias,
        patterns,
    )
    tables = _Tables(lists, blocks, codes, tail, mask, tail_mask, weights, excerpts, missing)
    wide = vectors.as_compared(queries, _METRICS[told.metric])
    for number in range(first, len(wide)):
        # Of a query without a length nothing is left that is a number.
        if not (wide[number] ** 2).sum() <= LONGEST_SQUARED:
            missing[0] = UNSOUND
            return number
        begun = time.perf_counter_ns()
        target = coarse.aim(wide[number], mean, weights, told)
        routed = time.perf_counter_ns()
        found = _Candidates(told, target)
        seen, scanned = _scan_lists(target, told, tables, found)
        if not missing[1]:
            scanned += _scan_tail(target, told, tables, found)
        found.narrow(everything=True)
        narrowed = time.perf_counter_ns()
        best = None if missing[1] else _compare(wide[number], target, told, tables, found)
        if best is None:
            return number
        counts[number] = held = len(best.orders)
        orders[number, :held], scores[number, :held] = best.orders, best.scores
        stats[number] = (
            *(seen, scanned, found.narrowed, best.compared),
            *(routed - begun, narrowed - routed, time.perf_counter_ns() - narrowed),
        )
    return len(wide)


@dataclass(frozen=True, slots=True)
class _Told:
    """The integer and float parameters, in their order."""

    dim: int
    directions: int
    coarse: int
    coded: int
    groups: int
    offsets: int
    lists: int
    k: int
    room: int
    metric: int
    precision: int
    least: int
    gap: np.float32
    reach: np.float32
    slack: np.float32
    fine: np.float32


@dataclass(frozen=True, slots=True)
class _Tables:
    """Addresses, and which rows are wanted."""

    lists: Words
    blocks: Words
    codes: Words
    tail: Integers
    mask: Words
    tail_mask: Words
    weights: Floats
    excerpts: Words
    missing: Integers

    def note(self, kind: int, numbers: Array) -> None:
        """Write down entries that a table lacks, as far as there is room."""
        self.missing[0] = kind
        at = 2 + int(self.missing[1])
        part = numbers[: len(self.missing) - at]
        self.missing[at : at + len(part)] = part
        self.missing[1] += len(part)


# Coarse: which lists, and what a code is worth


@dataclass(frozen=True, slots=True)
class _Target:
    """A query as it is compared with codes.

    Attributes:
        bases: float32 (lists + 1,), what every row of a list scores at least.
        pairs: uint32 (groups * 256,), what a byte of a tile adds to the sums of its two rows: to
            the one of the low half in the low 16 bits.
        places: intp (groups, 1), where the entries of each group begin.
        start: What a sum of zero is worth; `step` what one more is.
        noise: How far off a code of scale 1 may be; `doubt` a fine one.
        numbers: float64 (dim,), the query as int8 for fine codes, and their scale.
        top: Where distances to lists count from.
        gap: What the distance to a list weighs beside its rank.
        shift: What scores of codes are more than exact ones, see `_worth`.
    """

    bases: Floats
    pairs: NDArray[np.uint32]
    places: NDArray[np.intp]
    start: np.float32
    step: np.float32
    noise: np.float32
    doubt: np.float32
    numbers: Wide
    scale: np.float32
    top: np.float32
    gap: np.float32
    shift: float


def _span(whole: np.float32, top: np.float32, told: _Told) -> np.float32:
    """What distances to lists are measured in: `whole` is the query's squared length."""
    if told.offsets:
        return np.float32(np.sqrt(max(whole - np.float32(2) * top, np.float32(1e-30))))
    return (
        np.float32(np.sqrt(max(whole, np.float32(1e-30)))) if told.metric == DOT else np.float32(1)
    )


class _Matrix:
    """An int8 matrix with a scale a row, as `model.Matrix` keeps it."""

    def __init__(self, values: NDArray[np.uint8], scales: Floats) -> None:
        # Sums of products of integers are exact in float64, in any order.
        numbers = values.reshape(*values.shape[:2], -1, 4).transpose(0, 2, 1, 3)
        self.values = numbers.reshape(len(scales), -1).astype(np.float64) - 128
        self.scales = scales

    def times(self, vector: Floats) -> Floats:
        """The product with a vector, which is rounded to pairs of int8 as the kernel does."""
        numbers, scale = _to_bytes(vector)
        off = vector * (np.float32(1) / scale) - numbers.astype(np.float32)
        rest = (off * np.float32(254) + np.float32(128.5)).astype(np.int32) - 128
        part = self.values[:, : len(vector)]
        totals, lower = ((part @ half).astype(np.float32) for half in (numbers, rest))
        product: Floats = (totals + lower * np.float32(1 / 254)) * self.scales * scale
        return product


def _to_bytes(vector: Floats) -> tuple[Wide, np.float32]:
    """A vector in whole numbers of at most 127, and their scale."""
    scale = np.abs(vector).max(initial=np.float32(0)) / np.float32(127)
    if scale < np.float32(1e-37):
        scale = np.float32(1)
    numbers = (vector * (np.float32(1) / scale) + np.float32(128.5)).astype(np.int32) - 128
    return numbers.astype(np.float64), scale


def _turn(vector: Floats, signs: NDArray[np.int8]) -> Floats:
    """A vector turned as `rotation.turn` does."""
    turned, dim = vector, len(vector)
    stride = max(1, dim * 3 // 8)
    while math.gcd(stride, dim) > 1:
        stride += 1
    for number, flips in enumerate(signs[:, :dim]):
        if number:
            turned = turned[np.arange(dim) * stride % dim]
        turned, at = turned * flips, 0
        while at < dim:
            size = 1 << ((dim - at).bit_length() - 1)
            values = turned[at : at + size] * (np.float32(1) / np.sqrt(np.float32(size)))
            for _ in range(size.bit_length() - 1):
                values = np.concatenate([values[::2] + values[1::2], values[::2] - values[1::2]])
            turned[at : at + size] = values
            at += size
    return turned


@dataclass(frozen=True, slots=True)
class _Coarse:
    """What queries are aimed with."""

    directions: _Matrix
    signs: NDArray[np.int8]
    centroids: _Matrix
    bias: Floats
    patterns: Floats

    def aim(self, query: Wide, mean: Floats, weights: Floats, told: _Told) -> _Target:
        """Prepare a query, float64 (dim,)."""
        point = (query - mean if told.offsets else query).astype(np.float32)
        directed = self.directions.times(point)
        known = told.directions
        rotated = _turn((directed if known >= told.coded else point)[: told.coded], self.signs)
        reduced = (directed if known >= told.coarse else point)[: told.coarse]
        bases = self.centroids.times(reduced)[: len(self.bias)] + self.bias
        top = bases[: told.lists].max(initial=np.float32(-np.inf))
        wide = point.astype(np.float64)
        whole = np.float32(wide @ wide)
        if len(weights):
            bases[: told.lists][weights == 0] = -np.inf
            top = bases[: told.lists][weights >= CROWDED].max(initial=np.float32(-np.inf))
            if top == -np.inf:
                top = bases[: told.lists].max(initial=np.float32(-np.inf))
        gap, shift = told.gap, -float(query @ mean)
        if told.offsets:
            # Of unit vectors half the squared distance is 1 - cosine.
            shift = 0.5 * float(whole) - (told.metric == COSINE)
        gap /= _span(whole, top, told)
        pairs, start, step = self._fill_table(rotated, told.groups)
        wide = rotated.astype(np.float64)
        noise = told.slack * np.sqrt(np.float32(wide @ wide))
        places = np.arange(0, told.groups * 256, 256)[:, None]
        doubt = told.fine * np.sqrt(whole)
        fine = doubt, *_to_bytes(_turn(point, self.signs))
        return _Target(bases, pairs, places, start, step, noise, *fine, top, gap, shift)

    def _fill_table(
        self, rotated: Floats, groups: int
    ) -> tuple[NDArray[np.uint32], np.float32, np.float32]:
        """What bytes of a tile add to sums; start and step of these."""
        dims, top = len(self.patterns), self.patterns[0, 15]
        weights = np.zeros((groups, dims), np.float32)
        used = rotated[: weights.size]
        weights.reshape(-1)[: len(used)] = used
        sizes, sums = np.zeros(groups, np.float32), np.zeros((groups, 16), np.float32)
        for number in range(dims):
            sizes += np.abs(weights[:, number])
            sums += weights[:, number, None] * self.patterns[number]
        least = sizes * top
        start = np.float32(-least.sum(dtype=np.float64))
        most = np.float32(min(63, 65535 // groups))
        step = (least * np.float32(2)).max(initial=np.float32(0)) / most
        if step < np.float32(1e-37):
            step = np.float32(1)
        scaled = (sums + least[:, None]) * (np.float32(1) / step) + np.float32(0.5)
        table = scaled.astype(np.uint8).astype(np.uint32)
        return (table[:, None, :] | table[:, :, None] << 16).reshape(-1), start, step


# Scan: codes become candidates


class _Candidates:
    """Rows that may be among the k best, and the k largest of their pessimistic scores.

    They are added one by one, as in the kernel: which are dropped where there is no room for all
    depends on the order. Those of a step wait until the next one, so that theirs is the threshold
    that the kernel has, which waits for memory.
    """

    def __init__(self, told: _Told, target: _Target) -> None:
        self.told, self.target = told, target
        self.narrowed = 0
        self.optimistic: list[float] = []
        self.likely: list[float] = []
        self.rows: list[int] = []
        self._best: list[float] = []
        self._waiting: list[tuple[Floats, Words, Integers, Floats]] = []

    @property
    def full(self) -> bool:
        """Whether k are known."""
        return len(self._best) == self.told.k

    @property
    def threshold(self) -> float:
        """What a row has to score to be among the k best."""
        return self._best[0] if self.full else -math.inf

    def wait(self, hopes: Floats, places: Words, rows: Integers, base: np.float32) -> None:
        """Add the rows of a step: optimistic scores, addresses of fine codes, and their list's."""
        self._waiting.append((hopes, places, rows, np.full(len(rows), base)))

    def narrow(self, everything: bool = False) -> None:
        """Score what waits by its fine codes; only what may be among the best is kept."""
        keep = 0 if everything or not self.full else 1
        ready = self._waiting[: len(self._waiting) - keep]
        self._waiting = self._waiting[len(ready) :]
        for hopes, places, rows, bases in ready:
            if self.full:
                hoped = hopes > self.threshold
                hopes, places, rows, bases = hopes[hoped], places[hoped], rows[hoped], bases[hoped]
            scores, doubts = self._score(places, bases)
            columns = (column.tolist() for column in (hopes, scores, doubts, rows))
            for hope, score, doubt, row in zip(*columns, strict=True):
                if not self.full or hope > self.threshold:
                    self.narrowed += 1
                    self._add(np.float32(score), np.float32(doubt), row)

    def _score(self, places: Words, bases: Floats) -> tuple[Floats, Floats]:
        """Scores by fine codes, and how far off these may be."""
        told, target = self.told, self.target
        factors = _gather(places, "<f4", 1 + told.offsets)
        chunks = -(-told.dim // FINE_DIMS)
        codes = _gather(places + np.uint64(4 * (1 + told.offsets)), "u1", FINE_DIMS // 2 * chunks)
        halves = codes.reshape(-1, chunks, 1, FINE_DIMS // 2) >> np.array([[0], [4]], np.uint8) & 15
        totals = halves.reshape(-1, chunks * FINE_DIMS)[:, : told.dim] @ target.numbers
        less = -FINE_LEAST * np.float32(target.numbers.sum())
        scores = bases + factors[:, 0] * (target.scale * (totals.astype(np.float32) - less))
        if told.offsets:
            scores += factors[:, 1]
        return scores, target.doubt * factors[:, 0]

    def _add(self, score: np.float32, doubt: np.float32, row: int) -> None:
        hope, value = float(score + doubt), float(score - doubt)
        if self.full and hope <= self.threshold:
            return
        room = self.told.room
        if len(self.rows) == room:
            self.prune(room - max(1, room // 4))
        self.optimistic.append(hope)
        self.likely.append(value)
        self.rows.append(row)
        if not self.full:
            heapq.heappush(self._best, value)
        elif value > self.threshold:
            heapq.heapreplace(self._best, value)

    def prune(self, room: int) -> None:
        """Keep those that can still be among the best, at most so many."""
        kept = _best_places(np.array(self.optimistic), self.threshold, room).tolist()
        self.optimistic = [self.optimistic[i] for i in kept]
        self.likely = [self.likely[i] for i in kept]
        self.rows = [self.rows[i] for i in kept]


def _best_places(optimistic: Array, threshold: float, room: int) -> NDArray[np.intp]:
    """Places of the scores that reach a threshold, at most the `room` largest, ascending."""
    kept = np.flatnonzero(optimistic >= threshold)
    if len(kept) <= room:
        return kept
    found = optimistic[kept]
    bound = np.sort(found)[len(kept) - room - 1]
    above = found > bound
    equal = np.flatnonzero(found == bound)[: room - np.count_nonzero(above)]
    above[equal] = True
    chosen: NDArray[np.intp] = kept[above]
    return chosen


def _scan_lists(
    target: _Target, told: _Told, tables: _Tables, found: _Candidates
) -> tuple[int, int]:
    """Scan lists, nearest first, until rank and distance say that the rest is not worth it.

    Returns how many lists and how many rows.
    """
    bases, top = target.bases[: told.lists].copy(), target.top
    gap, reach = target.gap, told.reach
    least, far = np.float32(-np.inf), np.float32(np.inf)
    if gap > 0 and told.least <= 1:
        least = top - reach / gap
        if not len(tables.weights):
            far = reach
    order: list[tuple[int, int]] = []
    at = seen = scanned = 0
    step, before, passed, over = -1, 0.0, 0.0, False
    while True:
        # Fewer candidates than wanted: a filter lets few rows through.
        short = not found.full and not tables.missing[1]
        if at == len(order):
            if over:
                break
            step = -1
            order, at = _ordered(bases, least, gap, far, seen), 0
            if not order and short and least > -np.inf:
                least, far = np.float32(-np.inf), np.float32(np.inf)
                order = _ordered(bases, least, gap, far, seen)
            if not order:
                break
        found_at, number = order[at]
        base = bases[number]
        if found_at != step:
            if over:
                break
            step, before = found_at, passed
        # Lists of one step come by number: as if each were the first of them, but for crowds.
        rank = np.float32(math.log(np.float32(1 + max(before, passed - CROWD))))
        at += 1
        # Not to be ordered again.
        bases[number] = -np.inf
        beyond = np.float32(float(rank) + float(top - base) * float(gap)) > reach
        if beyond and seen >= told.least and not short:
            # Others of its step may be nearer.
            over = True
            continue
        seen += 1
        passed += float(tables.weights[number]) if len(tables.weights) else 1.0
        address = int(tables.lists[number])
        if address == 0:
            tables.note(LIST, np.array([number]))
            continue
        excerpt = int(tables.excerpts[number]) if len(tables.excerpts) else 0
        source = address if excerpt else None
        scanned += _scan(excerpt or address, source, None, base, target, told, tables.mask, found)
    return seen, scanned


def _scan_tail(target: _Target, told: _Told, tables: _Tables, found: _Candidates) -> int:
    """Scan the codes of blocks with rows that are in no list; return how many rows."""
    scanned, base = 0, target.bases[told.lists]
    for block, address in zip(
        tables.tail.tolist(), tables.codes[tables.tail].tolist(), strict=True
    ):
        if address == 0:
            tables.note(CODES, np.array([block]))
        else:
            scanned += _scan(address, None, block << 6, base, target, told, tables.tail_mask, found)
    return scanned


def _ordered(
    bases: Floats, low: np.float32, gap: np.float32, reach: np.float32, seen: int
) -> list[tuple[int, int]]:
    """Steps and numbers of the nearest lists with scores from `low` on, as far as the kernel's."""
    highest, lowest = bases.max(initial=np.float32(-np.inf)), low
    if low == -np.inf:
        lowest = bases[bases > -np.inf].min(initial=highest)
    while True:
        width = (highest - lowest) / np.float32(STEPS - 1.5)
        inverse = np.float32(1) / width if width > np.float32(1e-37) else np.float32(3e38)
        off = (highest - bases) * inverse
        steps = np.where(off < STEPS - 1, off, np.float32(STEPS - 1)).astype(np.intp)
        counts = np.bincount(steps, minlength=STEPS)
        closer = highest - width
        if counts[0] <= CROWD or not lowest < closer < highest:
            break
        lowest = closer
    before = np.cumsum(counts) - counts
    bound = STEPS - 1
    for step in range(1, STEPS - 1, 8):
        rank = np.float32(math.log(1 + seen + before[step]))
        if float(rank) + float(width) * (step - 1) * float(gap) > reach:
            bound = step
            break
    order = np.argsort(steps, kind="stable")
    order = order[: np.count_nonzero(steps < bound)]
    return list(zip(steps[order].tolist(), order.tolist(), strict=True))


def _scan(
    address: int,
    source: int | None,
    first: int | None,
    base: np.float32,
    target: _Target,
    told: _Told,
    mask: Words,
    found: _Candidates,
) -> int:
    """Scan the codes of a bulk value; return how many rows.

    Args:
        address: Where the value is, or the excerpt of a list.
        source: Where the list is that it is an excerpt of.
        first: Row of the first code, or None if the rows are named behind the tiles.
        base: Score of the list.
        target: The query.
        told: The parameters.
        mask: uint64 (blocks,), the rows wanted.
        found: Where candidates go.
    """
    held = int(_view(address + ROWS_AT, "<u4", (1,))[0])
    count = -(-held // TILE_ROWS)
    tiles = address + HEADER
    stride = told.groups * 16 + TILE_ROWS * 4 * (1 + told.offsets)
    fines = tiles + count * stride
    if first is None:
        names = _view(fines, "<u4", (count * TILE_ROWS,))
        fines += 4 * count * TILE_ROWS
    else:
        names = np.arange(first, first + count * TILE_ROWS)
    origins = np.arange(count * TILE_ROWS)
    if source is not None:
        # An excerpt has there the places of its rows in the list, where their fine codes are.
        origins = _view(fines, "<u4", (count * TILE_ROWS,))
        tiles_there = -(-int(_view(source + ROWS_AT, "<u4", (1,))[0]) // TILE_ROWS)
        fines = source + HEADER + tiles_there * (stride + 4 * TILE_ROWS)
    width = 4 * (1 + told.offsets) + FINE_DIMS // 2 * -(-told.dim // FINE_DIMS)
    for at in range(0, count, TILES_A_STEP):
        if at:
            found.narrow()
        size = min(TILES_A_STEP, count - at)
        hopes = _score_tiles(tiles + at * stride, size, stride, base, target, told)
        places = at * TILE_ROWS + np.flatnonzero(hopes > found.threshold)
        places = places[places < held]
        rows = names[places].astype(np.int64)
        wanted = _wanted(rows, mask)
        places, rows = places[wanted], rows[wanted]
        addresses = np.uint64(fines) + origins[places].astype(np.uint64) * np.uint64(width)
        found.wait(hopes[places - at * TILE_ROWS], addresses, rows, base)
    found.narrow()
    return count * TILE_ROWS


def _wanted(rows: Integers, mask: Words) -> NDArray[np.bool_]:
    """Which rows are, and may be found."""
    words = rows >> 6
    bits = mask.take(words, mode="clip") >> (rows & 63).astype(np.uint64) & np.uint64(1)
    wanted: NDArray[np.bool_] = (words < len(mask)) & (bits != 0)
    return wanted


def _score_tiles(
    address: int, count: int, stride: int, base: np.float32, target: _Target, told: _Told
) -> Floats:
    """Optimistic scores, float32 (32 * count,), of the rows of some tiles."""
    groups = told.groups
    codes = _view(address, "u1", (count, groups, 16), (stride, 16, 1))
    # No place is outside; "clip" is the quickest way not to look.
    both = target.pairs.take(codes + target.places, mode="clip").sum(axis=1, dtype=np.uint32)
    sums = np.concatenate([both & 0xFFFF, both >> 16], axis=1)
    column = address + groups * 16, "<f4", (count, TILE_ROWS), (stride, 4)
    scales = _view(*column)
    bases: Any = base
    if told.offsets:
        bases = base + _view(column[0] + TILE_ROWS * 4, *column[1:])
    start = target.start + target.noise
    inner = (float(start) + float(target.step) * sums).astype(np.float32)
    # Products of two float32 are exact.
    optimistic = (bases + np.multiply(scales, inner, dtype=np.float64)).astype(np.float32)
    scored: Floats = optimistic.reshape(-1)
    return scored


# Compare: candidates by their stored vectors


@dataclass(slots=True)
class _Best:
    """The k best candidates, best first, and how many were compared."""

    orders: Words
    scores: Wide
    compared: int


def _compare(
    wide: Wide, target: _Target, told: _Told, tables: _Tables, found: _Candidates
) -> _Best | None:
    """Settle candidates in float64; None if blocks are missing."""
    found.prune(told.room)
    optimistic, likely = np.array(found.optimistic), np.array(found.likely)
    rows = np.array(found.rows, np.int64)
    addresses = tables.blocks[rows >> 6]
    if not addresses.all():
        tables.note(BLOCK, rows[addresses == 0] >> 6)
        return None
    held = (rows & 63) < _gather(addresses + np.uint64(ROWS_AT), "<u4", 1)[:, 0]
    optimistic, likely, rows = optimistic[held], likely[held], rows[held]
    order, front = _divided(likely >= found.threshold)
    best = _Best(np.zeros(0, np.uint64), np.zeros(0), front)
    first, rest = order[:front], order[front:]
    _settle(wide, target, told, tables, optimistic[first], rows[first], best)
    if len(best.scores) == told.k:
        least = float(np.float32(_worth(best.scores[-1], target, told)))
        rest = rest[_best_places(optimistic[rest], least, told.room)]
    _settle(wide, target, told, tables, optimistic[rest], rows[rest], best)
    best.compared += len(rest)
    return best


def _divided(chosen: NDArray[np.bool_]) -> tuple[NDArray[np.intp], int]:
    """Places with the chosen ones first, and how many these are, by the kernel's exchanges."""
    order, front = list(range(len(chosen))), 0
    for at in np.flatnonzero(chosen).tolist():
        order[at], order[front] = order[front], order[at]
        front += 1
    return np.array(order, np.intp), front


def _worth(score: float, target: _Target, told: _Told) -> float:
    """What a code that is right says where the exact score is this one."""
    return target.shift - 0.5 * score * score if told.metric == L2 else target.shift + score


def _settle(
    wide: Wide,
    target: _Target,
    told: _Told,
    tables: _Tables,
    optimistic: Wide,
    rows: Integers,
    best: _Best,
) -> None:
    """Put candidates among the k best, as `exact.score` ranks them, to the bit.

    One whose optimistic score cannot be among them is passed over.
    """
    scores = _score(wide, told, _stored(rows, told, tables))
    blocks = tables.blocks[rows >> 6] + np.uint64(HEADER)
    orders = _gather(blocks + (8 * (rows & 63)).astype(np.uint64), "<u8", 1)[:, 0]
    kept = list(zip((-best.scores).tolist(), best.orders.tolist(), strict=True))
    for hope, *entry in zip(optimistic.tolist(), (-scores).tolist(), orders.tolist(), strict=True):
        if len(kept) < told.k or hope > _worth(-kept[-1][0], target, told):
            bisect.insort(kept, tuple(entry))
            del kept[told.k :]
    best.scores = -np.array([score for score, _ in kept])
    best.orders = np.array([order for _, order in kept], np.uint64)


def _score(wide: Wide, told: _Told, stored: Wide) -> Wide:
    """Exact scores of stored vectors, (n,)."""
    scores: Wide
    if told.metric == L2:
        scores = 0.0 - np.sqrt(((stored - wide) ** 2).sum(axis=1))
    else:
        scores = (stored * wide).sum(axis=1)
    if told.metric == COSINE:
        sizes = np.sqrt((stored**2).sum(axis=1))
        scores = np.clip(scores / np.where(sizes > 0, sizes, 1.0), -1.0, 1.0)
    return scores


def _stored(rows: Integers, told: _Told, tables: _Tables) -> Wide:
    """The stored vectors of some rows, float64 (n, dim)."""
    dtype = {FLOAT32: "<f4", FLOAT16: "<f2", INT8: "i1"}[told.precision]
    columns = tables.blocks[rows >> 6] + np.uint64(HEADER + COLUMNS)
    inside, width = (rows & 63).astype(np.uint64), np.dtype(dtype).itemsize * told.dim
    vectors = columns + inside * np.uint64(width)
    if told.precision != INT8:
        return _gather(vectors, dtype, told.dim).astype(np.float64)
    scales = _gather(columns + inside * np.uint64(4), "<f4", 1)
    numbers = _gather(vectors + np.uint64(SCALES), dtype, told.dim)
    return (numbers.astype(np.float32) * scales).astype(np.float64)


# Memory

# An array cannot begin at address 0.
_START = 64
_EVERYTHING = memoryview((ctypes.c_char * (1 << 62)).from_address(_START)).toreadonly()


def _view(
    address: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
) -> Array:
    """View memory as an array that cannot be written to."""
    return np.ndarray(shape, dtype, _EVERYTHING, address - _START, strides)


def _gather(addresses: Words, dtype: str, count: int) -> Array:
    """Copy `count` numbers from each address, (n, count)."""
    if not len(addresses):
        return np.zeros((0, count), dtype)
    starts = addresses.astype(np.int64)
    base, width = int(starts.min()), np.dtype(dtype).itemsize * count
    span = int(starts.max()) - base
    # Every byte from the first address to the last one as the beginning of a row.
    window = _view(base, "u1", (span + 1, width), (1, 1))
    return window[starts - base].view(dtype)
