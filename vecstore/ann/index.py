"""Where is the index of a collection, and what is in it? Plan, model, listed blocks, rows' lists.

A block of rows is either *listed*: its rows are in lists, or it is in the *tail*: its rows' codes
lie in a value of their own, in row order, and every search scans them. New rows are in the tail by
their own transaction. A listed block that died keeps its number until no list names its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vecstore import index_layout, layout
from vecstore.ann import codes
from vecstore.ann import model as models
from vecstore.ann.codes import Codes
from vecstore.ann.model import Model
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.index_layout import LISTED, MODEL, NO_LIST, PLAN
from vecstore.layout import BLOCK_ROWS, CODE_BLOCK, CODE_TIER, LIST, PART_ROWS, Packed, State
from vecstore.rows import Rows, RowWriter, Words
from vecstore.store import Reader, Snapshot, Transaction
from vecstore.vectors import Vectors, widen

Kind = Literal["auto", "flat", "hash", "ivf"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Models of so many collections are kept between the versions of a file.
MODELS_KEPT = 8


@dataclass(frozen=True, slots=True)
class Index:
    """The index of a collection.

    Attributes:
        kind: What was asked for.
        edition: Random; another one for every other model.
        trained: Rows of the collection when the model was trained.
        budgets: What calibration found, see `calibration.py`; empty before.
        model: How rows are coded.
        listed: bool (blocks,), blocks whose rows are in lists.
    """

    kind: Kind
    edition: bytes
    trained: int
    budgets: dict[str, Any]
    model: Model
    listed: NDArray[np.bool_]


def kind(reader: Reader, number: int) -> Kind:
    """The kind of index that was asked for."""
    value = reader.get("index", index_layout.index_key(number, PLAN))
    return "auto" if value is None else _plan(value, number)["kind"]


def _plan(value: bytes | memoryview, number: int) -> dict[str, Any]:
    where = f"index: plan of collection {number}"
    plan = layout.unpack_meta(value, where)
    if plan.get("kind") not in KINDS:
        raise CorruptionError(f"{where}: {plan.get('kind')!r} is no kind of index")
    return plan


def load(reader: Reader, entry: Entry, state: State) -> Index | None:
    """The index of a collection, or None while it has none."""
    if not isinstance(reader, Snapshot):
        return _load(reader, entry, state)
    key = ("index", entry.number)
    if key not in reader.cache:
        reader.cache[key] = _load(reader, entry, state)
    index: Index | None = reader.cache[key]
    return index


def _load(reader: Reader, entry: Entry, state: State) -> Index | None:
    value = reader.get("index", index_layout.index_key(entry.number, PLAN))
    if value is None:
        return None
    plan = _plan(value, entry.number)
    if plan.get("edition") is None:
        return None
    return Index(
        plan["kind"],
        plan["edition"],
        plan["trained"],
        plan["budgets"],
        _load_model(reader, entry, plan["edition"]),
        _load_listed(reader, entry.number, state.blocks),
    )


def _load_model(reader: Reader, entry: Entry, edition: bytes) -> Model:
    kept = reader.store.tables.kept
    found: Model | None = kept.get(edition)
    if found is None:
        where = f"index: model of collection {entry.number}"
        value = reader.get("index", index_layout.index_key(entry.number, MODEL))
        if value is None:
            raise CorruptionError(f"{where} is missing")
        values, arrays = index_layout.unpack_bundle(value, entry.number, where)
        try:
            if values["edition"] != edition:
                raise CorruptionError(f"{where}: edition {values['edition'].hex()} is another")
            metric = entry.spec.metric
            found = models.from_parts(metric, values, arrays)
            models.check(found, entry.spec.dim)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise CorruptionError(f"{where}: cannot be read: {error!r}") from error
        for oldest in list(kept)[: len(kept) + 1 - MODELS_KEPT]:
            kept.pop(oldest, None)
        kept[edition] = found
    return found


def _load_listed(reader: Reader, number: int, blocks: int) -> NDArray[np.bool_]:
    where = f"index: listed blocks of collection {number}"
    value = reader.get("index", index_layout.index_key(number, LISTED))
    data = b"" if value is None else layout.unpack_checked(value, where)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").astype(bool)
    if bits[blocks:].any():
        raise CorruptionError(f"{where}: blocks beyond the last one")
    listed = np.zeros(blocks, bool)
    listed[: len(bits[:blocks])] = bits[:blocks]
    return listed


def tail(index: Index, alive: Words) -> NDArray[np.int64]:
    """The blocks with living rows that are in no list."""
    return np.flatnonzero((alive != 0) & ~index.listed)


# Writing


def save_plan(txn: Transaction, number: int, index: Index) -> None:
    """Write what an index was planned to be."""
    values = {
        "kind": index.kind,
        "edition": index.edition,
        "trained": index.trained,
        "budgets": index.budgets,
    }
    txn.put("index", index_layout.index_key(number, PLAN), layout.pack_meta(values))


def save_kind(txn: Transaction, number: int, wanted: Kind) -> None:
    """Write what kind of index is wanted of a collection that has none yet."""
    values = {"kind": wanted, "edition": None}
    txn.put("index", index_layout.index_key(number, PLAN), layout.pack_meta(values))


def save_model(txn: Transaction, number: int, index: Index) -> None:
    """Write the model of an index."""
    values, arrays = models.to_parts(index.model)
    value = index_layout.pack_bundle(number, {**values, "edition": index.edition}, arrays, txn.page)
    txn.put("index", index_layout.index_key(number, MODEL), value)


def save_listed(txn: Transaction, number: int, listed: NDArray[np.bool_]) -> None:
    """Write which blocks are in lists."""
    data = np.packbits(listed, bitorder="little").tobytes()
    txn.put("index", index_layout.index_key(number, LISTED), layout.pack_checked(data))


def read_lists_of_rows(reader: Reader, number: int, blocks: int) -> NDArray[np.uint32]:
    """The list of every row, uint32 (blocks * 64,); NO_LIST for rows in none. A copy."""
    column = np.full(blocks * BLOCK_ROWS, NO_LIST, np.uint32)
    for part in range(-(-len(column) // PART_ROWS)):
        value = reader.get("index", index_layout.list_part_key(number, part))
        if value is not None:
            place = column[part * PART_ROWS : (part + 1) * PART_ROWS]
            place[:] = index_layout.unpack_list_part(value, number, part)[: len(place)]
    return column


def save_lists_of_rows(
    txn: Transaction, number: int, column: NDArray[np.uint32], parts: NDArray[np.intp]
) -> None:
    """Write some parts of the column of the rows' lists."""
    for part in parts.tolist():
        lists = np.full(PART_ROWS, NO_LIST, np.uint32)
        found = column[part * PART_ROWS : (part + 1) * PART_ROWS]
        lists[: len(found)] = found
        key = index_layout.list_part_key(number, part)
        txn.put("index", key, index_layout.pack_list_part(number, part, lists, txn.page))


