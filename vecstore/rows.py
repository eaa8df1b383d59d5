"""Which rows live, where are their vectors, and where do new ones go?

A row is a dense uint32 that users never see: block = row // 64. A block is allotted whole, filled
from its first row on, and never changed in place: each change writes a new value, so that an older
snapshot keeps the block that it began with. A block without a living row is deleted and its number
is used again. Invariants: a block has a value if and only if its word in the bitmap of living rows
is not zero; only the open block may have fewer than 64 rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecstore import layout
from vecstore.errors import CorruptionError, StoreFullError
from vecstore.layout import BLOCK_ROWS, NO_BLOCK, PART_ROWS, State
from vecstore.store import Reader, Snapshot, Transaction
from vecstore.vectors import Vectors

Words = NDArray[np.uint64]
Rows = NDArray[np.intp]

PART_WORDS = PART_ROWS // BLOCK_ROWS


# The bitmap of living rows


def live(reader: Reader, collection: int, state: State) -> Words:
    """The bitmap of living rows, uint64 (state.blocks,): one word per block. Do not write to it."""
    if isinstance(reader, Snapshot):
        key = ("live", collection)
        words = reader.cache.get(key)
        if words is None:
            words = reader.cache[key] = _read_live(reader, collection, state.blocks)
        return words
    return _read_live(reader, collection, state.blocks)


def _read_live(reader: Reader, collection: int, blocks: int) -> Words:
    parts = -(-blocks // PART_WORDS)
    bits = bytearray()
    for part in range(parts):
        value = reader.get("live", layout.part_key(collection, part))
        if value is None:
            raise CorruptionError(f"live: part {part} of collection {collection} is missing")
        bits += layout.unpack_part(value, collection, part)
    words = np.frombuffer(bits, "<u8")
    if words[blocks:].any():
        raise CorruptionError(
            f"live: collection {collection} has living rows beyond its last block"
        )
    return words[:blocks]


def members(words: Words) -> Rows:
    """The rows whose bits are set, ascending."""
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))


def count(words: Words) -> int:
    """How many bits are set."""
    return int(np.bitwise_count(words).sum())


def mark(words: Words, rows: Rows) -> None:
    """Set the bits of rows."""
    np.bitwise_or.at(words, rows >> 6, np.uint64(1) << (rows & 63).astype(np.uint64))


# Reading blocks


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive views of some blocks that hold equally many rows.

    Attributes:
        blocks: Block numbers, (b,).
        orders: uint64 (b, rows).
        norms: float64 (b, rows).
        vectors: float32 (b, rows, dim).
    """

    blocks: Rows
    orders: NDArray[np.uint64]
    norms: NDArray[np.float64]
    vectors: NDArray[np.float32]

    def rows(self) -> Rows:
        """The rows of the run, (b, rows)."""
        return self.blocks[:, None] * BLOCK_ROWS + np.arange(self.orders.shape[1])


def runs(reader: Reader, collection: int, state: State, dim: int, blocks: Rows) -> Iterator[Run]:
    """View blocks, as few runs as possible; a view lives no longer than the reader.

    In a snapshot, blocks that lie at equal distances in the map become one run of many blocks,
    without a copy. In a transaction every block is a run of its own and a copy.
    """
    if not isinstance(reader, Snapshot):
        for block in blocks.tolist():
            yield _read_run(reader, collection, state, block, dim)
        return
    table = _table(reader, collection, state, dim, blocks)
    addresses = table[blocks].astype(np.int64)
    for start, stop in _strides(addresses, blocks, state.open_block):
        yield _map_run(
            addresses[start:stop], blocks[start:stop], _rows_of(state, blocks[start]), dim
        )


def _table(
    snapshot: Snapshot, collection: int, state: State, dim: int, blocks: Rows
) -> NDArray[np.uint64]:
    """The address table of a collection, filled for some blocks."""

    def check(value: memoryview, block: int) -> None:
        rows = layout.check_block(value, collection, block, dim)
        if rows != _rows_of(state, block):
            raise CorruptionError(
                f"tiers: block {block} of collection {collection} has {rows} rows"
            )

    return snapshot.addresses(layout.tier_prefix(collection), blocks, state.blocks, check)


def _rows_of(state: State, block: int) -> int:
    return state.open_rows if block == state.open_block else BLOCK_ROWS


def _strides(
    addresses: NDArray[np.int64], blocks: Rows, open_block: int
) -> Iterator[tuple[int, int]]:
    """Cut a sequence of addresses where the distance to the next one changes."""
    steps = np.diff(addresses)
    start, n = 0, len(addresses)
    # The open block has another shape than its neighbours.
    lone = set(np.flatnonzero(blocks == open_block).tolist())
    changes = np.flatnonzero(np.diff(steps)) + 2
    edges = sorted({*changes.tolist(), *lone, *(i + 1 for i in lone), n} - {0})
    for stop in edges:
        if stop - start > 1 and steps[start] <= 0:
            yield from ((i, i + 1) for i in range(start, stop))
        elif start < stop:
            yield start, stop
        start = stop


