"""How does a collection keep its shape? Blocks with few living rows, the tail, and training.

A block is sparse when at most half of its rows live. Each write repacks the sparse blocks that it
made, so a row that dies pays for moving at most one other; `repack` does all that are left. New
rows are in the tail of the index; the write that lets it grow too long pays for moving it to lists,
or for making the buckets of binary vectors anew.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vecstore import catalog, layout, record_layout, rows
from vecstore.ann import buckets, index, ivf, rounding, training
from vecstore.ann.index import Index, IndexedRows, Kind
from vecstore.ann.ivf import Draft
from vecstore.ann.model import Model, Progress
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError, SpecError
from vecstore.fields import upkeep
from vecstore.fields.upkeep import Change
from vecstore.layout import BLOCK_ROWS, State
from vecstore.spec import show
from vecstore.store import Reader, Snapshot, Transaction
from vecstore.vectors import Vectors

SPARSE_ROWS = BLOCK_ROWS // 2
# Blocks repacked in one transaction: a slice of at most 8,192 records.
SLICE_BLOCKS = 256


def repack_touched(txn: Transaction, entry: Entry, state: State, writer: IndexedRows) -> None:
    """Repack the sparse blocks among those that lost rows in this transaction."""
    sparse = [
        block
        for block in writer.touched()
        if block != state.open_block and 0 < writer.word(block).bit_count() <= SPARSE_ROWS
    ]
    for block in sparse[:SLICE_BLOCKS]:
        try:
            load = _load(txn, entry, writer, block)
        except CorruptionError:
            # A damaged block stays where it is, for `check` to find; the write at hand goes on.
            continue
        _move(txn, writer, load)


def repack(txn: Transaction, entry: Entry) -> bool:
    """Repack a slice of all sparse blocks; return whether there are more.

    The last slice also gives back the numbers of dead blocks at the end.
    """
    state = catalog.state(txn, entry.number)
    words = rows.live(txn, entry.number, state)
    counts = np.bitwise_count(words)
    sparse = np.flatnonzero((counts > 0) & (counts <= SPARSE_ROWS)).tolist()
    sparse = [block for block in sparse if block != state.open_block]
    writer = IndexedRows(txn, entry, state)
    for block in sparse[:SLICE_BLOCKS]:
        _move(txn, writer, _load(txn, entry, writer, block))
    writer.finish()
    upkeep.keep_up(txn, entry, state, Change(writer.added, writer.allotted))
    more = len(sparse) > SLICE_BLOCKS
    if not more:
        writer.trim()
    catalog.save_state(txn, entry.number, state)
    return more


@dataclass(frozen=True, slots=True)
class _Load:
    """What has to move out of a block: its living rows, and the values of their records by key."""

    block: int
    inside: NDArray[np.intp]
    found: layout.Block
    values: dict[bytes, bytes]


def _load(txn: Transaction, entry: Entry, writer: IndexedRows, block: int) -> _Load:
    """Read and verify all that is in a sparse block; CorruptionError before anything changed."""
    found = rows.read_block(txn, entry.number, block, entry.form, verify=True)
    inside = rows.members(np.array([writer.word(block)], np.uint64))
    values = {}
    for order in found.orders[inside].tolist():
        key = layout.record_key(entry.number, order)
        value = txn.get("records", key)
        if value is None:
            raise CorruptionError(f"records: order {order} of block {block} is missing")
        record_layout.check_record(key, value)
        values[key] = value
    return _Load(block, inside, found, values)


def _move(txn: Transaction, writer: IndexedRows, load: _Load) -> None:
    """Give the living rows of a block new rows."""
    found, inside = load.found, load.inside
    moved = writer.add(found.packed.take(inside), found.orders[inside])
    writer.kill(load.block * BLOCK_ROWS + inside)
    for (key, value), row in zip(load.values.items(), moved.tolist(), strict=True):
        txn.put(
            "records", key, record_layout.pack_record(key, row, value[record_layout.RECORD.size :])
        )


def _tidy(txn: Transaction, entry: Entry) -> bool:
    """Bring a part of the columns of fields into their best state; return whether there is more."""
    state = catalog.state(txn, entry.number)
    more = upkeep.tidy(txn, entry, state)
    catalog.save_state(txn, entry.number, state)
    return more


# The index


T = TypeVar("T")

# From so many rows, and so many bytes of vectors, an index is faster than comparing all.
AUTO_ROWS, AUTO_BYTES = 10_000, 8 << 20
# With fewer rows there is nothing to train lists on.
LEAST_ROWS = 256
# The tail and the dead rows in lists may be so many, and so many for each list.
BACKLOG, BACKLOG_EACH = 2048, 3
# Buckets are made anew when the tail and the dead rows are such a share of the rows.
BUCKETS_SHARE = 0.125
# Lists are trained anew when there are so many times the rows, while that is quick.
GROWTH, QUICK_ROWS = 4, 250_000
# And when such a share of the rows came since, for they may be unlike those that it learned from.
RENEWED = 0.5

Step = Literal["train", "calibrate", "keep up", "keep up and calibrate"]


class Source(Protocol):
    """Where a collection is read and written."""

    def reading(self) -> AbstractContextManager[Reader]:
        """A transaction to read in."""

    def writing(self, work: Callable[[Transaction], T], timeout: float | None) -> T:
        """Run work in a write transaction and commit it."""


def after_write(source: Source, number: int, uid: bytes, timeout: float | None = None) -> None:
    """Do what a write left to be done, if it is enough to be worth it."""
    with source.reading() as reader:
        if not isinstance(reader, Snapshot):
            return
        entry = catalog.read(reader, number, uid)
        state = catalog.state(reader, number)
        step = due(reader, entry, state)
        draft = None
        if step == "train":
            draft = _train(reader, entry, state, index.kind(reader, number))
    if step is not None and step != "calibrate":
        _carry_out(source, entry, draft, timeout)
    if step in ("calibrate", "keep up and calibrate"):
        calibrate(source, entry, timeout=timeout)


def may_be_due(state: State) -> bool:
    """Whether there may be something to do, as the counters alone can tell."""
    changed = state.backlog >= min(BACKLOG, state.rows)
    return changed and state.rows >= min(LEAST_ROWS, AUTO_ROWS)


def due(reader: Reader, entry: Entry, state: State) -> Step | None:
    """What is to be done for the index of a collection."""
    if not may_be_due(state):
        return None
    wanted = index.kind(reader, entry.number)
    if entry.spec.metric == "hamming":
        worth = state.backlog >= max(BACKLOG, BUCKETS_SHARE * state.rows)
        return "keep up" if wanted == "hash" and worth else None
    if wanted == "flat":
        return None
    found = index.load(reader, entry, state)
    if wanted == "hash":
        grown = found is not None and GROWTH * max(found.trained, LEAST_ROWS) <= state.rows
        return "train" if grown and state.rows <= QUICK_ROWS else None
    if found is None:
        return "train" if state.rows >= _least_rows(entry, wanted) else None
    if GROWTH * found.trained <= state.rows <= QUICK_ROWS:
        return "train"
    if state.backlog < max(BACKLOG, BACKLOG_EACH * found.model.lists):
        return None
    if state.rows < LEAST_ROWS or not _is_renewed(reader, entry, state, found):
        return "keep up"
    return "train" if state.rows <= QUICK_ROWS else "keep up and calibrate"


def _is_renewed(reader: Reader, entry: Entry, state: State, found: Index) -> bool:
    """Whether many of the rows came since the index was made."""
    tail = rows.count(rows.live(reader, entry.number, state)[~found.listed])
    return found.arrived + tail >= RENEWED * state.rows


def _least_rows(entry: Entry, wanted: Kind) -> int:
    if wanted == "auto":
        return max(AUTO_ROWS, AUTO_BYTES // (4 * entry.spec.dim))
    return LEAST_ROWS


def _train(
    reader: Snapshot,
    entry: Entry,
    state: State,
    wanted: Kind,
    real: Vectors | None = None,
    progress: Progress | None = None,
) -> Draft:
    lists = 0 if wanted == "hash" else None
    return training.train(reader, entry, state, lists=lists, real=real, progress=progress)


def _suits(model: Model, wanted: Kind) -> bool:
    """Whether an index with this model is of the kind that is wanted."""
    return wanted != "flat" and (wanted == "hash") == (model.lists == 0)


def _carry_out(source: Source, entry: Entry, draft: Draft | None, timeout: float | None) -> None:
    def work(txn: Transaction) -> None:
        current = catalog.read(txn, entry.number, entry.uid)
        state = catalog.state(txn, entry.number)
        found = index.load(txn, current, state)
        wanted = index.kind(txn, entry.number)
        if draft is not None and not _suits(draft.model, wanted):
            # Somebody chose another kind while this one was being made.
            return
        if draft is not None:
            ivf.write(txn, current, state, wanted, draft)
        elif entry.spec.metric == "hamming":
            if wanted != "hash":
                return
            buckets.make(txn, current, state, wanted)
        elif found is not None and found.model.lists:
            ivf.keep_up(txn, current, state, found)
        catalog.save_state(txn, entry.number, state)

    source.writing(work, timeout)


def calibrate(
    source: Source,
    entry: Entry,
    *,
    real: Vectors | None = None,
    progress: Progress | None = None,
    timeout: float | None = None,
) -> bool:
    """Measure and save the budgets of an index anew; return whether there is one.

    Args:
        source: Where to read and write.
        entry: The collection.
        real: float32 (m, dim), queries that were asked lately.
        progress: Called with the share of the work that is done.
        timeout: Seconds to wait for the right to write.
    """
    with source.reading() as reader:
        if not isinstance(reader, Snapshot):
            return False
        state = catalog.state(reader, entry.number)
        seen = index.load(reader, entry, state)
        if seen is None or (seen.model.lists and state.rows < LEAST_ROWS):
            # Of so few rows all are compared; what was measured is for times when there are more.
            return False
        budgets = training.calibrate(reader, entry, state, seen, real=real, progress=progress)

    def work(txn: Transaction) -> bool:
        now = catalog.state(txn, entry.number)
        found = index.load(txn, catalog.read(txn, entry.number, entry.uid), now)
        # What was measured is of no use to an index that has replaced the one measured.
        if found is None or found.edition != seen.edition:
            return False
        # Small ones are to be trained anew for what has arrived; large ones are only measured.
        arrived = found.arrived if state.rows <= QUICK_ROWS else 0
        saved = replace(found, budgets=budgets, arrived=arrived)
        index.save_plan(txn, entry.number, saved)
        return True

    return source.writing(work, timeout)


def optimize(
    source: Source,
    number: int,
    uid: bytes,
    *,
    train: bool | None = None,
    real: Vectors | None = None,
    progress: Progress | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Bring the index of a collection into its best state.

    Args:
        source: Where to read and write.
        number: The collection's number.
        uid: Its uid.
        train: Whether to train anew; by default if the collection has changed much since.
        real: float32 (m, dim), queries that were asked lately.
        progress: Called with the share of the work that is done.
        timeout: Seconds to wait for the right to write, each time.

    Returns:
        "trained" and "calibrated" (whether), "lists" (how many there are now; of binary vectors
        bands).
    """
    tell = progress or (lambda share: None)
    with source.reading() as reader:
        entry = catalog.read(reader, number, uid)
        wanted = index.kind(reader, number)
    while source.writing(lambda txn: repack(txn, catalog.read(txn, number, uid)), timeout):
        pass
    while source.writing(lambda txn: _tidy(txn, catalog.read(txn, number, uid)), timeout):
        pass
    if entry.spec.metric == "hamming":
        return _optimize_buckets(source, entry, wanted, tell, timeout)
    draft = None
    if wanted != "flat":
        with source.reading() as reader:
            if isinstance(reader, Snapshot):
                draft = _draft(reader, entry, wanted, train, real, tell)
        _carry_out(source, entry, draft, timeout)
        # Blocks that no list names any more.
        source.writing(lambda txn: repack(txn, catalog.read(txn, number, uid)), timeout)
    calibrated = draft is not None
    if draft is None:
        calibrated = calibrate(source, entry, real=real, progress=progress, timeout=timeout)
    with source.reading() as reader:
        found = index.load(reader, entry, catalog.state(reader, number))
    tell(1.0)
    lists = 0 if found is None else int((~found.model.closed).sum())
    return {"trained": draft is not None, "calibrated": calibrated, "lists": lists}