def read_list(reader: Reader, number: int, model: Model, which: int) -> Codes:
    """The codes of a list; the checksum is verified."""
    where = f"list {which} of collection {number}"
    value = reader.get("lists", index_layout.list_key(number, which))
    if value is None:
        raise CorruptionError(f"{where} is missing")
    layout.verify_bulk(value, where)
    count = index_layout.check_codes(value, number, LIST, which, model.groups, model.offsets)
    rows = index_layout.list_rows(value, count).copy()
    payload = value[layout.HEADER.size :]
    return codes.unpack_tiles(payload, rows, model.groups, offsets=model.offsets)


def save_list(txn: Transaction, number: int, model: Model, which: int, found: Codes) -> None:
    """Write a list."""
    tiles = codes.pack_tiles(found, offsets=model.offsets)
    value = index_layout.pack_codes(number, LIST, which, tiles, found.rows, model.groups, txn.page)
    txn.put("lists", index_layout.list_key(number, which), value)


def read_block_codes(reader: Reader, number: int, model: Model, block: int) -> Codes:
    """The codes of a block in the tail; the checksum is verified."""
    where = f"codes of block {block} of collection {number}"
    value = reader.get("tiers", layout.block_key(number, block, CODE_TIER))
    if value is None:
        raise CorruptionError(f"{where} are missing")
    layout.verify_bulk(value, where)
    first = block * BLOCK_ROWS
    count = index_layout.check_codes(value, number, CODE_BLOCK, first, model.groups, model.offsets)
    rows = np.arange(first, first + count, dtype=np.uint32)
    payload = value[layout.HEADER.size :]
    return codes.unpack_tiles(payload, rows, model.groups, offsets=model.offsets)


def save_block_codes(txn: Transaction, number: int, model: Model, block: int, found: Codes) -> None:
    """Write the codes of a block in the tail."""
    tiles = codes.pack_tiles(found, offsets=model.offsets)
    first, groups = block * BLOCK_ROWS, model.groups
    value = index_layout.pack_codes(number, CODE_BLOCK, first, tiles, found.rows, groups, txn.page)
    txn.put("tiers", layout.block_key(number, block, CODE_TIER), value)


class IndexedRows(RowWriter):
    """A `RowWriter` that codes new rows, so that a search finds them as soon as they are there."""

    def __init__(self, txn: Transaction, entry: Entry, state: State) -> None:
        super().__init__(txn, entry.number, state, entry.form)
        self._index = load(txn, entry, state)
        self._fresh: list[tuple[Rows, Vectors]] = []

    def add(self, packed: Packed, orders: NDArray[np.uint64]) -> Rows:
        """Store vectors in their stored form and return their new rows."""
        rows = super().add(packed, orders)
        self._state.backlog += len(rows)
        if self._index is not None:
            self._fresh.append((rows, widen(packed)))
        return rows

    def kill(self, rows: Rows) -> None:
        """Let rows die; a block without a living row goes with its last one."""
        super().kill(rows)
        self._state.backlog += len(rows)

    def finish(self) -> None:
        """Delete the blocks that died, write the bitmaps and the codes of new rows."""
        super().finish()
        if self._index is None:
            return
        for block in self._touched:
            if self.word(block) == 0:
                self._txn.delete("tiers", layout.block_key(self._collection, block, CODE_TIER))
        if self._fresh:
            self._code(self._index.model)

    def _code(self, model: Model) -> None:
        rows = np.concatenate([part for part, _ in self._fresh])
        vectors = np.concatenate([part for _, part in self._fresh])
        found = model.encode(vectors, None, rows.astype(np.uint32))
        blocks = rows >> 6
        edges = np.flatnonzero(np.diff(blocks, prepend=-1, append=-1))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            block = int(blocks[start])
            if self.word(block) == 0:
                continue
            part = found.take(np.arange(start, stop))
            if rows[start] & 63:
                old = read_block_codes(self._txn, self._collection, model, block)
                part = codes.join([old, part])
            save_block_codes(self._txn, self._collection, model, block, part)

    def _taken(self, words: Words) -> NDArray[np.bool_]:
        taken = super()._taken(words)
        if self._index is not None:
            listed = self._index.listed
            taken[: len(listed)] |= listed
        return taken