def _map_run(addresses: NDArray[np.int64], blocks: Rows, rows: int, dim: int) -> Run:
    stride = int(addresses[1] - addresses[0]) if len(addresses) > 1 else 0
    first = int(addresses[0])
    length = int(addresses[-1]) - first + layout.HEADER.size + layout.block_bytes(rows, dim)
    memory = memoryview((ctypes.c_char * length).from_address(first))
    at, b = layout.HEADER.size, len(addresses)
    norms_at, vectors_at = at + layout.ORDERS_BYTES, at + layout.COLUMNS_BYTES
    run = Run(
        blocks,
        np.ndarray((b, rows), "<u8", memory, at, (stride, 8)),
        np.ndarray((b, rows), "<f8", memory, norms_at, (stride, 8)),
        np.ndarray((b, rows, dim), "<f4", memory, vectors_at, (stride, dim * 4, 4)),
    )
    for view in (run.orders, run.norms, run.vectors):
        view.flags.writeable = False
    return run


def _read_run(reader: Reader, collection: int, state: State, block: int, dim: int) -> Run:
    found = read_block(reader, collection, block, dim)
    if len(found.orders) != _rows_of(state, block):
        raise CorruptionError(
            f"tiers: block {block} of collection {collection} has {len(found.orders)} rows"
        )
    return Run(np.array([block]), found.orders[None], found.norms[None], found.vectors[None])


def read_block(
    reader: Reader, collection: int, block: int, dim: int, *, verify: bool = False
) -> layout.Block:
    """View one block; in a transaction, a copy of it. `verify` its checksum to write it anew."""
    where = f"tiers: block {block} of collection {collection}"
    value = reader.get("tiers", layout.block_key(collection, block))
    if value is None:
        raise CorruptionError(f"{where} is missing")
    if verify:
        layout.verify_bulk(value, where)
    return layout.view_block(value, layout.check_block(value, collection, block, dim), dim)


def gather(
    reader: Reader, collection: int, state: State, dim: int, rows: Rows
) -> tuple[NDArray[np.uint64], NDArray[np.float64], Vectors]:
    """Copy orders (n,), norms (n,) and stored vectors (n, dim) of some rows."""
    if isinstance(reader, Snapshot) and len(rows):
        return _gather_mapped(reader, collection, state, dim, rows)
    orders = np.empty(len(rows), np.uint64)
    norms = np.empty(len(rows), np.float64)
    vectors = np.empty((len(rows), dim), np.float32)
    for block in _distinct(rows >> 6).tolist():
        places = np.flatnonzero(rows >> 6 == block)
        inside = rows[places] & 63
        found = _read_run(reader, collection, state, block, dim)
        orders[places] = found.orders[0, inside]
        norms[places] = found.norms[0, inside]
        vectors[places] = found.vectors[0, inside]
    return orders, norms, vectors


