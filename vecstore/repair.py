"""How is what is derived made anew? From records and vectors alone, which are never changed.

Nothing that is to be made anew is trusted: it is deleted unread, but for the kind of index that was
wanted and the order that the next record gets. What is primary is not mended: a collection with a
damaged record or vector stays as it is, for `salvage` to read what can be read.
"""

from __future__ import annotations

import contextlib
import itertools
from array import array
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vecstore import catalog, layout, maintenance, record_layout, records, rows
from vecstore import check as checking
from vecstore.ann import index
from vecstore.ann.index import Kind
from vecstore.catalog import Entry
from vecstore.check import Problem
from vecstore.errors import CorruptionError, NotFoundError, SpecError
from vecstore.index_layout import MODEL, PLAN, index_key
from vecstore.layout import BLOCK_ROWS, BYTE_TIER, CODE_TIER, FULL_TIER, NO_BLOCK, Header, State
from vecstore.maintenance import Source
from vecstore.store import Reader, Transaction
from vecstore.values import instant

# Records read before what is derived from them is written.
PAGE = 1024
# Where it is not known which orders were given out, new ones begin so far beyond all that are seen.
ORDERS_APART = 1 << 32


def repair(source: Source, timeout: float | None = None) -> list[Problem]:
    """Mend what can be made anew from records and vectors; return what was wrong, and what is.

    Args:
        source: Where to read and write.
        timeout: Seconds to wait for the right to write, each time.
    """
    with source.reading() as reader:
        found = checking.check(reader)
    # Where pages are damaged every write may make it worse.
    if not found or any(problem.where == "file" for problem in found):
        return found
    source.writing(_mend_catalog, timeout)
    for entry in _damaged(source):
        # Where it fails nothing of it is kept, and what is wrong is found once more below.
        with contextlib.suppress(CorruptionError, NotFoundError):
            source.writing(partial(_rebuild, entry=entry), timeout)
            maintenance.optimize(source, entry.number, entry.uid, timeout=timeout)
    with source.reading() as reader:
        left = checking.check(reader)
    mended = [replace(problem, repaired=problem not in left) for problem in found]
    return mended + [problem for problem in left if problem not in found]


def _damaged(source: Source) -> list[Entry]:
    """The collections that have problems, of those whose specs can be read."""
    with source.reading() as reader:
        return [entry for entry in _readable(reader) if checking.check_collection(reader, entry)]


def _readable(reader: Reader) -> list[Entry]:
    """The collections whose specs can be read."""
    found = []
    for key, value in reader.items("meta", layout.spec_key(0)[:-4]):
        try:
            found.append(catalog.parse(_number_in(key), bytes(value)))
        except CorruptionError:
            continue
    return found


def _number_in(key: bytes) -> int:
    """The collection's number at the end of a key in `meta`."""
    return int.from_bytes(key[-4:], "big")


# Names, numbers, and keys of nobody


def _mend_catalog(txn: Transaction) -> None:
    """Let each spec have its name, and the next number be free; delete keys that mean nothing."""
    try:
        catalog.format_of(txn)
    except CorruptionError:
        # What is of a later format raises it again.
        value = layout.pack_format(layout.PLAIN_FORMAT, layout.PLAIN_FORMAT)
        txn.put("meta", layout.KEY_FORMAT, value)
    entries = _readable(txn)
    kept = _mend_names(txn, entries)
    _mend_next(txn)
    for key in [bytes(key) for key, _ in txn.items("meta", b"")]:
        if not _means_something(key, kept):
            txn.delete("meta", key)
    for database in filter(txn.has, catalog.PREFIXED):
        gone = catalog.following(txn) if database == "digests" else 0
        for owner, key in list(_owners(txn, database)):
            if owner is None:
                txn.delete(database, key)
            elif owner not in kept and owner >= gone:
                _delete_stranger(txn, database, owner)


def _mend_names(txn: Transaction, entries: list[Entry]) -> set[int]:
    """Let names lead to the specs that have them; return the numbers of all collections.

    A name stays that leads to a spec that is lost or cannot be read: its records are still there.
    """
    names = [entry.spec.name for entry in entries]
    readable = {entry.number for entry in entries}
    numbers = {
        _number_in(key) for key, _ in txn.items("meta", b"spec/") if len(key) == len(b"spec/") + 4
    }
    for key, value in list(txn.items("meta", layout.name_key(""))):
        try:
            name = key.removeprefix(layout.name_key("")).decode()
            number = catalog.number_of(value, name)
        except UnicodeDecodeError:
            txn.delete("meta", key)
            continue
        except CorruptionError:
            continue
        if number in readable and name not in names:
            txn.delete("meta", key)
        else:
            numbers.add(number)
    for entry in entries:
        if names.count(entry.spec.name) == 1:
            named = layout.pack_meta({"number": entry.number})
            txn.put("meta", layout.name_key(entry.spec.name), named)
    return numbers


