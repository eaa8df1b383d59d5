"""How does a collection keep its shape? Blocks with few living rows are emptied into new ones.

A block is sparse when at most half of its rows live. Each write repacks the sparse blocks that it
made, so a row that dies pays for moving at most one other; `repack` does all that are left.
"""

from __future__ import annotations

import numpy as np

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
        _empty(txn, entry, writer, block)


def repack(txn: Transaction, entry: Entry) -> bool:
    """Repack a slice of all sparse blocks; return whether there are more.

    The last slice also gives back the numbers of dead blocks at the end.
    """
    state = catalog.state(txn, entry.number)
    words = rows.live(txn, entry.number, state)
    counts = np.bitwise_count(words)
    sparse = np.flatnonzero((counts > 0) & (counts <= SPARSE_ROWS)).tolist()
    sparse = [block for block in sparse if block != state.open_block]
    writer = RowWriter(txn, entry.number, state, entry.spec.dim)
    for block in sparse[:SLICE_BLOCKS]:
        _empty(txn, entry, writer, block)
    writer.finish()
    more = len(sparse) > SLICE_BLOCKS
    if not more:
        writer.trim()
    catalog.save_state(txn, entry.number, state)
    return more


def _empty(txn: Transaction, entry: Entry, writer: RowWriter, block: int) -> None:
    """Move the living rows of a block to new rows."""
    found = rows.read_block(txn, entry.number, block, entry.spec.dim)
    inside = rows.members(np.array([writer.word(block)], np.uint64))
    # Copies: the block's value is replaced under the views.
    orders, norms = found.orders[inside].copy(), found.norms[inside].copy()
    moved = writer.add(found.vectors[inside].copy(), norms, orders)
    writer.kill(block * BLOCK_ROWS + inside)
    for order, row in zip(orders.tolist(), moved.tolist(), strict=True):
        key = layout.record_key(entry.number, order)
        value = txn.get("records", key)
        if value is None:
            raise CorruptionError(f"records: order {order} of block {block} is missing")
        layout.check_record(key, value)
        txn.put("records", key, layout.pack_record(key, row, value[layout.RECORD.size :]))
