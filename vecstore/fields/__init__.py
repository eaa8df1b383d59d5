"""Which rows does a filter allow? A filter becomes a mask and its exact count.

Columns of metadata (`columns.py`) lie in segments (`segments.py`, `index.py`), which writes add and
merge (`upkeep.py`). They bound the answer from both sides (`bounds.py`). The records of the rows
between the bounds are read, and decide.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vecstore import records, rows
from vecstore.catalog import Entry
from vecstore.fields import index
from vecstore.fields.bounds import Bounds, bounds
from vecstore.fields.columns import PASSAGE
from vecstore.fields.expiry import Expired, expired
from vecstore.fields.reading import placed
from vecstore.fields.segments import Segment
from vecstore.filters import And, Contains, Exists, Filter, In, StartsWith
from vecstore.layout import State
from vecstore.lazy import keep
from vecstore.record_layout import Part
from vecstore.records import Stored
from vecstore.rows import Rows, Words
from vecstore.spec import MAX_INT_ID, MIN_INT_ID
from vecstore.store import Reader, Snapshot

__all__ = ["Expired", "Mask", "count", "expired", "leading", "resolve", "walk"]

T = TypeVar("T")

# Masks, and bounds of masks, that one version of a collection remembers: so many, and so many bytes
# of each kind. The oldest goes first.
MASKS, MASKS_BYTES = 64, 16 << 20
# Where more of the living rows than one in so many are asked for, all records are walked in order.
WALKED = 8


@dataclass(frozen=True, slots=True)
class Mask:
    """The rows that may be returned: a bit per row, uint64 (blocks,), and how many are set.

    Of a record that has passages all rows are, or none is.
    """

    words: Words
    count: int


def resolve(reader: Reader, entry: Entry, state: State, where: Filter | None) -> Mask:
    """Return the living rows whose records satisfy `where` and have not expired.

    A snapshot's version remembers the masks of its filters.
    """
    if where is None:
        mask = Mask(rows.live(reader, entry.number, state), state.rows)
    else:
        mask = _remembered(
            reader,
            ("masks", entry.number),
            where.key(),
            lambda: _resolve(reader, entry, state, where),
            state,
        )
    past = expired(reader, entry, state).words
    if past is None:
        return mask
    words = mask.words & ~past
    return Mask(words, rows.count(words))


def count(reader: Reader, entry: Entry, state: State, where: Filter | None) -> int:
    """How many records satisfy `where` and have not expired."""
    if where is None and expired(reader, entry, state).words is None:
        return state.records
    if not state.passages:
        return resolve(reader, entry, state, where).count
    return rows.count(leading(reader, entry, state, where))


def walk(
    reader: Reader, entry: Entry, state: State, where: Filter, after: int = -1
) -> Generator[Stored, None, None]:
    """Yield the records that satisfy `where`, and have not expired, in their order from `after`."""
    sure, possible = _bounded(reader, entry, state, where)
    certain, maybe = _Bits(sure), _Bits(possible)
    for record in _candidates(reader, entry, state, where, possible, after):
        if record.is_expired(reader.now):
            continue
        if record.row in certain or (record.row in maybe and where.matches(record)):
            yield record


def _candidates(
    reader: Reader, entry: Entry, state: State, where: Filter, possible: Words, after: int
) -> Iterator[Stored]:
    """Records by ascending order, among them all whose rows are possible."""
    if rows.count(possible) * WALKED > state.rows:
        yield from records.walk(reader, entry.number, after, _within(where))
        return

    def work() -> NDArray[np.uint64]:
        numbers = rows.members(possible)
        return np.sort(rows.gather_orders(reader, entry.number, state, entry.form, numbers))

    key = ("orders", entry.number)
    orders: NDArray[np.uint64] = _remembered(reader, key, where.key(), work, state)
    for order in orders[np.searchsorted(orders, after, "right") :].tolist():
        found = records.placed(reader, entry.number, order)
        if isinstance(found, Stored):
            yield found


def leading(reader: Reader, entry: Entry, state: State, where: Filter | None) -> Words:
    """One row of each record that satisfies `where`: no passage's that is not its first."""
    return resolve(reader, entry, state, where).words & _leading(reader, entry, state)


def _leading(reader: Reader, entry: Entry, state: State) -> Words:
    """The living rows without those of passages that are not the first of their record."""
    alive = rows.live(reader, entry.number, state)
    if not state.passages:
        return alive

    def work() -> Words:
        sure, possible = _bounded(reader, entry, state, Exists(PASSAGE))
        trailing = sure.copy()
        for row, found in placed(reader, entry, state, possible & ~sure):
            if isinstance(found, Part):
                trailing[row >> 6] |= np.uint64(1 << (row & 63))
        return alive & ~trailing

    return _remembered(reader, ("leading", entry.number), b"", work, state)


