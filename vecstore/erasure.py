"""How does the file forget what was deleted? Dead rows are overwritten, and nothing keeps them.

A row that dies keeps its vector, and its codes, until its block or list is written anew, and a
segment of columns its values. This writes all of these anew. What lies in pages that are free, or
between the entries of a page, is left out when the file is rewritten (`store/copying.py`).
"""

from __future__ import annotations

import numpy as np

from vecstore import catalog, maintenance, rows
from vecstore.ann import buckets, index, ivf
from vecstore.catalog import Entry
from vecstore.fields import upkeep
from vecstore.layout import BLOCK_ROWS, NO_BLOCK, State
from vecstore.maintenance import SLICE_BLOCKS, Source
from vecstore.rows import Rows
from vecstore.store import Transaction


def erase(source: Source, number: int, uid: bytes, timeout: float | None = None) -> None:
    """Let nothing that lives in a collection hold any vector, code or value of a dead row.

    Models stay as they are: principal directions and centroids were learned from many vectors.

    Args:
        source: Where to read and write.
        number: The collection's number.
        uid: Its uid.
        timeout: Seconds to wait for the right to write, each time.
    """

    def entry(txn: Transaction) -> Entry:
        return catalog.read(txn, number, uid)

    def covered(first: int) -> int:
        return source.writing(lambda txn: _overwrite(txn, entry(txn), first), timeout)

    source.writing(lambda txn: _leave_lists(txn, entry(txn)), timeout)
    block = 0
    while block >= 0:
        block = covered(block)
    source.writing(lambda txn: _sort_anew(txn, entry(txn)), timeout)
    while source.writing(lambda txn: _merge(txn, entry(txn)), timeout):
        pass


def _leave_lists(txn: Transaction, entry: Entry) -> None:
    """Take dead rows out of the lists."""
    state = catalog.state(txn, entry.number)
    found = index.load(txn, entry, state)
    if found is not None and found.model.lists:
        ivf.keep_up(txn, entry, state, found)
        catalog.save_state(txn, entry.number, state)


def _overwrite(txn: Transaction, entry: Entry, first: int) -> int:
    """Write living rows over dead ones in some blocks; return the block to go on with, or -1."""
    state = catalog.state(txn, entry.number)
    words = rows.live(txn, entry.number, state)
    held = np.full(len(words), BLOCK_ROWS)
    if state.open_block != NO_BLOCK:
        held[state.open_block] = state.open_rows
    counts = np.bitwise_count(words)
    blocks = np.flatnonzero((counts > 0) & (counts < held))
    some = blocks[blocks >= first][:SLICE_BLOCKS]
    for block in some.tolist():
        rows.overwrite_dead(txn, entry.number, block, int(words[block]), entry.form)
    if not len(some):
        return -1
    _code(txn, entry, state, some)
    return int(some[-1]) + 1


def _code(txn: Transaction, entry: Entry, state: State, blocks: Rows) -> None:
    """Make the codes, or bytes, anew of blocks that were written over."""
    found = index.load(txn, entry, state)
    if found is not None:
        ivf.code_blocks(txn, entry, state, found.model, blocks[~found.listed[blocks]])
    elif index.keeps_bytes(txn, entry):
        maintenance.round_blocks(txn, entry, state, blocks)


def _sort_anew(txn: Transaction, entry: Entry) -> None:
    """Make buckets anew: where a row stands in them tells its bits."""
    state = catalog.state(txn, entry.number)
    if entry.spec.metric == "hamming" and index.kind(txn, entry.number) == "hash":
        buckets.make(txn, entry, state, "hash")
        catalog.save_state(txn, entry.number, state)


def _merge(txn: Transaction, entry: Entry) -> bool:
    """Write segments of columns anew that hold values of dead rows; return if there is more."""
    state = catalog.state(txn, entry.number)
    more = upkeep.tidy(txn, entry, state, whole=True)
    catalog.save_state(txn, entry.number, state)
    return more
