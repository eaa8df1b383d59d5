"""Which rows live, where are their vectors, and where do new ones go?

A row is a dense uint32 that users never see: block = row // 64. A block is allotted whole, filled
from its first row on, and never changed in place: each change writes a new value, so that an older
snapshot keeps the block that it began with. A block without a living row is deleted and its number
is used again. Invariants: a block has a value if and only if its word in the bitmap of living rows
is not zero; only the open block may have fewer than 64 rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vecstore import layout
from vecstore.errors import CorruptionError, StoreFullError
from vecstore.layout import BLOCK_ROWS, NO_BLOCK, PART_ROWS, Block, Form, Packed, State
from vecstore.store import Reader, Snapshot, Transaction
from vecstore.vectors import Vectors, widen

Words = NDArray[np.uint64]
Rows = NDArray[np.intp]
Number = TypeVar("Number", bound=np.integer[Any])

PART_WORDS = PART_ROWS // BLOCK_ROWS


# The bitmap of living rows


def live(reader: Reader, collection: int, state: State) -> Words:
    """The bitmap of living rows, uint64 (state.blocks,): one word per block. Do not write to it."""
    if isinstance(reader, Snapshot):
        key = ("live", collection)
        words = reader.cache.get(key)
        if words is None:
            words = reader.cache[key] = _read_held_live(reader, collection, state)
        return words
    return _read_held_live(reader, collection, state)


def _read_held_live(reader: Reader, collection: int, state: State) -> Words:
    words, block = _read_live(reader, collection, state.blocks), state.open_block
    if block != NO_BLOCK and int(words[block]) >> state.open_rows:
        raise CorruptionError(f"live: collection {collection} has rows beyond its open block")
    return words


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


def flags(words: Words) -> NDArray[np.bool_]:
    """Whether each bit is set, bool (64 * words,)."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little")
    # As bytes they would be searched in ten times the time.
    found: NDArray[np.bool_] = bits.view(np.bool_)
    return found


def members(words: Words) -> Rows:
    """The rows whose bits are set, ascending."""
    some = np.flatnonzero(words)
    inside = np.flatnonzero(flags(words[some]))
    return inside if len(some) == len(words) else some[inside >> 6] * BLOCK_ROWS + (inside & 63)