def _gather_mapped(
    snapshot: Snapshot, collection: int, state: State, dim: int, rows: Rows
) -> tuple[NDArray[np.uint64], NDArray[np.float64], Vectors]:
    """Copy rows out of one window over the map that spans all their blocks."""
    blocks, inside = rows >> 6, rows & 63
    if (inside[blocks == state.open_block] >= state.open_rows).any():
        raise CorruptionError(f"live: collection {collection} has a row beyond its open block")
    table = _table(snapshot, collection, state, dim, _distinct(blocks))
    starts = table[blocks].astype(np.int64) + layout.HEADER.size
    base = int(starts.min())
    length = int(starts.max()) - base + layout.block_bytes(BLOCK_ROWS, dim)
    if state.open_block in blocks:
        # That block may be the last one, and it is short.
        ends = starts + layout.COLUMNS_BYTES + (inside + 1) * dim * 4
        length = int(ends.max()) - base
    window = memoryview((ctypes.c_char * length).from_address(base))
    starts -= base
    orders = np.frombuffer(window, "<u8", length // 8)[starts // 8 + inside]
    norms = np.frombuffer(window, "<f8", length // 8)[(starts + layout.ORDERS_BYTES) // 8 + inside]
    numbers = np.frombuffer(window, "<f4", length // 4)
    # Every position of the window as the beginning of a vector.
    vectors = np.lib.stride_tricks.as_strided(
        numbers, (len(numbers) - dim + 1, dim), (4, 4), writeable=False
    )[(starts + layout.COLUMNS_BYTES) // 4 + inside * dim]
    return orders, norms, vectors


def _distinct(values: Rows) -> Rows:
    """Each value once, ascending; as np.unique, which imports numpy.ma for 12 ms."""
    ordered = np.sort(values)
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


# Writing


class RowWriter:
    """Allots rows to new vectors and lets rows die, inside one write transaction.

    Nothing but blocks is written before `finish`, which must be called once at the end; it writes
    the bitmaps. `state` is changed; saving it is the caller's.
    """

    def __init__(self, txn: Transaction, collection: int, state: State, dim: int) -> None:
        self._txn = txn
        self._collection = collection
        self._state = state
        self._dim = dim
        # Bit row & 7 of byte row >> 3: the little-endian words of the bitmap, seen as bytes.
        self._parts: dict[int, bytearray] = {}
        self._changed: set[int] = set()
        self._touched: set[int] = set()
        self._free: list[int] | None = None

    def add(self, vectors: Vectors, norms: NDArray[np.float64], orders: NDArray[np.uint64]) -> Rows:
        """Store vectors in their stored form and return their new rows."""
        state, rows, at = self._state, np.empty(len(vectors), np.intp), 0
        while at < len(vectors):
            if state.open_block == NO_BLOCK:
                state.open_block, state.open_rows = self._allot(), 0
            take = min(BLOCK_ROWS - state.open_rows, len(vectors) - at)
            part = slice(at, at + take)
            self._extend(vectors[part], norms[part], orders[part])
            first = state.open_block * BLOCK_ROWS + state.open_rows
            rows[part] = np.arange(first, first + take)
            self._mark(state.open_block, (1 << take) - 1 << state.open_rows)
            state.open_rows += take
            if state.open_rows == BLOCK_ROWS:
                state.open_block, state.open_rows = NO_BLOCK, 0
            at += take
        return rows

    def kill(self, rows: Rows) -> None:
        """Let rows die; a block without a living row goes with its last one."""
        for row in rows.tolist():
            part = row // PART_ROWS
            self._part(part)[row % PART_ROWS >> 3] &= ~(1 << (row & 7))
            self._changed.add(part)
            self._touched.add(row >> 6)

    def word(self, block: int) -> int:
        """The living rows of a block, a bit each."""
        at = block % PART_WORDS * 8
        return int.from_bytes(self._part(block // PART_WORDS)[at : at + 8], "little")

    def touched(self) -> list[int]:
        """Blocks that lost rows in this transaction, ascending."""
        return sorted(self._touched)

    def finish(self) -> None:
        """Delete the blocks that died and write the bitmaps."""
        state = self._state
        for block in self._touched:
            if self.word(block) == 0:
                self._txn.delete("tiers", layout.block_key(self._collection, block))
                if block == state.open_block:
                    state.open_block, state.open_rows = NO_BLOCK, 0
        for part in sorted(self._changed):
            value = layout.pack_part(self._collection, part, self._parts[part], self._txn.page)
            self._txn.put("live", layout.part_key(self._collection, part), value)

    def trim(self) -> None:
        """Give back the numbers of dead blocks at the end, after `finish`."""
        words = _read_live(self._txn, self._collection, self._state.blocks)
        alive = np.flatnonzero(words)
        blocks = int(alive[-1]) + 1 if len(alive) else 0
        for part in range(-(-blocks // PART_WORDS), -(-self._state.blocks // PART_WORDS)):
            self._txn.delete("live", layout.part_key(self._collection, part))
        self._state.blocks = blocks

    def _extend(
        self, vectors: Vectors, norms: NDArray[np.float64], orders: NDArray[np.uint64]
    ) -> None:
        block, held, old = self._state.open_block, self._state.open_rows, None
        key = layout.block_key(self._collection, block)
        if held:
            old = self._txn.get("tiers", key)
            if old is None or held != layout.check_block(old, self._collection, block, self._dim):
                raise CorruptionError(f"tiers: block {block} does not hold {held} rows")
            # The new value gets a checksum of its own, which must not hide damage to the old one.
            layout.verify_bulk(old, f"tiers: block {block} of collection {self._collection}")
        value = layout.pack_block(
            self._collection, block, old, held, orders, norms, vectors, self._txn.page
        )
        self._txn.put("tiers", key, value)

    def _allot(self) -> int:
        """Take the lowest free block, or a new one at the end."""
        state = self._state
        if self._free is None:
            words = _read_live(self._txn, self._collection, state.blocks)
            for part, changed in self._parts.items():
                span = words[part * PART_WORDS : (part + 1) * PART_WORDS]
                # A block that died in this very transaction still has its value.
                span |= np.frombuffer(changed, "<u8")[: len(span)]
            self._free = np.flatnonzero(words == 0)[::-1].tolist()
        if self._free:
            return self._free.pop()
        if state.blocks >= layout.MAX_ROWS // BLOCK_ROWS:
            raise StoreFullError(f"a collection holds at most {layout.MAX_ROWS} rows")
        state.blocks += 1
        return state.blocks - 1

    def _mark(self, block: int, bits: int) -> None:
        """Let rows of a block live."""
        part, at = block // PART_WORDS, block % PART_WORDS * 8
        words = self._part(part)
        word = int.from_bytes(words[at : at + 8], "little") | bits
        words[at : at + 8] = word.to_bytes(8, "little")
        self._changed.add(part)

    def _part(self, part: int) -> bytearray:
        bits = self._parts.get(part)
        if bits is None:
            value = self._txn.get("live", layout.part_key(self._collection, part))
            if value is None:
                bits = bytearray(layout.PART_BYTES)
            else:
                bits = layout.unpack_part(value, self._collection, part)
            self._parts[part] = bits
        return bits
