"""How is an index made from nothing, and measured? Sample, model, codes and calibration.

All in one snapshot, which holds up no writer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vecstore import rows
from vecstore.ann import calibration, codes, ivf, kmeans
from vecstore.ann import model as models
from vecstore.ann.calibration import Asked, Part
from vecstore.ann.codes import Codes
from vecstore.ann.index import Index
from vecstore.ann.ivf import Draft
from vecstore.ann.model import Model, Progress, Shape
from vecstore.catalog import Entry
from vecstore.layout import BLOCK_ROWS, State
from vecstore.spec import CODE_BITS, CollectionSpec
from vecstore.store import Snapshot
from vecstore.vectors import Vectors

SEED = 20_240
# Codes of fewer dims are not tried.
LEAST_CODED = 16
# What dims and bits of the codes are chosen with.
SHAPE_ROWS, SHAPE_QUERIES = 32_768, 32
# Rows that a query scans, for the root of the number of rows; and what a byte of a fine code costs,
# which lies anywhere, if a byte of the codes, which lie together, costs 1.
SCANNED, SCATTERED = 12.0, 4.0
# Codes of own numbers are taken where a query reads at most so many times as much with them.
OWN_WORTH = 1.05
# Where the bytes read stand in what is measured of codes.
READ = 4
# Blocks whose vectors are in memory together.
BLOCKS_AT_ONCE = 128
QUERIES = 256
FEW_QUERIES, MANY_ROWS = 128, 400_000
# With fewer rows there is nothing to measure codes in row order with.
LEAST_ROWS = 256


def train(
    snapshot: Snapshot,
    entry: Entry,
    state: State,
    *,
    lists: int | None = None,
    real: Vectors | None = None,
    progress: Progress | None = None,
) -> Draft:
    """Learn a model from a snapshot, code its rows and calibrate.

    Args:
        snapshot: Where to read.
        entry: The collection.
        state: Its counters.
        lists: How many lists; as many as suit the rows for None.
        real: float32 (m, dim), queries that were asked lately.
        progress: Called with the share of the work that is done.
    """
    tell = progress or (lambda share: None)
    alive = rows.live(snapshot, entry.number, state)
    living = rows.members(alive)
    wanted = ivf.lists_for(len(living)) if lists is None else lists
    rng = np.random.default_rng(SEED)
    sample, asked = _sample(snapshot, entry, state, living, wanted, rng)
    metric = entry.spec.metric
    measured: list[list[float]] = []
    if wanted:
        directions = models.principal(sample, metric)
        model = models.train(
            sample,
            Shape(lists=wanted, coded=entry.spec.dim, bits=1),
            metric,
            seed=SEED,
            directions=directions,
            progress=lambda share: tell(0.5 * share),
        )
        model, measured = _choose(model, directions, entry.spec, sample, len(living), rng)
    else:
        model = _untrained(sample, entry.spec)
    blocks = np.flatnonzero(alive)
    found, placed = _code(snapshot, entry, state, model, blocks, lambda s: tell(0.5 + 0.25 * s))
    drawn = _draw(snapshot, entry, state, asked, real, rng)
    budgets = _calibrate(snapshot, entry, state, model, drawn, found, placed)
    if measured:
        budgets["measured"] = measured
    tell(1.0)
    if not wanted:
        # Without lists every block is in the tail.
        blocks, placed, found = blocks[:0], placed[:0], found.take(slice(0))
    sums = ivf.checksums(snapshot, entry.number, blocks)
    return Draft(model, budgets, blocks, sums, placed, found, len(living))


def untrained(entry: Entry) -> Draft:
    """Codes in row order, less no mean, with budgets that need no queries."""
    model = _untrained(np.zeros((0, entry.spec.dim), np.float32), entry.spec)
    none = np.zeros(0, np.intp)
    sums = np.zeros(0, np.uint32)
    budgets = calibration.unmeasured(model)
    return Draft(model, budgets, none, sums, none, codes.empty(model.groups, model.dim), 0)


def _untrained(sample: Vectors, spec: CollectionSpec) -> Model:
    coded, bits = spec.tiers[0] if spec.tiers else (spec.dim, 1)
    return models.untrained(sample, spec.metric, seed=SEED, coded=coded, bits=bits)


def calibrate(
    snapshot: Snapshot,
    entry: Entry,
    state: State,
    found: Index,
    *,
    real: Vectors | None = None,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Measure the budgets of an index anew, as it is now.

    Args:
        snapshot: Where to read.
        entry: The collection.
        state: Its counters.
        found: Its index.
        real: float32 (m, dim), queries that were asked lately.
        progress: Called with the share of the work that is done.
    """
    tell = progress or (lambda share: None)
    living = rows.members(rows.live(snapshot, entry.number, state))
    if len(living) < LEAST_ROWS and not found.model.lists:
        return calibration.unmeasured(found.model)
    rng = np.random.default_rng(SEED)
    coded, placed = ivf.read_codes(snapshot, entry, state, found)
    tell(0.25)
    count = QUERIES if len(living) < MANY_ROWS else FEW_QUERIES
    picked = living[rng.permutation(len(living))[:count]]
    drawn = _draw(snapshot, entry, state, picked, real, rng)
    budgets = _calibrate(snapshot, entry, state, found.model, drawn, coded, placed)
    if found.budgets.get("measured"):
        # What the shape of the codes was chosen by holds until they are trained anew.
        budgets["measured"] = found.budgets["measured"]
    tell(1.0)
    return budgets