def distinct(values: NDArray[Number]) -> NDArray[Number]:
    """Each value once, ascending; as np.unique, which imports numpy.ma for 12 ms."""
    ordered = np.sort(values)
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


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
        packed: The vectors in their stored form: norms (b, rows), numbers (b, rows, width).
    """

    blocks: Rows
    orders: NDArray[np.uint64]
    packed: Packed

    @property
    def norms(self) -> NDArray[np.float64]:
        """The norms, float64 (b, rows)."""
        return self.packed.norms

    @property
    def vectors(self) -> Vectors:
        """The vectors, float32 (b, rows, dim): a view of float32, a copy of other forms."""
        return widen(self.packed)

    def rows(self) -> Rows:
        """The rows of the run, (b, rows)."""
        return self.blocks[:, None] * BLOCK_ROWS + np.arange(self.orders.shape[1])


def runs(reader: Reader, collection: int, state: State, form: Form, blocks: Rows) -> Iterator[Run]:
    """View blocks, as few runs as possible; a view lives no longer than the reader.

    In a snapshot, blocks that lie at equal distances in the map become one run of many blocks,
    without a copy. In a transaction every block is a run of its own and a copy.
    """
    if not isinstance(reader, Snapshot):
        for block in blocks.tolist():
            found = _read_held(reader, collection, state, block, form)
            yield Run(np.array([block]), found.orders[None], found.packed.take(None))
        return
    addresses = table(reader, collection, state, form, blocks)[blocks].astype(np.int64)
    for start, stop in _strides(addresses, blocks, state.open_block):
        yield _map_run(
            addresses[start:stop], blocks[start:stop], _rows_of(state, blocks[start]), form
        )


class _Span:
    """Some bytes of the map, as numpy takes them; a type of ctypes for each length is slow."""

    __slots__ = ("__array_interface__",)

    def __init__(self, address: int, length: int) -> None:
        self.__array_interface__ = {
            "data": (address, True),
            "shape": (length,),
            "typestr": "|u1",
            "version": 3,
        }


def window(address: int, length: int) -> NDArray[np.uint8]:
    """View some bytes of the map, read-only; the view lives no longer than its snapshot."""
    return np.asarray(_Span(address, length))


def table(
    snapshot: Snapshot, collection: int, state: State, form: Form, blocks: Rows
) -> NDArray[np.uint64]:
    """The address table of a collection, filled for some blocks."""

    def check(value: memoryview, block: int) -> None:
        rows = layout.check_block(value, collection, block, form)
        if rows != _rows_of(state, block):
            raise CorruptionError(
                f"tiers: block {block} of collection {collection} has {rows} rows"
            )

    return snapshot.addresses("tiers", layout.tier_prefix(collection), blocks, state.blocks, check)


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


def _map_run(addresses: NDArray[np.int64], blocks: Rows, rows: int, form: Form) -> Run:
    stride = int(addresses[1] - addresses[0]) if len(addresses) > 1 else 0
    first = int(addresses[0])
    length = int(addresses[-1]) - first + layout.HEADER.size + form.block_bytes(rows)
    memory = window(first, length)
    at, b = layout.HEADER.size, len(addresses)

    def column(dtype: Any, place: int, *shape: int) -> NDArray[Any]:
        size = np.dtype(dtype).itemsize
        inner = (shape[1] * size, size) if len(shape) == 2 else (size,)
        view = np.ndarray((b, *shape), dtype, memory, at + place, (stride, *inner))
        view.flags.writeable = False
        return view

    packed = Packed(
        column("<f8", layout.ORDERS_BYTES, rows),
        column(form.dtype, form.vectors_at, rows, form.width),
        column("<f4", layout.COLUMNS_BYTES, rows) if form.code == layout.INT8 else None,
    )
    return Run(blocks, column("<u8", 0, rows), packed)


def _read_held(reader: Reader, collection: int, state: State, block: int, form: Form) -> Block:
    """View one block, having checked that it holds what the counters say."""
    found = read_block(reader, collection, block, form)
    if len(found.orders) != _rows_of(state, block):
        raise CorruptionError(
            f"tiers: block {block} of collection {collection} has {len(found.orders)} rows"
        )
    return found


def read_block(
    reader: Reader, collection: int, block: int, form: Form, *, verify: bool = False
) -> Block:
    """View one block; in a transaction, a copy of it. `verify` its checksum to write it anew."""
    where = f"tiers: block {block} of collection {collection}"
    value = reader.get("tiers", layout.block_key(collection, block))
    if value is None:
        raise CorruptionError(f"{where} is missing")
    if verify:
        layout.verify_bulk(value, where)
    return layout.view_block(value, layout.check_block(value, collection, block, form), form)


def gather(
    reader: Reader, collection: int, state: State, form: Form, rows: Rows
) -> tuple[NDArray[np.uint64], NDArray[np.float64], Vectors]:
    """Copy orders (n,), norms (n,) and vectors, float32 (n, dim), of some rows."""
    found = gather_packed(reader, collection, state, form, rows)
    return found.orders, found.packed.norms, widen(found.packed)


def gather_packed(reader: Reader, collection: int, state: State, form: Form, rows: Rows) -> Block:
    """Copy orders (n,) and stored forms of some rows."""
    if isinstance(reader, Snapshot) and len(rows):
        return _Gathering(reader, collection, state, form, rows).block()
    n, scales = len(rows), None
    if form.code == layout.INT8:
        scales = np.empty(n, np.float32)
    packed = Packed(np.empty(n), np.empty((n, form.width), form.dtype), scales)
    orders = np.empty(n, np.uint64)
    _check_rows(collection, state, rows >> 6, rows & 63)
    for block in distinct(rows >> 6).tolist():
        places = np.flatnonzero(rows >> 6 == block)
        inside = rows[places] & 63
        found = _read_held(reader, collection, state, block, form)
        orders[places] = found.orders[inside]
        packed.norms[places] = found.packed.norms[inside]
        packed.numbers[places] = found.packed.numbers[inside]
        if scales is not None and found.packed.scales is not None:
            scales[places] = found.packed.scales[inside]
    return Block(orders, packed)


def gather_numbers(
    snapshot: Snapshot, collection: int, state: State, form: Form, rows: Rows
) -> NDArray[Any]:
    """Copy the numbers alone, (n, width) in their stored form, of some rows, at least one."""
    return _Gathering(snapshot, collection, state, form, rows).numbers()


def gather_orders(
    reader: Reader, collection: int, state: State, form: Form, rows: Rows
) -> NDArray[np.uint64]:
    """Copy the orders, uint64 (n,), of some rows."""
    if isinstance(reader, Snapshot) and len(rows):
        return _Gathering(reader, collection, state, form, rows).orders()
    orders = np.empty(len(rows), np.uint64)
    _check_rows(collection, state, rows >> 6, rows & 63)
    for block in distinct(rows >> 6).tolist():
        places = np.flatnonzero(rows >> 6 == block)
        found = _read_held(reader, collection, state, block, form)
        orders[places] = found.orders[rows[places] & 63]
    return orders


def _check_rows(collection: int, state: State, blocks: Rows, inside: Rows) -> None:
    """Refuse rows that no block holds: records may name any."""
    beyond = (blocks >= state.blocks).any()
    if beyond or (inside[blocks == state.open_block] >= state.open_rows).any():
        raise CorruptionError(f"collection {collection} has a row beyond its blocks")


class _Gathering:
    """Copies rows out of one window over the map that spans all their blocks."""

    def __init__(
        self, snapshot: Snapshot, collection: int, state: State, form: Form, rows: Rows
    ) -> None:
        blocks, inside = rows >> 6, rows & 63
        _check_rows(collection, state, blocks, inside)
        found = table(snapshot, collection, state, form, distinct(blocks))
        starts = found[blocks].astype(np.int64) + layout.HEADER.size
        base = int(starts.min())
        length = int(starts.max()) - base + form.block_bytes(BLOCK_ROWS)
        if state.open_block in blocks:
            # That block may be the last one, and it is short.
            ends = starts + form.vectors_at + (inside + 1) * form.row_bytes
            length = int(ends.max()) - base
        self._form, self._length, self._window = form, length, window(base, length)
        self._starts, self._inside = starts - base, inside

    def block(self) -> Block:
        """All that there is of the rows."""
        scales = None
        if self._form.code == layout.INT8:
            scales = self._column("<f4", layout.COLUMNS_BYTES)
        norms = self._column("<f8", layout.ORDERS_BYTES)
        return Block(self.orders(), Packed(norms, self.numbers(), scales))

    def orders(self) -> NDArray[np.uint64]:
        """The orders of what the rows belong to."""
        return self._column("<u8", 0)

    def numbers(self) -> NDArray[Any]:
        """Their vectors in the stored form."""
        form = self._form
        # Every position of the window as the beginning of a vector.
        size = form.dtype.itemsize
        shape = (self._length // size - form.width + 1, form.width)
        positions: NDArray[Any] = np.ndarray(shape, form.dtype, self._window, strides=(size, size))
        starts = (self._starts + form.vectors_at) // size + self._inside * form.width
        vectors: NDArray[Any] = positions[starts]
        return vectors

    def _column(self, dtype: Any, place: int) -> NDArray[Any]:
        size = np.dtype(dtype).itemsize
        whole = np.frombuffer(self._window, dtype, self._length // size)
        picked: NDArray[Any] = whole[(self._starts + place) // size + self._inside]
        return picked


# Writing


class RowWriter:
    """Allots rows to new vectors and lets rows die, inside one write transaction.

    Nothing but blocks is written before `finish`, which must be called once at the end; it writes
    the bitmaps. `state` is changed; saving it is the caller's.
    """

    def __init__(self, txn: Transaction, collection: int, state: State, form: Form) -> None:
        self._txn = txn
        self._collection = collection
        self._state = state
        self._form = form
        # Bit row & 7 of byte row >> 3: the little-endian words of the bitmap, seen as bytes.
        self._parts: dict[int, bytearray] = {}
        self._changed: set[int] = set()
        self._touched: set[int] = set()
        self._free: list[int] | None = None
        # How many rows were given to vectors, and which blocks were taken for them.
        self.added, self.allotted = 0, list[int]()

    def add(self, packed: Packed, orders: NDArray[np.uint64]) -> Rows:
        """Store vectors in their stored form and return their new rows."""
        self.added += len(packed)
        state, rows, at = self._state, np.empty(len(packed), np.intp), 0
        while at < len(packed):
            if state.open_block == NO_BLOCK:
                state.open_block, state.open_rows = self._allot(), 0
                self.allotted.append(state.open_block)
            take = min(BLOCK_ROWS - state.open_rows, len(packed) - at)
            part = slice(at, at + take)
            self._extend(packed.take(part), orders[part])
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
        taken = np.flatnonzero(self._taken(words))
        blocks = int(taken[-1]) + 1 if len(taken) else 0
        for part in range(-(-blocks // PART_WORDS), -(-self._state.blocks // PART_WORDS)):
            self._txn.delete("live", layout.part_key(self._collection, part))
        self._state.blocks = blocks

    def _taken(self, words: Words) -> NDArray[np.bool_]:
        """Which blocks may not be given to new rows."""
        taken: NDArray[np.bool_] = words != 0
        return taken

    def _extend(self, packed: Packed, orders: NDArray[np.uint64]) -> None:
        block, held, old = self._state.open_block, self._state.open_rows, None
        key = layout.block_key(self._collection, block)
        if held:
            old = self._txn.get("tiers", key)
            if old is None or held != layout.check_block(old, self._collection, block, self._form):
                raise CorruptionError(f"tiers: block {block} does not hold {held} rows")
            # The new value gets a checksum of its own, which must not hide damage to the old one.
            layout.verify_bulk(old, f"tiers: block {block} of collection {self._collection}")
        value = layout.pack_block(
            self._collection, block, old, held, orders, packed, self._form, self._txn.page
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
            self._free = np.flatnonzero(~self._taken(words))[::-1].tolist()
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


def overwrite_dead(txn: Transaction, collection: int, block: int, word: int, form: Form) -> None:
    """Write a living row of a block over its dead ones; `word` has a bit for each that lives."""
    found = read_block(txn, collection, block, form, verify=True)
    held = len(found.orders)
    sources = np.arange(held)
    living = members(np.array([word], np.uint64))
    dead = np.setdiff1d(sources, living)
    sources[dead] = living[0]
    packed, orders = found.packed.take(sources), found.orders[sources]
    value = layout.pack_block(collection, block, None, 0, orders, packed, form, txn.page)
    txn.put("tiers", layout.block_key(collection, block), value)
