"""Where is the index of a collection, and what is in it? Plan, model, listed blocks, rows' lists.

A block of rows is either *listed*: its rows are in lists, or it is in the *tail*: its rows' codes
lie in a value of their own, in row order, and every search scans them. New rows are in the tail by
their own transaction. A listed block that died keeps its number until no list names its rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vecstore import index_layout, layout
from vecstore.ann import codes, rounding
from vecstore.ann import model as models
from vecstore.ann.codes import Codes
from vecstore.ann.model import Model
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.index_layout import LISTED, MODEL, NO_LIST, PLAN
from vecstore.layout import (
    BLOCK_ROWS,
    BYTE_TIER,
    CODE_BLOCK,
    CODE_TIER,
    LIST,
    LIST_PART_ROWS,
    Packed,
    State,
)
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
        arrived: Rows that came into lists since then; of a large collection since it was measured.
        budgets: What calibration found, see `calibration.py`; empty before.
        model: How rows are coded.
        listed: bool (blocks,), blocks whose rows are in lists.
    """

    kind: Kind
    edition: bytes
    trained: int
    arrived: int
    budgets: dict[str, Any]
    model: Model
    listed: NDArray[np.bool_]


@contextmanager
def mendable() -> Iterator[None]:
    """Say of damage that is met that no record is lost by it, and how to be rid of it."""
    try:
        yield
    except CorruptionError as error:
        raise CorruptionError(
            f"{error}; records are not affected: reindex(kind) makes the index anew from them, and"
            ' recall="exact" searches without it'
        ) from error


@mendable()
def kind(reader: Reader, number: int) -> Kind:
    """The kind of index that was asked for."""
    plan = read_plan(reader, number)
    return "auto" if plan is None else plan["kind"]


def keeps_bytes(reader: Reader, entry: Entry) -> bool:
    """Whether the vectors of a collection are there as bytes too, as flat indexes keep them."""
    plan = read_plan(reader, entry.number)
    return plan is not None and plan["kind"] == "flat" and plan.get("bytes") is True


def read_plan(
    reader: Reader, number: int, check: Callable[[dict[str, Any]], object] | None = None
) -> dict[str, Any] | None:
    """What an index was planned to be; None if nobody cared.

    Args:
        reader: Where to read.
        number: The collection's number.
        check: Called with the plan of an index that is there; raises an error if it is none.

    Raises:
        CorruptionError: It is damaged, or failed the check.
    """
    where = f"index: plan of collection {number}"
    value = reader.get("index", index_layout.index_key(number, PLAN))
    if value is None:
        return None
    plan = layout.unpack_meta(value, where)
    if plan.get("kind") not in KINDS:
        raise CorruptionError(f"{where}: {plan.get('kind')!r} is no kind of index")
    if plan.get("edition") is not None and check is not None:
        try:
            check(plan)
        except (KeyError, ValueError, TypeError) as error:
            raise CorruptionError(f"{where}: cannot be read: {error!r}") from error
    return plan


def _check_plan(plan: dict[str, Any]) -> None:
    """Raise an error if the plan of an index that is there is none."""
    counts, budgets = (plan["trained"], plan["arrived"]), plan["budgets"]
    if not isinstance(plan["edition"], bytes):
        raise ValueError(f"edition {plan['edition']!r}")
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError(f"trained with {counts[0]!r} rows, {counts[1]!r} since")
    levels = len(budgets["levels"])
    numbers = [np.array([*budgets["levels"], budgets["gap"], budgets["fine"]], np.float64)]
    for size, curve in dict(budgets["sizes"]).items():
        numbers.append(np.array(curve, np.float64))
        if int(size) < 1 or numbers[-1].shape != (levels, 3):
            raise ValueError(f"a curve of {numbers[-1].shape} for {size!r} hits")
    for size, scanned in dict(budgets.get("scanned", {})).items():
        numbers.append(np.array(scanned, np.float64))
        if numbers[-1].shape != (levels,) or not (numbers[-1] >= 0).all():
            raise ValueError(f"rows scanned for {size!r} hits: {scanned!r:.60}")
    with np.errstate(over="ignore"):
        # That is what a search takes them as.
        finite = all(np.isfinite(part.astype(np.float32)).all() for part in numbers)
    if not budgets["sizes"] or not finite:
        raise ValueError("no curves, or numbers that are not finite")