def shapes(dim: int, sizes: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """Dims and bits of the codes that are tried: many dims of one bit, or fewer of more.

    Of `sizes`, which vectors were made for, all of about as many bits.
    """
    tried = [(dim, 1)]
    # Less than this is no code at all.
    if dim >= 4 * LEAST_CODED:
        tried += [(dim * 2 // 3, 1), (dim // 2, 1), (dim // 2, 2), (dim // 3, 2), (dim // 4, 4)]
    for size, bits in itertools.product(sizes, CODE_BITS):
        if size >= LEAST_CODED and dim <= 2 * size * bits <= 2 * dim and (size, bits) not in tried:
            tried.append((size, bits))
    return tried


def _choose(
    model: Model,
    directions: Vectors,
    spec: CollectionSpec,
    sample: Vectors,
    count: int,
    rng: np.random.Generator,
) -> tuple[Model, list[list[float]]]:
    """Choose dims and bits of the codes by what a query would have to read with each.

    Returns:
        The model with the best codes; and of all that were tried dims, bits, bytes of codes a row,
        rows narrowed and bytes read by a query, and how many directions are kept.
    """
    few = sample[rng.permutation(len(sample))[:SHAPE_ROWS]]
    names = np.arange(len(few), dtype=np.uint32)
    asked = calibration.queries(few[:SHAPE_QUERIES], few[::-1][:SHAPE_QUERIES], model.metric)
    own = np.tile(np.arange(len(asked) // 2), 2)
    measured, best, usual = [], (np.inf, model), 0.0
    for base, ways in _ways(model, directions, spec):
        lists = base.assign(few)
        for along, (coded, bits) in ways:
            trial = models.recode(base, along, coded, bits)
            part = Part(few, lists, trial.encode(few, lists, names, fine=False))
            narrowed, near = calibration.costs(trial, asked, own, part)
            # Where lists keep neighbours together less well, more of them are scanned.
            usual = usual or near
            found = _costs(trial, SCANNED * count**0.5 * near / usual, narrowed)
            measured.append(found)
            weighed = found[READ] / (1 if along is directions else OWN_WORTH)
            if weighed < best[0]:
                best = (weighed, trial)
    return best[1], measured


def _ways(
    model: Model, directions: Vectors, spec: CollectionSpec
) -> Iterator[tuple[Model, list[tuple[Vectors, tuple[int, int]]]]]:
    """Models of what lists to try, and with each along which directions, and in what shapes.

    Where there are not so many directions, codes are of the vectors' own numbers.
    """
    usual = [(directions, shape) for shape in spec.tiers or shapes(spec.dim)]
    if not spec.mrl:
        yield model, usual
        return
    few, none = directions[: model.coarse], directions[:0]
    prefixes = spec.tiers or shapes(spec.dim, spec.mrl)
    inner = [(few, shape) for shape in prefixes if model.coarse < shape[0] < spec.dim]
    yield model, usual + inner
    yield models.own(model), [(none, shape) for shape in prefixes]


def _costs(trial: Model, scanned: float, narrowed: float) -> list[float]:
    """What is kept of a trial; READ is what decides."""
    row_bytes = trial.groups / 2 + 4 * (1 + trial.distances)
    read = scanned * row_bytes + narrowed * SCATTERED * trial.shape.fine_bytes
    return [trial.coded, trial.bits, row_bytes, narrowed, read, trial.directions.rows]


def _sample(
    snapshot: Snapshot,
    entry: Entry,
    state: State,
    living: NDArray[np.intp],
    lists: int,
    rng: np.random.Generator,
) -> tuple[Vectors, NDArray[np.intp]]:
    """Vectors to learn from, and the rows of others to ask for."""
    count = QUERIES if len(living) < MANY_ROWS else FEW_QUERIES
    # Without lists there is a mean to be learnt.
    size = min(kmeans.sample_size(len(living), max(1, lists)), len(living))
    picked = rng.permutation(len(living))
    asked = living[picked[:count]]
    # Where rows are few, those that are asked for have to be learnt from too.
    rest = picked[count : count + size]
    if len(rest) < size:
        rest = picked[:size]
    return ivf.gather(snapshot, entry, state, np.sort(living[rest])), asked


def _slices(
    snapshot: Snapshot, entry: Entry, state: State, blocks: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], Vectors]]:
    """The living rows of blocks and their vectors, a few blocks at a time."""
    alive = rows.live(snapshot, entry.number, state)
    for at in range(0, len(blocks), BLOCKS_AT_ONCE):
        part = blocks[at : at + BLOCKS_AT_ONCE]
        inside = rows.members(alive[part])
        numbers = part[inside >> 6] * BLOCK_ROWS + (inside & 63)
        yield numbers, ivf.gather(snapshot, entry, state, numbers)


def _code(
    snapshot: Snapshot,
    entry: Entry,
    state: State,
    model: Model,
    blocks: NDArray[np.intp],
    progress: Progress,
) -> tuple[Codes, NDArray[np.intp]]:
    """Codes and lists of all rows; those of the open block are in none, as they will be."""
    found, placed = [codes.empty(model.groups, model.dim)], [np.zeros(0, np.intp)]
    done = 0
    for numbers, vectors in _slices(snapshot, entry, state, blocks):
        lists = model.assign(vectors) if model.lists else np.zeros(len(vectors), np.intp)
        lists[numbers >> 6 == state.open_block] = model.lists
        found.append(model.encode(vectors, lists, numbers.astype(np.uint32)))
        placed.append(lists)
        done += BLOCKS_AT_ONCE
        progress(min(1.0, done / max(1, len(blocks))))
    return codes.join(found), np.concatenate(placed)


def _draw(
    snapshot: Snapshot,
    entry: Entry,
    state: State,
    own: NDArray[np.intp],
    real: Vectors | None,
    rng: np.random.Generator,
) -> Asked:
    """Queries to calibrate with, made of some rows, and real ones."""
    vectors = ivf.gather(snapshot, entry, state, own)
    others = vectors[rng.permutation(len(vectors))]
    return Asked.of(vectors, others, own.astype(np.int64), entry.spec.metric, real)


def _calibrate(
    snapshot: Snapshot,
    entry: Entry,
    state: State,
    model: Model,
    asked: Asked,
    found: Codes,
    placed: NDArray[np.intp],
) -> dict[str, object]:
    def parts() -> Iterator[Part]:
        at = 0
        blocks = np.flatnonzero(rows.live(snapshot, entry.number, state))
        for numbers, stored in _slices(snapshot, entry, state, blocks):
            part = np.arange(at, at + len(numbers))
            at += len(numbers)
            yield Part(stored, placed[part], found.take(part))

    sizes = np.bincount(placed, minlength=model.lists)
    return calibration.calibrate(model, asked, parts(), sizes)