def _remembered(
    reader: Reader, kind: tuple[str, int], key: bytes, work: Callable[[], T], state: State
) -> T:
    """What work makes; remembered by the version of a snapshot."""
    if not isinstance(reader, Snapshot):
        return work()
    known: dict[bytes, T] = reader.cache.setdefault(kind, {})
    found = known.get(key)
    if found is None:
        most = max(1, min(MASKS, MASKS_BYTES // (8 * max(1, state.blocks))))
        found = keep(known, key, work(), most)
    return found


def _bounded(reader: Reader, entry: Entry, state: State, where: Filter) -> Bounds:
    """The living rows that satisfy a filter for certain, and those that may."""

    def work() -> Bounds:
        alive = rows.live(reader, entry.number, state)
        found = index.load(reader, entry.number, state)

        def with_ids(leaf: In) -> Rows | None:
            return _rows_of(reader, entry, state, leaf)

        def within(segments: Sequence[Segment]) -> Bounds:
            return bounds(where, segments, len(alive), with_ids, entry.spec.indexes)

        segments = [] if found is None else found.segments(reader)
        if isinstance(segments, list):
            sure, possible = within(segments)
        else:
            # Copies, one at a time: what each makes certain, and leaves possible, holds for all.
            sure, possible = within([])
            for segment in segments:
                one = within([segment])
                sure, possible = sure | one.sure, possible & one.possible
        return Bounds(sure & alive, possible & alive)

    return _remembered(reader, ("bounds", entry.number), where.key(), work, state)


def _resolve(reader: Reader, entry: Entry, state: State, where: Filter) -> Mask:
    sure, possible = _bounded(reader, entry, state, where)
    doubt = possible & ~sure
    left = rows.count(doubt)
    if left:
        few = left * WALKED <= state.rows
        told = (_told if few else _walked)(reader, entry, state, doubt, where)
        sure = sure.copy()
        rows.mark(sure, np.array(list(told), np.intp))
    return Mask(sure, rows.count(sure))


def _walked(
    reader: Reader, entry: Entry, state: State, doubt: Words, where: Filter
) -> Iterator[int]:
    """The rows in doubt that satisfy a filter, by walking all records."""
    asked, allowed = _Bits(doubt), set[int]()
    for item in records.walk_rows(reader, entry.number, within=_within(where)):
        if isinstance(item, Part):
            if item.parent in allowed and item.row in asked:
                yield item.row
        elif item.row in asked or item.passages is not None:
            matches = where.matches(item)
            if matches and item.passages is not None:
                allowed.add(item.order)
            if matches and item.row in asked:
                yield item.row


def _within(where: Filter) -> list[bytes]:
    """What the bytes of every record have that satisfies a filter, as strings lie there."""
    if isinstance(where, And):
        return [part for term in where.terms for part in _within(term)]
    if isinstance(where, Contains | StartsWith):
        return [where.value.encode()]
    if isinstance(where, In) and len(where.values) == 1 and isinstance(where.values[0], str):
        return [where.values[0].encode()]
    return []


def _told(reader: Reader, entry: Entry, state: State, doubt: Words, where: Filter) -> Iterator[int]:
    """The rows in doubt that satisfy a filter, by the record of each."""
    matching: dict[int, bool] = {}
    for row, found in placed(reader, entry, state, doubt):
        if isinstance(found, Stored):
            parent = found.order
            matching[parent] = where.matches(found)
        elif (parent := found.parent) not in matching:
            matching[parent] = where.matches(records.read(reader, entry.number, parent))
        if matching[parent]:
            yield row


def _rows_of(reader: Reader, entry: Entry, state: State, leaf: In) -> Rows | None:
    """The rows of the records with some ids; None if there are so many that walking is faster."""
    if len(leaf.members) * WALKED > state.records:
        return None
    found = list[int]()
    for kind, value in leaf.members:
        # 7.0 is the same number as 7, and no other kind of values can be an id.
        whole = kind == "number" and value == int(value) and MIN_INT_ID <= value <= MAX_INT_ID
        if whole or kind == "string":
            record = records.get(reader, entry.number, int(value) if whole else value)
            if record is not None:
                parts = records.parts(reader, entry.number, record)
                found += [record.row, *(part.row for part in parts)]
    return np.array(found, np.intp)


class _Bits:
    """The rows of a mask, each asked for by `in`."""

    def __init__(self, words: Words) -> None:
        # Bytes of Python are asked faster than words of numpy.
        self._bytes = words.tobytes()

    def __contains__(self, row: int) -> bool:
        return row >> 3 < len(self._bytes) and bool(self._bytes[row >> 3] >> (row & 7) & 1)