@mendable()
def load(reader: Reader, entry: Entry, state: State) -> Index | None:
    """The index of a collection, or None while it has none; of binary vectors see `buckets`."""
    if not isinstance(reader, Snapshot):
        return _load(reader, entry, state, _known_model)
    key = ("index", entry.number)
    if key not in reader.cache:
        reader.cache[key] = _load(reader, entry, state, _known_model)
    index: Index | None = reader.cache[key]
    return index


def load_anew(reader: Reader, entry: Entry, state: State) -> Index | None:
    """The index as the file has it: all of it is read and verified, nothing is remembered."""
    return _load(reader, entry, state, _read_model)


def _load(
    reader: Reader, entry: Entry, state: State, model: Callable[[Reader, Entry, bytes], Model]
) -> Index | None:
    if entry.spec.metric == "hamming":
        return None
    plan = read_plan(reader, entry.number, _check_plan)
    if plan is None or plan.get("edition") is None:
        return None
    return Index(
        plan["kind"],
        plan["edition"],
        plan["trained"],
        plan["arrived"],
        plan["budgets"],
        model(reader, entry, plan["edition"]),
        read_listed(reader, entry.number, state.blocks),
    )


def _known_model(reader: Reader, entry: Entry, edition: bytes) -> Model:
    """As `_read_model`, but remembered from version to version."""
    # The number too: a plan under a wrong key must not lead to another collection's model.
    name = layout.collection_key(entry.number) + edition
    return reader.store.tables.keep(
        "models", name, MODELS_KEPT, lambda: _read_model(reader, entry, edition)
    )


def _read_model(reader: Reader, entry: Entry, edition: bytes) -> Model:
    where = f"index: model of collection {entry.number}"
    value = reader.get("index", index_layout.index_key(entry.number, MODEL))
    if value is None:
        raise CorruptionError(f"{where} is missing")
    values, arrays = index_layout.unpack_bundle(value, entry.number, where)
    try:
        if values["edition"] != edition:
            raise ValueError(f"its edition is {values['edition']!r}, the plan's is {edition!r}")
        found = models.from_parts(entry.spec.metric, values, arrays)
        models.check(found, entry.spec.dim)
        if entry.spec.tiers not in ((), found.schedule[:1]):
            raise ValueError(f"its codes are {found.schedule[0]}, not {entry.spec.tiers[0]}")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CorruptionError(f"{where}: cannot be read: {error!r}") from error
    return found


def read_listed(reader: Reader, number: int, blocks: int) -> NDArray[np.bool_]:
    """Which blocks' rows are in lists, bool (blocks,)."""
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


def edition() -> bytes:
    """A new name for an index."""
    return os.urandom(8)


def clear(txn: Transaction, number: int) -> None:
    """Delete the index of a collection and the wish for one, whatever state they are in."""
    txn.delete_prefix("lists", layout.collection_key(number))
    for tier in (CODE_TIER, BYTE_TIER):
        txn.delete_prefix("tiers", layout.tier_prefix(number, tier))
    txn.delete_prefix("index", layout.collection_key(number))


def save_plan(txn: Transaction, number: int, index: Index) -> None:
    """Write what an index was planned to be."""
    values = {
        "kind": index.kind,
        "edition": index.edition,
        "trained": index.trained,
        "arrived": index.arrived,
        "budgets": index.budgets,
    }
    try:
        # What could not be read again is an error now, while nothing is lost.
        _check_plan(values)
    except ValueError as error:
        raise CorruptionError(
            f"tiers: of the vectors of collection {number} no index can be made: {error}"
        ) from error
    txn.put("index", index_layout.index_key(number, PLAN), layout.pack_meta(values))


