"""Which rows are past their time? Those whose record expires no later than the reader's moment.

Records that expired stay until they are purged. What is found holds until the next one expires, so
it is worked out once for each, and not for each search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vecstore import records, rows
from vecstore.catalog import Entry
from vecstore.field_layout import RANGE_WORDS
from vecstore.fields import index, segments
from vecstore.fields.reading import placed
from vecstore.fields.segments import Segment
from vecstore.layout import State
from vecstore.record_layout import Part
from vecstore.rows import Words
from vecstore.store import Reader, Snapshot
from vecstore.values import EXPIRES, instant

# No instant of a datetime is before the first of these, or at the second.
ALWAYS, NEVER = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Expired:
    """The living rows whose records have expired, those of passages too.

    Attributes:
        words: A bit per row, uint64 (blocks,); None if there is none.
        since: The moment from which on it is these, in microseconds since 1970.
        until: The moment from which on it is others.
    """

    words: Words | None
    since: int
    until: int


# Where no record ever expires.
NONE = Expired(None, ALWAYS, NEVER)


def expired(reader: Reader, entry: Entry, state: State) -> Expired:
    """Return which rows are past their time at the reader's moment."""
    if not state.expiring:
        return NONE
    now = reader.now
    if now < state.earliest:
        return Expired(None, ALWAYS, state.earliest)
    if not isinstance(reader, Snapshot):
        return _look(reader, entry, state, now)
    key = ("expired", entry.number)
    known: Expired | None = reader.cache.get(key)
    if known is None or not known.since <= now < known.until:
        known = reader.cache[key] = _look(reader, entry, state, now)
    return known


def _look(reader: Reader, entry: Entry, state: State, now: int) -> Expired:
    alive = rows.live(reader, entry.number, state)
    gone, unknown = np.zeros_like(alive), alive.copy()
    since, until = ALWAYS, NEVER
    made = index.load(reader, entry.number, state)
    for segment in [] if made is None else made.segments(reader):
        part = segment.listed.words
        own = segment.rows[: len(unknown[part])]
        unknown[part] &= ~own
        with segments.reading(segment, entry.number):
            words, last, following = _past(segment, now)
        gone[part] |= words[: len(own)] & own
        since, until = max(since, last), min(until, following)
    for row, found in placed(reader, entry, state, unknown):
        if isinstance(found, Part):
            found = records.read(reader, entry.number, found.parent)
        if found.expires_at is None:
            continue
        end = instant(found.expires_at)
        if end <= now:
            gone[row >> 6] |= np.uint64(1 << (row & 63))
            since = max(since, end)
        else:
            until = min(until, end)
    gone &= alive
    return Expired(gone if gone.any() else None, since, until)


def _past(segment: Segment, now: int) -> tuple[Words, int, int]:
    """Rows of a segment that are past their time; the last instant until now, and the next one."""
    words = np.zeros(RANGE_WORDS, np.uint64)
    column = segment.column(EXPIRES)
    values = None if column is None else column.find("datetime.values")
    if column is None or values is None or not len(values):
        return words, ALWAYS, NEVER
    stop = int(np.searchsorted(values, now, "right"))
    column.add_sorted("datetime", 0, stop, words)
    last = int(values[stop - 1]) if stop else ALWAYS
    return words, last, int(values[stop]) if stop < len(values) else NEVER