def _optimize_buckets(
    source: Source, entry: Entry, wanted: Kind, progress: Progress, timeout: float | None
) -> dict[str, Any]:
    """What `optimize` does for binary vectors once their blocks are repacked."""
    with source.reading() as reader:
        state = catalog.state(reader, entry.number)
        due = wanted == "hash" and state.backlog > 0
    if due:
        _carry_out(source, entry, None, timeout)
    progress(1.0)
    bands = _bands(source, entry)
    return {"trained": due and bands > 0, "calibrated": False, "lists": bands}


def _bands(source: Source, entry: Entry) -> int:
    """How many bands have buckets."""
    with source.reading() as reader:
        found = buckets.load(reader, entry, catalog.state(reader, entry.number))
    return 0 if found is None else found.bands.count


def _draft(
    reader: Snapshot,
    entry: Entry,
    wanted: Kind,
    train: bool | None,
    real: Vectors | None,
    progress: Progress,
) -> Draft | None:
    """A new index, if it is time for it and there are rows enough."""
    state = catalog.state(reader, entry.number)
    found = index.load(reader, entry, state)
    if train is None:
        train = found is None or _is_renewed(reader, entry, state, found)
        if found is not None:
            train |= not 0.5 <= state.rows / max(1, found.trained) <= 2
    if not train or state.rows < _least_rows(entry, wanted):
        return None
    return _train(reader, entry, state, wanted, real, progress)


