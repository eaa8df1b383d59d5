"""What do the vectors and codes of a collection take in the file? Told by counts, not by values."""

from __future__ import annotations

import numpy as np

from vecstore import index_layout, rows
from vecstore.ann import buckets, index
from vecstore.catalog import Entry
from vecstore.index_layout import NO_LIST
from vecstore.layout import BLOCK_ROWS, CODE_BLOCK, HEADER, LIST, State
from vecstore.store import Reader

TIERS = "full", "rounded", "lists", "tail"
# What LMDB writes at the head of a value's pages.
PAGE_HEAD = 16


def tiers(reader: Reader, entry: Entry, state: State) -> dict[str, dict[str, int]]:
    """Bytes of each tier: "full" (vectors), "rounded" (a flat index), "lists" (or bands), "tail".

    Of each how many its values take ("values"), and how many more the pages that these lie on
    ("unused"). All are known from how many rows each value is of.
    """
    page, form = reader.store.page, entry.form
    alive = rows.live(reader, entry.number, state)
    held = np.full(state.blocks, BLOCK_ROWS)
    if state.open_block < state.blocks:
        held[state.open_block] = state.open_rows
    full, lists, tail = held[alive != 0], held[:0], held[:0]
    sizes = {"full": [form.block_bytes(count) for count in full.tolist()]}
    if index.keeps_bytes(reader, entry):
        sizes["rounded"] = [index_layout.bytes_of_block(entry.spec.dim)] * len(full)
    found = index.load(reader, entry, state)
    if found is not None:
        shape = found.model.shape
        column = index.read_lists_of_rows(reader, entry.number, found)
        lists = np.bincount(column[column != NO_LIST], minlength=found.model.lists)
        tail = held[index.tail(found, alive)]
        sizes["lists"] = [shape.bytes_of(LIST, count) for count in lists.tolist()]
        sizes["tail"] = [shape.bytes_of(CODE_BLOCK, count) for count in tail.tolist()]
    bits = buckets.load(reader, entry, state)
    if bits is not None:
        sizes["lists"] = bits.bytes_of()
    return {name: _tier(sizes.get(name, []), page) for name in TIERS}


def _tier(payloads: list[int], page: int) -> dict[str, int]:
    """Bytes of values with such payloads, and what is left of their pages."""
    values = sum(payloads) + HEADER.size * len(payloads)
    # Every value begins on a page of its own, behind LMDB's head.
    pages = sum(-(-(PAGE_HEAD + max(HEADER.size + size, page // 2)) // page) for size in payloads)
    return {"values": values, "unused": pages * page - values}