def _mend_next(txn: Transaction) -> None:
    """Let the number of the next collection be above all that are seen anywhere."""
    numbers = [_number_in(key) for key, _ in txn.items("meta", b"spec/")]
    try:
        if catalog.following(txn) > max(numbers, default=0):
            return
    except CorruptionError:
        pass
    for database in filter(txn.has, catalog.PREFIXED):
        numbers += [owner for owner, _ in _owners(txn, database) if owner is not None]
    following = min(max(numbers, default=0) + 1, 2**32 - 1)
    txn.put("meta", layout.KEY_NEXT, layout.pack_meta({"next": following}))


def _means_something(key: bytes, numbers: set[int]) -> bool:
    """Whether a key in `meta` is one that there may be."""
    if key in (layout.KEY_FORMAT, layout.KEY_NEXT) or key.startswith(layout.name_key("")):
        return True
    made = (layout.spec_key, layout.state_key, layout.adapter_key)
    number = _number_in(key)
    return number in numbers and key in (make(number) for make in made)


def _owners(reader: Reader, database: str) -> Iterator[tuple[int | None, bytes]]:
    """The numbers that keys of a database begin with, each once, and the first such key.

    None for a key that is too short for one.
    """
    start: bytes | None = None
    while True:
        key = next((key for key, _ in reader.items(database, b"", start)), None)
        if key is None:
            return
        if len(key) < 4:
            yield None, key
            start = key + b"\0"
            continue
        owner = int.from_bytes(key[:4], "big")
        yield owner, key
        if owner == 2**32 - 1:
            return
        start = layout.collection_key(owner + 1)


def _delete_stranger(txn: Transaction, database: str, owner: int) -> None:
    """Delete what belongs to no collection, but for records and vectors that are sound."""
    prefix = layout.collection_key(owner)
    if database not in ("records", "tiers"):
        txn.delete_prefix(database, prefix)
        return
    for key in [key for key, value in txn.items(database, prefix) if not _is_primary(key, value)]:
        txn.delete(database, key)


def _is_primary(key: bytes, value: memoryview | bytes) -> bool:
    """Whether a value is a record or a block of vectors, with a right checksum."""
    try:
        if len(key) == 12:
            record_layout.check_record(key, value)
            return True
        sound = layout.verify_bulk(value, "block")
        return len(key) == 9 and key[4] == FULL_TIER and sound.kind == layout.FULL_BLOCK
    except CorruptionError:
        return False


# One collection


def _rebuild(txn: Transaction, entry: Entry) -> None:
    """Make all that is derived anew; CorruptionError if that does not make a collection sound."""
    # Whoever dropped it meanwhile has done with it.
    entry = catalog.read(txn, entry.number, entry.uid)
    number, prefix = entry.number, layout.collection_key(entry.number)
    former = _former(txn, number)
    state = State(generation=former.generation if former else 0)
    for database in filter(txn.has, ("ids", "live", "fields", "digests")):
        txn.delete_prefix(database, prefix)
    placed, orders = _read_records(txn, number, state)
    kind = _kind(txn, entry, state)
    index.clear(txn, number)
    top = _mend_blocks(txn, entry, state, placed, orders)
    state.next_order = max(former.next_order, top) if former else top + ORDERS_APART
    if state.passages or state.expiring:
        catalog.raise_format(txn)
    txn.put("meta", layout.state_key(number), state.pack())
    maintenance.set_kind(txn, entry, kind)
    problems = checking.check_collection(txn, entry)
    if problems:
        raise CorruptionError(str(problems[0]))


def _former(txn: Transaction, number: int) -> State | None:
    """The counters that a collection has; None if they are damaged."""
    try:
        return catalog.state(txn, number)
    except CorruptionError:
        return None


def _kind(txn: Transaction, entry: Entry, state: State) -> Kind:
    """The kind of index that is wanted; where that is damaged, the one that seems to be there."""
    number = entry.number
    try:
        kind = index.kind(txn, number)
        if txn.get("index", index_key(number, PLAN)) is not None:
            maintenance.check_kind(kind, entry.spec.metric)
            return kind
    except (CorruptionError, SpecError):
        pass

    def has(database: str, key: bytes) -> bool:
        return any(True for _ in txn.items(database, key))

    if has("tiers", layout.tier_prefix(number, BYTE_TIER)):
        return "flat"
    lists = has("lists", layout.collection_key(number))
    if entry.spec.metric == "hamming":
        return "hash" if lists else "auto"
    coded = has("tiers", layout.tier_prefix(number, CODE_TIER)) or has(
        "index", index_key(number, MODEL)
    )
    if coded and not lists:
        return "hash"
    # Of so few rows "auto" makes none.
    return "ivf" if lists and state.rows < maintenance.AUTO_ROWS else "auto"


