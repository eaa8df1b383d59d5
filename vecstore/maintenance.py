"""How does a collection keep its shape? Blocks with few living rows are emptied into new ones.

A block is sparse when at most half of its rows live. Each write repacks the sparse blocks that it
made, so a row that dies pays for moving at most one other; `repack` does all that are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecstore import catalog, layout, rows
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.layout import BLOCK_ROWS, State
from vecstore.rows import RowWriter
from vecstore.store import Transaction

SPARSE_ROWS = BLOCK_ROWS // 2
# Blocks repacked in one transaction: a slice of at most 8,192 records.
SLICE_BLOCKS = 256


def repack_touched(txn: Transaction, entry: Entry, state: State, writer: RowWriter) -> None:
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
    writer = RowWriter(txn, entry.number, state, entry.form)
    for block in sparse[:SLICE_BLOCKS]:
        _move(txn, writer, _load(txn, entry, writer, block))
    writer.finish()
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


def _load(txn: Transaction, entry: Entry, writer: RowWriter, block: int) -> _Load:
    """Read and verify all that is in a sparse block; CorruptionError before anything changed."""
    found = rows.read_block(txn, entry.number, block, entry.form, verify=True)
    inside = rows.members(np.array([writer.word(block)], np.uint64))
    values = {}
    for order in found.orders[inside].tolist():
        key = layout.record_key(entry.number, order)
        value = txn.get("records", key)
        if value is None:
            raise CorruptionError(f"records: order {order} of block {block} is missing")
        layout.check_record(key, value)
        values[key] = value
    return _Load(block, inside, found, values)


def _move(txn: Transaction, writer: RowWriter, load: _Load) -> None:
    """Give the living rows of a block new rows."""
    found, inside = load.found, load.inside
    moved = writer.add(found.packed.take(inside), found.orders[inside])
    writer.kill(load.block * BLOCK_ROWS + inside)
    for (key, value), row in zip(load.values.items(), moved.tolist(), strict=True):
        txn.put("records", key, layout.pack_record(key, row, value[layout.RECORD.size :]))