def kind(reader: Reader, number: int) -> Kind:
    """The kind of index that a collection is to have."""
    return index.kind(reader, number)


def check_kind(wanted: object, metric: object) -> None:
    """Raise SpecError if a collection of this metric cannot have this kind of index."""
    if not isinstance(wanted, str) or wanted not in index.KINDS:
        raise SpecError(f"index={show(wanted)} is unknown; use one of {', '.join(index.KINDS)}")
    if metric == "hamming" and wanted == "ivf":
        raise SpecError(
            "index='ivf' is not there for metric 'hamming', whose vectors have no codes; use 'hash'"
            " (buckets), or 'flat' or 'auto' (all rows are compared)"
        )


def reindex(
    source: Source,
    number: int,
    uid: bytes,
    wanted: Kind,
    *,
    real: Vectors | None = None,
    progress: Progress | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Make the index of a collection anew from its records, as one of a kind.

    The one that is there answers until then. It is not read: it may be damaged.

    Args:
        source: Where to read and write.
        number: The collection's number.
        uid: Its uid.
        wanted: The kind.
        real: float32 (m, dim), queries that were asked lately.
        progress: Called with the share of the work that is done.
        timeout: Seconds to wait for the right to write.

    Returns:
        What `optimize` returns.
    """
    tell = progress or (lambda share: None)
    # Where nothing may be written this fails now, and not after the work.
    entry = source.writing(lambda txn: catalog.read(txn, number, uid), timeout)
    draft = None
    if wanted != "flat" and entry.spec.metric != "hamming":
        with source.reading() as reader:
            state = catalog.state(reader, number)
            if isinstance(reader, Snapshot) and state.rows >= _least_rows(entry, wanted):
                draft = _train(reader, entry, state, wanted, real, tell)
    source.writing(
        lambda txn: set_kind(txn, catalog.read(txn, number, uid), wanted, draft), timeout
    )
    tell(1.0)
    if entry.spec.metric == "hamming":
        bands = _bands(source, entry)
        return {"trained": bands > 0, "calibrated": False, "lists": bands}
    lists = 0 if draft is None else int((~draft.model.closed).sum())
    return {"trained": draft is not None, "calibrated": draft is not None, "lists": lists}


def set_kind(txn: Transaction, entry: Entry, wanted: Kind, draft: Draft | None = None) -> None:
    """Write what kind of index a collection is to have, in place of whatever index it has.

    Codes in row order, buckets of binary vectors, and the bytes of a flat index, are there at once,
    of all rows; lists if there is a draft of them.
    """
    state = catalog.state(txn, entry.number)
    binary = entry.spec.metric == "hamming"
    if draft is None and wanted == "hash" and not binary:
        draft = training.untrained(entry)
    if draft is not None:
        ivf.write(txn, entry, state, wanted, draft)
    elif binary and wanted == "hash":
        buckets.make(txn, entry, state, wanted)
    else:
        index.clear(txn, entry.number)
        with_bytes = wanted == "flat" and rounding.suits(entry.spec)
        if with_bytes:
            alive = rows.live(txn, entry.number, state)
            round_blocks(txn, entry, state, np.flatnonzero(alive))
        index.save_kind(txn, entry.number, wanted, with_bytes=with_bytes)
        state.backlog = state.rows
    catalog.save_state(txn, entry.number, state)


def round_blocks(txn: Transaction, entry: Entry, state: State, blocks: NDArray[np.intp]) -> None:
    """Write the bytes of all rows of some blocks, those of a few at a time."""
    for at in range(0, len(blocks), SLICE_BLOCKS):
        part = blocks[at : at + SLICE_BLOCKS]
        numbers = (part[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
        held = (numbers >> 6 != state.open_block) | (numbers & 63 < state.open_rows)
        numbers = numbers[held]
        rounding.save(txn, entry, numbers, ivf.gather(txn, entry, state, numbers))