def _read_records(
    txn: Transaction, number: int, state: State
) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """Write all ids and count records; return the rows in use, ascending, and their orders."""
    placed, orders, ends = array("Q"), array("Q"), list[int]()
    strange = list[bytes]()
    for page in _pages(txn, layout.collection_key(number)):
        items = []
        for key, value in page:
            if len(key) != 12:
                strange.append(key)
                continue
            placed.append(record_layout.check_record(key, value))
            order = int.from_bytes(key[4:], "big")
            orders.append(order)
            if record_layout.is_passage(value):
                state.passages += 1
                continue
            identity, _, metadata, _ = record_layout.unpack_content(order, value)
            items.append((layout.id_key(number, identity), layout.ORDER.pack(order)))
            end = records.end_of(metadata)
            ends += [] if end is None else [instant(end)]
        state.records += len(items)
        txn.put_many("ids", sorted(items))
    for key in strange:
        txn.delete("records", key)
    state.expiring, state.earliest = len(ends), min(ends, default=0)
    sequence = np.argsort(np.array(placed, np.uint64))
    return np.array(placed, np.intp)[sequence], np.array(orders, np.uint64)[sequence]


def _pages(txn: Transaction, prefix: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
    """The records of a collection, some at a time; what reads them may write between."""
    start = prefix
    while page := list(itertools.islice(txn.items("records", prefix, start), PAGE)):
        yield page
        start = page[-1][0] + b"\0"


def _mend_blocks(
    txn: Transaction,
    entry: Entry,
    state: State,
    placed: NDArray[np.intp],
    orders: NDArray[np.uint64],
) -> int:
    """Write the bitmaps, delete blocks of no record, and find the open one.

    Returns:
        A number above all orders that are seen.
    """
    number, prefix = entry.number, layout.tier_prefix(entry.number)
    state.blocks = int(placed.max()) // BLOCK_ROWS + 1 if len(placed) else 0
    if state.blocks > layout.MAX_ROWS // BLOCK_ROWS:
        raise CorruptionError(f"records: a record is in row {placed.max()}")
    alive = np.zeros(state.blocks, np.uint64)
    rows.mark(alive, placed)
    top, known = int(orders.max()) + 1 if len(orders) else 0, np.sort(orders)
    for key in [key for key, _ in txn.items("tiers", layout.collection_key(number))]:
        block = int.from_bytes(key[5:], "big")
        mine = key.startswith(prefix) and len(key) == len(prefix) + 4
        if not mine or block >= state.blocks or not alive[block]:
            txn.delete("tiers", key)
            continue
        own = slice(*np.searchsorted(placed, [block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS]))
        held, last = _mend_block(txn, entry, block, placed[own] & 63, orders[own], known)
        top = max(top, last + 1)
        if held < BLOCK_ROWS:
            if state.open_block != NO_BLOCK:
                raise CorruptionError(f"tiers: blocks {state.open_block} and {block} are short")
            state.open_block, state.open_rows = block, held
    bits = alive.tobytes()
    for part in range(-(-state.blocks // rows.PART_WORDS)):
        held_bits = bits[part * layout.PART_BYTES : (part + 1) * layout.PART_BYTES]
        value = layout.pack_part(number, part, held_bits.ljust(layout.PART_BYTES, b"\0"), txn.page)
        txn.put("live", layout.part_key(number, part), value)
    return top


def _mend_block(
    txn: Transaction,
    entry: Entry,
    block: int,
    inside: NDArray[np.intp],
    orders: NDArray[np.uint64],
    known: NDArray[np.uint64],
) -> tuple[int, int]:
    """Let a sound block say what records say of its rows; return how many it holds, and an order.

    A row whose order is another record's may hold that one's vector: it stays as it is.

    Args:
        txn: Where to write.
        entry: The collection.
        block: The block's number.
        inside: Places in the block that records say are theirs.
        orders: Of each such place the order of the record.
        known: All orders of the collection's records and passages, ascending.
    """
    key, where = layout.block_key(entry.number, block), f"tiers: block {block}"
    stored = txn.get("tiers", key)
    layout.verify_bulk(stored, where)
    held = layout.check_block(stored, entry.number, block, entry.form)
    if (inside >= held).any():
        raise CorruptionError(f"{where} holds {held} rows, and a record is beyond them")
    value = bytearray(stored)
    found = layout.view_block(value, held, entry.form)
    last = int(found.orders.max())
    wrong = (found.orders[inside] != orders) & ~np.isin(found.orders[inside], known)
    if wrong.any():
        found.orders[inside[wrong]] = orders[wrong]
        header = Header(
            layout.FULL_BLOCK,
            entry.form.code,
            held,
            entry.form.dim,
            block * BLOCK_ROWS,
            0,
            0,
            entry.number,
        )
        txn.put("tiers", key, layout.seal_bulk(header, value, entry.form.block_bytes(held)))
    return held, min(last, 2**62)
