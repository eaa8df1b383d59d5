"""Are the columns of fields as docs/layout.md says? Compares them with the records.

The numbers in brackets are those of the invariants in docs/layout.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vecstore import field_layout, layout, rows
from vecstore.catalog import Entry
from vecstore.field_layout import RANGE_ROWS, RANGE_WORDS
from vecstore.fields import columns, index, segments, upkeep
from vecstore.fields.segments import Segment
from vecstore.layout import State
from vecstore.report import Report
from vecstore.rows import Words
from vecstore.store import Reader


def verify(
    reader: Reader,
    report: Report,
    entry: Entry,
    state: State,
    alive: Words,
    orders: Mapping[int, int],
) -> None:
    """Report everything that is wrong with the columns of a collection.

    Args:
        reader: Where to read.
        report: Where problems are noted.
        entry: The collection.
        state: Its counters.
        alive: Its living rows, uint64 (blocks,).
        orders: The orders of rows, as the records say.
    """
    where, marker = f"fields of collection {entry.spec.name!r}", layout.collection_key(entry.number)
    with report.guard(where):
        value = reader.get("fields", marker)
        if value is not None:
            layout.unpack_checked(value, f"{where}: their generation")
        found = index.load_anew(reader, entry.number, state)
        if found is None:
            return
        _check_keys(reader, report, entry.number, where)
        covered = np.zeros(-(-len(alive) // RANGE_WORDS) * RANGE_WORDS, np.uint64)
        for listed, own in zip(found.manifest.segments, found.own, strict=True):
            with report.guard(f"{where}, segment {listed.number}"):
                if (covered[listed.words] & own).any():
                    report.add(where, f"segment {listed.number} has rows of another one (20)")
                covered[listed.words] |= own
        for segment in found.segments(reader):
            with report.guard(f"{where}, segment {segment.listed.number}"):
                _check_segment(reader, report, entry, segment, alive, orders, where)


def _check_keys(reader: Reader, report: Report, number: int, where: str) -> None:
    """There is what the manifest names, and nothing else (20)."""
    manifest = index.read_manifest(reader, number)
    expected = {layout.collection_key(number), field_layout.manifest_key(number)}
    for listed in manifest.segments:
        expected.add(field_layout.segment_key(number, listed.number))
        expected.add(field_layout.rows_key(number, listed.number))
    there = {key for key, _ in reader.items("fields", layout.collection_key(number))}
    for key in sorted(there ^ expected):
        state = "is not expected" if key in there else "is missing"
        report.add(where, f"key {key.hex()} {state} (20)")


def _check_segment(
    reader: Reader,
    report: Report,
    entry: Entry,
    segment: Segment,
    alive: Words,
    orders: Mapping[int, int],
    where: str,
) -> None:
    """A segment holds what the records of its living rows do (21)."""
    number, which = segment.listed.number, segment.listed.range
    value = reader.get("fields", field_layout.segment_key(entry.number, number))
    layout.verify_bulk(value, f"{where}: segment {number}")
    living = rows.members(field_layout.in_range(alive, which) & segment.rows)
    wanted_rows = (living + which * RANGE_ROWS).tolist()
    known = {row: orders[row] for row in wanted_rows if row in orders}
    # What is wrong with records is said elsewhere.
    told = upkeep.metadata_of(reader, entry, known)
    places = np.array([row % RANGE_ROWS for row in told], np.uint16)
    wanted = columns.by_leaves(places, list(told.values()), entry.spec.indexes)
    there = segments.columns_of(segment, field_layout.bits_of(places))
    arrays, held_there = (segments.arrays_of(one, len(told)) for one in (wanted, there))
    if wanted.keys() != there.keys() or arrays.keys() != held_there.keys():
        report.add(where, f"segment {number} has other fields than its records (21)")
        return
    for name, array in arrays.items():
        if not np.array_equal(array, held_there[name]):
            path = sorted(wanted)[int(name.partition(".")[0])]
            report.add(where, f"segment {number}: field {path!r} is not as records say (21)")
            return
