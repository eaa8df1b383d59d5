"""Which rows does a filter allow? A filter becomes a mask and its exact count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vecstore import records, rows
from vecstore.errors import CorruptionError
from vecstore.filters import Filter
from vecstore.layout import State
from vecstore.lazy import keep
from vecstore.record_layout import Part
from vecstore.rows import Words
from vecstore.store import Reader, Snapshot

# Masks that one version of a collection remembers; the oldest goes first.
MASKS = 64


@dataclass(frozen=True, slots=True)
class Mask:
    """The rows that may be returned: a bit per row, uint64 (blocks,), and how many are set.

    Of a record that has passages all rows are, or none is.
    """

    words: Words
    count: int


def resolve(reader: Reader, collection: int, state: State, where: Filter | None) -> Mask:
    """Return the living rows whose records satisfy `where`.

    Resolved by walking the records; a snapshot's version remembers the masks of its filters.
    """
    alive = rows.live(reader, collection, state)
    if where is None:
        return Mask(alive, state.rows)
    if not isinstance(reader, Snapshot):
        return _walk(reader, collection, alive, where)
    masks: dict[bytes, Mask] = reader.cache.setdefault(("masks", collection), {})
    key = where.key()
    mask = masks.get(key)
    if mask is None:
        mask = keep(masks, key, _walk(reader, collection, alive, where), MASKS)
    return mask


def count(reader: Reader, collection: int, state: State, where: Filter | None) -> int:
    """How many records satisfy `where`."""
    if where is None:
        return state.records
    if not state.passages:
        return resolve(reader, collection, state, where).count
    return sum(where.matches(record) for record in records.walk(reader, collection))


def _walk(reader: Reader, collection: int, alive: Words, where: Filter) -> Mask:
    found, allowed = list[int](), set[int]()
    for item in records.walk_rows(reader, collection):
        if isinstance(item, Part):
            if item.parent in allowed:
                found.append(item.row)
        elif where.matches(item):
            found.append(item.row)
            if item.passages is not None:
                allowed.add(item.order)
    words = np.zeros_like(alive)
    if found:
        if max(found) >= len(alive) * 64:
            raise CorruptionError(f"records: a record of collection {collection} has no block")
        rows.mark(words, np.array(found, np.intp))
    if (words & ~alive).any():
        raise CorruptionError(f"records: a record of collection {collection} has a dead row")
    return Mask(words, len(found))
