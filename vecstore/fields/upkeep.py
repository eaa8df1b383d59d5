"""How do columns follow the records? Each write adds to the segments, and pays for merging some.

Rows that come in large batches get a segment at once. A few are left pending until they are enough
for one: until then their records are read by whoever filters. Segments of one range are merged when
there are MERGED of about one size, so that each row is written anew a few times only (a
log-structured merge tree, O'Neil, Cheng, Gawlick and O'Neil, 1996).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vecstore import field_layout, layout, records, rows
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.field_layout import RANGE_ROWS, RANGE_WORDS, Listed, Manifest
from vecstore.fields import columns, index, segments
from vecstore.fields.columns import PASSAGE, Column, Metadata
from vecstore.layout import State
from vecstore.record_layout import Part
from vecstore.rows import Rows, Words
from vecstore.store import Reader, Transaction

# So many rows get a segment of their own, and so many pending ones are no longer left.
LEAST = 256
# Pending rows that one write puts into segments at most.
SLICE = 8192
# So many segments of about one size are merged; sizes are about one if they differ less than that.
MERGED = 8
# The largest segment of a full range takes in the others once it has fewer times their rows.
WORTH = 4


# Rows, and the metadata of the record of each.
Fresh = tuple[Rows, Sequence[Metadata]]


@dataclass(frozen=True, slots=True)
class Change:
    """What a write did to rows.

    Attributes:
        added: How many rows came, those that moved too.
        allotted: The blocks that were taken for them: their numbers may have been others' before.
        fresh: New rows whose metadata are at hand, and these; None if there are none.
        changed: Rows that stay, whose records have other metadata now.
    """

    added: int
    allotted: Sequence[int] = ()
    fresh: Fresh | None = None
    changed: Sequence[int] = ()


def keep_up(txn: Transaction, entry: Entry, state: State, change: Change) -> None:
    """Let the columns follow a write, behind all that it does to rows and records."""
    _Upkeep(txn, entry, state).follow(change)


def tidy(txn: Transaction, entry: Entry, state: State, *, whole: bool = False) -> bool:
    """Bring the columns into their best state; do a part of it, and say if there is more to do.

    With `whole` they hold no value of a dead row then.
    """
    return _Upkeep(txn, entry, state).tidy(whole=whole)


class _Upkeep:
    def __init__(self, txn: Transaction, entry: Entry, state: State) -> None:
        self._txn, self._entry, self._state = txn, entry, state
        self._number = entry.number
        found = self._read()
        self._anew = found is None
        self._manifest = self._before = self._begin() if found is None else found

    def _read(self) -> Manifest | None:
        """The manifest; None if it does not count, or is damaged: all can be made anew."""
        with contextlib.suppress(CorruptionError):
            if index.counts(self._txn, self._number, self._state):
                return index.read_manifest(self._txn, self._number)
        return None

    def _begin(self) -> Manifest:
        """Leave no segment, and all rows pending."""
        marker, manifest = layout.collection_key(self._number), Manifest(self._state.rows)
        self._txn.delete_prefix("fields", marker)
        self._txn.put("fields", marker, layout.pack_generation(self._state.generation))
        self._txn.put("fields", field_layout.manifest_key(self._number), manifest.pack())
        return manifest

    def follow(self, change: Change) -> None:
        """Take over what a write did, and do what has become due."""
        self._revoke(change.changed, change.allotted)
        pending = self._manifest.pending
        if not self._anew:
            pending += change.added + len(change.changed)
        touched = set[int]()
        if change.fresh is not None and len(change.fresh[0]) >= LEAST:
            touched |= self._add_all(*change.fresh)
            pending -= len(change.fresh[0])
        self._manifest = replace(self._manifest, pending=max(0, pending))
        if pending >= LEAST:
            touched |= self._index_pending()
        for which in sorted(touched):
            self._merge_some(which)
        self._save()

    def tidy(self, *, whole: bool) -> bool:
        """Put all pending rows into segments and leave one of each range; do a part of it.

        Returns:
            Whether there is more to do.
        """
        more = bool(self._index_pending() or self._merge_one(whole=whole))
        self._save()
        return more

    def _merge_one(self, *, whole: bool) -> bool:
        """Merge all segments of a range that is not in its best state; return if there is one."""
        ranges, sparse = [one.range for one in self._manifest.segments], self._sparse(whole=whole)
        for which in dict.fromkeys(ranges):
            if ranges.count(which) > 1 or which in sparse:
                self._merge([one for one in self._manifest.segments if one.range == which])
                return True
        return False

    def _save(self) -> None:
        if self._manifest != self._before:
            key = field_layout.manifest_key(self._number)
            self._txn.put("fields", key, self._manifest.pack())

    def _sparse(self, *, whole: bool) -> set[int]:
        """Ranges with segments most of whose rows are dead, or no longer theirs; or any of them."""
        most = 1.0 if whole else 0.5
        return {
            one.range
            for one in self._manifest.segments
            if rows.count(self._words(one) & self._alive(one.range)) < most * one.rows
        }

    def _revoke(self, changed: Sequence[int], blocks: Sequence[int]) -> None:
        """Let no segment speak for some rows, nor for any of some blocks."""
        if not self._manifest.segments or not (changed or blocks):
            return
        numbers = np.array(changed, np.intp)
        gone = {which: _bits(numbers[part]) for which, part in _by_range(numbers)}
        for block in blocks:
            which = block // RANGE_WORDS
            words = gone.setdefault(which, np.zeros(RANGE_WORDS, np.uint64))
            words[block % RANGE_WORDS] = ~np.uint64(0)
        for listed in self._manifest.segments:
            if listed.range in gone:
                held = self._words(listed)
                if (held & gone[listed.range]).any():
                    self._put_rows(listed, held & ~gone[listed.range])

    def _add_all(self, numbers: Rows, metadata: Sequence[Metadata]) -> set[int]:
        """Make a segment of the rows of each range; return of which ranges."""
        ranges = set[int]()
        for which, part in _by_range(numbers):
            self._add(which, numbers[part], [metadata[i] for i in part.tolist()])
            ranges.add(which)
        return ranges

    def _add(self, which: int, numbers: Rows, metadata: Sequence[Metadata]) -> None:
        """Make a segment of some rows of a range."""
        order = np.argsort(numbers)
        places = (numbers[order] - which * RANGE_ROWS).astype(np.uint16)
        sorted_ = [metadata[i] for i in order.tolist()]
        found = columns.columns(places, sorted_, self._entry.spec.indexes)
        self._put(which, field_layout.bits_of(places), found)

    def _put(self, which: int, words: Words, found: dict[str, Column]) -> None:
        taken = [one.number for one in self._manifest.segments]
        number = next(number for number, own in enumerate([*taken, -1]) if number != own)
        listed = Listed(number, os.urandom(8), which, rows.count(words))
        value = field_layout.pack_segment(
            self._number,
            listed,
            sorted(found),
            segments.arrays_of(found, listed.rows),
            self._txn.page,
        )
        self._txn.put("fields", field_layout.segment_key(self._number, listed.number), value)
        self._put_rows(listed, words)
        some = sorted((*self._manifest.segments, listed), key=lambda one: one.number)
        self._manifest = replace(self._manifest, segments=tuple(some))

    def _put_rows(self, listed: Listed, words: Words) -> None:
        value = field_layout.pack_rows(self._number, listed, words, self._txn.page)
        self._txn.put("fields", field_layout.rows_key(self._number, listed.number), value)

    def _index_pending(self) -> set[int]:
        """Make segments of pending rows; return of which ranges."""
        alive = rows.live(self._txn, self._number, self._state)
        words = tuple(map(self._words, self._manifest.segments))
        held = index.FieldIndex(self._number, self._manifest, words)
        pending = rows.members(alive & ~held.covered(len(alive)))
        told = metadata_of(self._txn, self._entry, self._orders(pending[:SLICE]))
        self._manifest = replace(self._manifest, pending=max(0, len(pending) - SLICE))
        return self._add_all(np.array(list(told), np.intp), list(told.values()))

    def _orders(self, numbers: Rows) -> dict[int, int]:
        """The orders of some rows, of those whose blocks are sound."""
        found: dict[int, int] = {}
        for block in rows.distinct(numbers >> 6).tolist():
            own = numbers[numbers >> 6 == block]
            with contextlib.suppress(CorruptionError):
                orders = rows.gather_orders(
                    self._txn, self._number, self._state, self._entry.form, own
                )
                found |= zip(own.tolist(), orders.tolist(), strict=True)
        return found

    def _alive(self, which: int) -> Words:
        """The living rows of a range, uint64 (RANGE_WORDS,)."""
        alive = rows.live(self._txn, self._number, self._state)
        return field_layout.in_range(alive, which)

    def _merge_some(self, which: int) -> None:
        """Merge segments of a range while there are many of about one size.

        Of a range that no more rows come to, one is left as soon as the others are worth it.
        """
        while True:
            own = [one for one in self._manifest.segments if one.range == which]
            sizes, counts = [_size(one.rows) for one in own], [one.rows for one in own]
            largest = max(counts, default=0)
            if which < self._state.blocks // RANGE_WORDS and largest < WORTH * (
                sum(counts) - largest
            ):
                self._merge(own)
                return
            many = [size for size in sizes if sizes.count(size) >= MERGED]
            if not many:
                return
            self._merge([one for one in own if _size(one.rows) <= max(many)])

    def _merge(self, some: Sequence[Listed]) -> None:
        """Put one segment of the living rows in the place of some of a range."""
        which = some[0].range
        alive, together, parts = self._alive(which), np.zeros(RANGE_WORDS, np.uint64), []
        for listed in some:
            # Of one that is damaged the rows become pending again.
            with contextlib.suppress(CorruptionError):
                living = self._words(listed) & alive
                segment = index.segment(self._txn, self._number, listed, living, verify=True)
                parts.append(segments.columns_of(segment, living))
                together |= living
        kept = tuple(one for one in self._manifest.segments if one not in some)
        self._manifest = replace(self._manifest, segments=kept)
        for one in some:
            self._txn.delete("fields", field_layout.segment_key(self._number, one.number))
            self._txn.delete("fields", field_layout.rows_key(self._number, one.number))
        if together.any():
            self._put(which, together, columns.merged(parts))

    def _words(self, listed: Listed) -> Words:
        """The rows for which a segment speaks; none where that is damaged: these are pending."""
        with contextlib.suppress(CorruptionError):
            return index.read_rows(self._txn, self._number, listed)
        return np.zeros(RANGE_WORDS, np.uint64)


def metadata_of(reader: Reader, entry: Entry, orders: Mapping[int, int]) -> dict[int, Metadata]:
    """What `columns` takes of some rows, whose orders these are, if their records are sound.

    Others stay pending, for `check` to find; the write at hand goes on.
    """
    told: dict[int, Metadata] = {}
    known: dict[int, Metadata] = {}
    for row, order in orders.items():
        with contextlib.suppress(CorruptionError):
            found = records.placed(reader, entry.number, order)
            if found.row != row:
                continue
            if isinstance(found, Part):
                if found.parent not in known:
                    known[found.parent] = records.read(reader, entry.number, found.parent).metadata
                told[row] = {**(known[found.parent] or {}), PASSAGE: True}
            else:
                told[row] = known[order] = found.metadata
    return told


def _size(count: int) -> int:
    """Segments of one such number are of about one size."""
    return max(0, (count // LEAST).bit_length() - 1) // 3


def _by_range(numbers: Rows) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """The ranges of some rows, and the places of those that are in each."""
    ranges = numbers // RANGE_ROWS
    for which in rows.distinct(ranges).tolist():
        yield which, np.flatnonzero(ranges == which)


def _bits(numbers: Rows) -> Words:
    """The bits of some rows of one range."""
    return field_layout.bits_of((numbers % RANGE_ROWS).astype(np.uint16))