def save_kind(txn: Transaction, number: int, wanted: Kind, *, with_bytes: bool = False) -> None:
    """Write what kind of index is wanted of a collection that has none yet, or a flat one."""
    values = {"kind": wanted, "edition": None, **({"bytes": True} if with_bytes else {})}
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


@mendable()
def read_lists_of_rows(reader: Reader, number: int, found: Index) -> NDArray[np.uint32]:
    """The list of every row, uint32 (blocks * 64,); NO_LIST for rows in none. A copy.

    Raises:
        CorruptionError: It is damaged, or names other blocks than those that are listed.
    """
    where = f"index: lists of the rows of collection {number}"
    column = np.full(len(found.listed) * BLOCK_ROWS, NO_LIST, np.uint32)
    prefix = index_layout.list_parts(number)
    for key, value in reader.items("index", prefix):
        part = int.from_bytes(key[len(prefix) :], "big")
        lists = index_layout.unpack_list_part(value, number, part)
        place = column[part * len(lists) : (part + 1) * len(lists)]
        place[:] = lists[: len(place)]
    if ((column >= found.model.lists) & (column != NO_LIST)).any():
        raise CorruptionError(f"{where}: there are no more than {found.model.lists} lists")
    if (blocks_listed(column) != found.listed).any():
        raise CorruptionError(f"{where}: blocks that are listed are in no list, or the reverse")
    return column


