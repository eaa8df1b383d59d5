"""Which rows does a filter allow? A filter becomes a mask and its exact count.

Columns of metadata (`columns.py`) lie in segments (`segments.py`, `index.py`), which writes add and
merge (`upkeep.py`). They bound the answer from both sides (`bounds.py`). The records of the rows
between the bounds are read, and decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vecstore import records, rows
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.fields import index
from vecstore.fields.bounds import bounds
from vecstore.filters import Filter
from vecstore.layout import State
from vecstore.lazy import keep
from vecstore.record_layout import Part
from vecstore.rows import Words
from vecstore.store import Reader, Snapshot

# Masks that one version of a collection remembers; the oldest goes first.
MASKS = 64
# Where more of the living rows than one in so many are in doubt, all records are walked in order.
WALKED = 8
# Records read at a time.
_STEP = 1024


@dataclass(frozen=True, slots=True)
class Mask:
    """The rows that may be returned: a bit per row, uint64 (blocks,), and how many are set.

    Of a record that has passages all rows are, or none is.
    """

    words: Words
    count: int


def resolve(reader: Reader, entry: Entry, state: State, where: Filter | None) -> Mask:
    """Return the living rows whose records satisfy `where`.

    A snapshot's version remembers the masks of its filters.
    """
    alive = rows.live(reader, entry.number, state)
    if where is None:
        return Mask(alive, state.rows)
    if not isinstance(reader, Snapshot):
        return _resolve(reader, entry, state, alive, where)
    masks: dict[bytes, Mask] = reader.cache.setdefault(("masks", entry.number), {})
    key = where.key()
    mask = masks.get(key)
    if mask is None:
        mask = keep(masks, key, _resolve(reader, entry, state, alive, where), MASKS)
    return mask


def count(reader: Reader, entry: Entry, state: State, where: Filter | None) -> int:
    """How many records satisfy `where`."""
    if where is None:
        return state.records
    if not state.passages:
        return resolve(reader, entry, state, where).count
    return sum(where.matches(record) for record in records.walk(reader, entry.number))


def _resolve(reader: Reader, entry: Entry, state: State, alive: Words, where: Filter) -> Mask:
    found = index.load(reader, entry.number, state)
    segments = [] if found is None else list(found.segments(reader))
    sure, possible = (part & alive for part in bounds(where, segments, len(alive)))
    doubt = possible & ~sure
    left = rows.count(doubt)
    if left:
        if isinstance(reader, Snapshot) and left * WALKED <= state.rows:
            told = _told(reader, entry, state, doubt, where)
        else:
            told = _walked(reader, entry, doubt, where)
        rows.mark(sure, np.array(list(told), np.intp))
    return Mask(sure, rows.count(sure))


def _walked(reader: Reader, entry: Entry, doubt: Words, where: Filter) -> Iterator[int]:
    """The rows in doubt that satisfy a filter, by walking all records."""
    asked, allowed = set(rows.members(doubt).tolist()), set[int]()
    for item in records.walk_rows(reader, entry.number):
        if isinstance(item, Part):
            if item.row in asked and item.parent in allowed:
                yield item.row
        elif item.row in asked or item.passages is not None:
            matches = where.matches(item)
            if matches and item.passages is not None:
                allowed.add(item.order)
            if matches and item.row in asked:
                yield item.row


def _told(
    reader: Snapshot, entry: Entry, state: State, doubt: Words, where: Filter
) -> Iterator[int]:
    """The rows in doubt that satisfy a filter, by the record of each."""
    asked = rows.members(doubt)
    matching: dict[int, bool] = {}
    for at in range(0, len(asked), _STEP):
        part = asked[at : at + _STEP]
        orders = rows.gather_orders(reader, entry.number, state, entry.form, part)
        for row, order in zip(part.tolist(), orders.tolist(), strict=True):
            found = records.placed(reader, entry.number, order)
            if found.row != row:
                raise CorruptionError(
                    f"records: row {row} leads to order {order}, whose row is {found.row}"
                )
            parent = order
            if isinstance(found, Part):
                parent = found.parent
                if parent not in matching:
                    record = records.read(reader, entry.number, parent)
                    matching[parent] = where.matches(record)
            elif order not in matching:
                matching[order] = where.matches(found)
            if matching[parent]:
                yield row