def blocks_listed(column: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """The blocks of which a row is in a list, bool (blocks,), by the list of every row."""
    listed: NDArray[np.bool_] = (column.reshape(-1, BLOCK_ROWS) != NO_LIST).any(axis=1)
    return listed


def parts_listed(column: NDArray[np.uint32]) -> NDArray[np.intp]:
    """The parts of the column of the rows' lists that name a list; others need not be there."""
    parts: NDArray[np.intp] = np.unique(np.flatnonzero(column != NO_LIST) // LIST_PART_ROWS)
    return parts


def save_lists_of_rows(
    txn: Transaction, number: int, column: NDArray[np.uint32], parts: NDArray[np.intp]
) -> None:
    """Write parts of the column of the rows' lists; all, where they are those of first files."""
    prefix = index_layout.list_parts(number)
    _, first = next(txn.items("index", prefix), (b"", None))
    if first is not None and layout.unpack_header(first, "index").rows != LIST_PART_ROWS:
        txn.delete_prefix("index", prefix)
        parts = parts_listed(column)
    for part in parts.tolist():
        lists = np.full(LIST_PART_ROWS, NO_LIST, np.uint32)
        found = column[part * LIST_PART_ROWS : (part + 1) * LIST_PART_ROWS]
        lists[: len(found)] = found
        key = index_layout.list_part_key(number, part)
        txn.put("index", key, index_layout.pack_list_part(number, part, lists, txn.page))


@mendable()
def read_list(reader: Reader, number: int, model: Model, which: int) -> Codes:
    """The codes of a list; the checksum is verified."""
    where = f"list {which} of collection {number}"
    value = reader.get("lists", index_layout.list_key(number, which))
    if value is None:
        raise CorruptionError(f"{where} is missing")
    layout.verify_bulk(value, where)
    count = index_layout.check_codes(value, number, LIST, which, model.shape)
    tiles, rows, fine = index_layout.split_codes(value, LIST, count, model.shape)
    return codes.unpack(tiles, fine, rows[:count], model.shape)


def save_list(txn: Transaction, number: int, model: Model, which: int, found: Codes) -> None:
    """Write a list."""
    value = _pack(number, LIST, which, found, model, txn.page)
    txn.put("lists", index_layout.list_key(number, which), value)


def _pack(number: int, kind: int, first: int, found: Codes, model: Model, page: int) -> bytearray:
    """The value of a list, or of the codes of a block."""
    parts = codes.pack_tiles(found, model.shape), codes.pack_fine(found, model.shape)
    return index_layout.pack_codes(number, kind, first, *parts, found.rows, model.groups, page)


@mendable()
def read_block_codes(reader: Reader, number: int, model: Model, block: int) -> Codes:
    """The codes of a block in the tail; the checksum is verified."""
    where = f"codes of block {block} of collection {number}"
    value = reader.get("tiers", layout.block_key(number, block, CODE_TIER))
    if value is None:
        raise CorruptionError(f"{where} are missing")
    layout.verify_bulk(value, where)
    first = block * BLOCK_ROWS
    count = index_layout.check_codes(value, number, CODE_BLOCK, first, model.shape)
    tiles, _, fine = index_layout.split_codes(value, CODE_BLOCK, count, model.shape)
    return codes.unpack(tiles, fine, np.arange(first, first + count, dtype=np.uint32), model.shape)


def save_block_codes(txn: Transaction, number: int, model: Model, block: int, found: Codes) -> None:
    """Write the codes of a block in the tail."""
    value = _pack(number, CODE_BLOCK, block * BLOCK_ROWS, found, model, txn.page)
    txn.put("tiers", layout.block_key(number, block, CODE_TIER), value)


class IndexedRows(RowWriter):
    """A `RowWriter` that codes new rows, so that a search finds them as soon as they are there.

    Where there is a flat index it keeps their bytes.
    """

    def __init__(self, txn: Transaction, entry: Entry, state: State) -> None:
        super().__init__(txn, entry.number, state, entry.form)
        self._index = load(txn, entry, state)
        self._entry, self._keeps_bytes = entry, keeps_bytes(txn, entry)
        self._fresh: list[tuple[Rows, Vectors]] = []

    def add(self, packed: Packed, orders: NDArray[np.uint64]) -> Rows:
        """Store vectors in their stored form and return their new rows."""
        rows = super().add(packed, orders)
        self._state.backlog += len(rows)
        if self._index is not None or self._keeps_bytes:
            self._fresh.append((rows, widen(packed)))
        return rows

    def kill(self, rows: Rows) -> None:
        """Let rows die; a block without a living row goes with its last one."""
        super().kill(rows)
        self._state.backlog += len(rows)

    def finish(self) -> None:
        """Delete the blocks that died, write the bitmaps and the codes of new rows."""
        super().finish()
        if self._index is None and not self._keeps_bytes:
            return
        tier = BYTE_TIER if self._index is None else CODE_TIER
        for block in self._touched:
            if self.word(block) == 0:
                self._txn.delete("tiers", layout.block_key(self._collection, block, tier))
        if not self._fresh:
            return
        rows = np.concatenate([part for part, _ in self._fresh])
        vectors = np.concatenate([part for _, part in self._fresh])
        # Rows may have died again in the same transaction, and their block with them.
        blocks, places = np.unique(rows >> 6, return_inverse=True)
        there = np.array([self.word(block) != 0 for block in blocks.tolist()])[places]
        if self._index is None:
            with mendable():
                rounding.save(self._txn, self._entry, rows[there], vectors[there])
        else:
            self._code(self._index.model, rows[there], vectors[there])

    def trim(self) -> None:
        """Give back the numbers of dead blocks at the end, after `finish`."""
        before = self._state.blocks
        super().trim()
        now, then = (
            -(-BLOCK_ROWS * blocks // LIST_PART_ROWS) for blocks in (self._state.blocks, before)
        )
        for part in range(now, then):
            self._txn.delete("index", index_layout.list_part_key(self._collection, part))

    def _code(self, model: Model, rows: Rows, vectors: Vectors) -> None:
        found = model.encode(vectors, None, rows.astype(np.uint32))
        blocks = rows >> 6
        edges = np.flatnonzero(np.diff(blocks, prepend=-1, append=-1))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            block, part = int(blocks[start]), found.take(np.arange(start, stop))
            if rows[start] & 63:
                old = read_block_codes(self._txn, self._collection, model, block)
                part = codes.join([old, part])
            save_block_codes(self._txn, self._collection, model, block, part)

    def _taken(self, words: Words) -> NDArray[np.bool_]:
        return super()._taken(words) | read_listed(self._txn, self._collection, len(words))
