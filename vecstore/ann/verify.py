"""Is an index as docs/layout.md says? Compares lists, codes and what names them with the rows.

The numbers in brackets are those of the invariants in docs/layout.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vecstore import index_layout, layout, rows
from vecstore.ann import buckets, codes, index, rounding
from vecstore.ann.buckets import Buckets
from vecstore.ann.codes import Codes
from vecstore.ann.index import Index
from vecstore.ann.model import Model
from vecstore.catalog import Entry
from vecstore.index_layout import LISTED, MODEL, NO_LIST, NO_ROW, PLAN
from vecstore.layout import (
    BLOCK_ROWS,
    BYTE_TIER,
    CODE_BLOCK,
    CODE_TIER,
    LIST,
    LIST_PART_ROWS,
    NO_BLOCK,
    State,
)
from vecstore.report import Report
from vecstore.rows import Words
from vecstore.store import Reader
from vecstore.vectors import lengths

# Rows whose codes are made again.
SAMPLE, SEED = 64, 20_240
# Sums in another order may move a number over the edge between two levels: of so many groups one
# may differ, and scales and offsets by so much. What is as small as rounding is not compared.
GROUPS_A_FLIP, ERROR, ROUNDING = 16, 1e-3, 1e-5


def verify(reader: Reader, report: Report, entry: Entry, state: State, alive: Words) -> None:
    """Report everything that is wrong with the index of a collection, or with its absence.

    Args:
        reader: Where to read.
        report: Where problems are noted.
        entry: The collection.
        state: Its counters.
        alive: Its living rows, uint64 (blocks,).
    """
    where, found = f"index of collection {entry.spec.name!r}", None
    with report.guard(where):
        bits = None
        if entry.spec.metric == "hamming":
            bits = buckets.load_anew(reader, entry, state)
        found = index.load_anew(reader, entry, state)
        if bits is not None:
            _BucketsCheck(reader, report, entry, state, alive, bits, where).run()
        elif found is None:
            _check_absence(reader, report, entry.number, where)
        wanted = np.flatnonzero(alive) if index.keeps_bytes(reader, entry) else alive[:0]
        _check_bytes(reader, report, entry, state, set(wanted.tolist()))
    if found is not None:
        _IndexCheck(reader, report, entry, state, alive, found, where).run()


def _check_bytes(
    reader: Reader, report: Report, entry: Entry, state: State, wanted: set[int]
) -> None:
    """All blocks of a flat index, and no others, have the bytes of their rows (14)."""
    where = f"bytes of collection {entry.spec.name!r}"
    seen: set[int] = set()
    prefix = layout.tier_prefix(entry.number, BYTE_TIER)
    for key, _ in reader.items("tiers", prefix):
        block = int.from_bytes(key[len(prefix) :], "big")
        if len(key) != len(prefix) + 4 or block not in wanted:
            report.add(where, f"tiers: key {key.hex()} is not expected (14)")
            continue
        seen.add(block)
        with report.guard(where), np.errstate(all="ignore"):
            found = rounding.read(reader, entry, block)
            held = state.open_rows if block == state.open_block else BLOCK_ROWS
            if len(found.numbers) != held:
                report.add(where, f"block {block} has those of {len(found.numbers)} rows (14)")
                continue
            numbers = np.arange(block * BLOCK_ROWS, block * BLOCK_ROWS + held)
            vectors = rows.gather(reader, entry.number, state, entry.form, numbers)[2]
            wrong = numbers[~rounding.holds(found, vectors, entry.spec.metric)]
            if len(wrong):
                report.add(where, f"{len(wrong)} rows, such as {wrong[0]}, are farther off (14)")
    for block in sorted(wanted - seen):
        report.add(where, f"block {block} has none (14)")


def _check_absence(reader: Reader, report: Report, number: int, where: str) -> None:
    """A collection without an index has at most the wish for one (9)."""
    wish = index_layout.index_key(number, PLAN)
    prefixes = {
        "index": layout.collection_key(number),
        "lists": layout.collection_key(number),
        "tiers": layout.tier_prefix(number, CODE_TIER),
    }
    for database, prefix in prefixes.items():
        strange = [key for key, _ in reader.items(database, prefix) if key != wish]
        if strange:
            what = f"{len(strange)} keys, such as {strange[0].hex()}, though there is no index (9)"
            report.add(where, f"{database}: {what}")


class _IndexCheck:
    """The links between the parts of one index, and to the rows."""

    def __init__(
        self,
        reader: Reader,
        report: Report,
        entry: Entry,
        state: State,
        alive: Words,
        found: Index,
        where: str,
    ) -> None:
        self.reader, self.report, self.entry, self.state = reader, report, entry, state
        self.number, self.index, self.model = entry.number, found, found.model
        self.alive, self.where = alive, where
        self.living = rows.flags(alive)
        # Rows whose codes could be read; and the list of each, NO_LIST for the tail.
        self.readable = np.zeros(len(self.living), bool)
        self.placed = np.full(len(self.living), NO_LIST, np.uint32)

    def run(self) -> None:
        """Check everything."""
        self._check_keys()
        with self.report.guard(self.where):
            self._check_column(*self._read_lists())
        self._check_tail()
        with self.report.guard(self.where), np.errstate(all="ignore"):
            self._check_sample()

    def _add(self, what: str) -> None:
        self.report.add(self.where, what)

    def _check_keys(self) -> None:
        """There is a list for each centroid, and nothing that belongs to none (9)."""
        parts = range(-(-len(self.living) // LIST_PART_ROWS))
        known = {index_layout.index_key(self.number, name) for name in (PLAN, MODEL, LISTED)}
        known |= {index_layout.list_part_key(self.number, part) for part in parts}
        lists = {index_layout.list_key(self.number, which) for which in range(self.model.lists)}
        prefix = layout.collection_key(self.number)
        found = {key for key, _ in self.reader.items("index", prefix)}
        for key in sorted(found - known):
            self._add(f"index: key {key.hex()} is not expected (9)")
        # Readers take a missing value for one in which no block is listed.
        if index_layout.index_key(self.number, LISTED) not in found:
            self._add("index: the bits of the listed blocks are missing (9)")
        there = {key for key, _ in self.reader.items("lists", prefix)}
        for key in sorted(there - lists):
            self._add(f"lists: key {key.hex()} is not expected (9)")
        if lists - there:
            self._add(f"lists: {len(lists - there)} of {len(lists)} are missing (9)")

    def _read_lists(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows that lists name, and the list of each; lists that are damaged are left out."""
        named, counts = [np.zeros(0, np.uint32)], np.zeros(self.model.lists, np.int64)
        for which in range(self.model.lists):
            with self.report.guard(self.where):
                value = self.reader.get("lists", index_layout.list_key(self.number, which))
                if value is not None:
                    named.append(self._rows_of(value, which))
                    counts[which] = len(named[-1])
        for which in np.flatnonzero(self.model.closed & (counts > 0)).tolist():
            self._add(f"list {which} is closed and names {counts[which]} rows (10)")
        return np.concatenate(named).astype(np.int64), np.repeat(np.arange(len(counts)), counts)

    def _rows_of(self, value: memoryview, which: int) -> NDArray[np.uint32]:
        layout.verify_bulk(value, f"list {which}")
        shape = self.model.shape
        count = index_layout.check_codes(value, self.number, LIST, which, shape)
        _, rows_, _ = index_layout.split_codes(value, LIST, count, shape)
        if (rows_[count:] != NO_ROW).any():
            self._add(f"list {which} names rows beyond its last (10)")
        return rows_[:count].copy()

    def _check_column(self, named: NDArray[np.int64], lists: NDArray[np.int64]) -> None:
        """Lists name the rows that the rows' lists name, once each (10); blocks are whole (11)."""
        beyond = named >= len(self.living)
        if beyond.any():
            self._add(f"list {lists[beyond][0]} names row {named[beyond][0]}, which is not (10)")
        named, lists = named[~beyond], lists[~beyond]
        # One row in two lists stays with the last, which is enough for a sample.
        self.placed[named], self.readable[named] = lists, True
        column = index.read_lists_of_rows(self.reader, self.number, self.index)
        times = np.bincount(named, minlength=len(column))
        wrong = named[column[named] != lists]
        self._add_rows(wrong, "in a list that is not theirs (10)")
        self._add_rows(np.flatnonzero(times > 1), "in lists more than once (10)")
        self._add_rows(np.flatnonzero((times == 0) & (column != NO_LIST)), "not in their list (10)")
        loose = self.living & np.repeat(self.index.listed, BLOCK_ROWS) & (column == NO_LIST)
        self._add_rows(np.flatnonzero(loose), "of blocks in lists, but in none (11)")
        if self.state.open_block != NO_BLOCK and self.index.listed[self.state.open_block]:
            self._add(f"block {self.state.open_block} is open and in lists (11)")

    def _add_rows(self, found: NDArray[np.int64], what: str) -> None:
        if len(found):
            self._add(f"{len(found)} rows, such as {found[0]}, are {what}")

    def _check_tail(self) -> None:
        """Living blocks in no list, and no others, have codes of all that they hold (12)."""
        tail, prefix = (
            index.tail(self.index, self.alive),
            layout.tier_prefix(self.number, CODE_TIER),
        )
        wanted, seen = set(tail.tolist()), set()
        for key, value in self.reader.items("tiers", prefix):
            block = int.from_bytes(key[len(prefix) :], "big")
            if len(key) != len(prefix) + 4 or block not in wanted:
                self._add(f"tiers: codes under key {key.hex()} are of no block in the tail (12)")
                continue
            seen.add(block)
            with self.report.guard(self.where):
                self._check_block(value, block)
        for block in sorted(wanted - seen):
            self._add(f"block {block} is in no list and has no codes (12)")

    def _check_block(self, value: memoryview, block: int) -> None:
        layout.verify_bulk(value, f"codes of block {block}")
        first = block * BLOCK_ROWS
        count = index_layout.check_codes(value, self.number, CODE_BLOCK, first, self.model.shape)
        held = self.state.open_rows if block == self.state.open_block else BLOCK_ROWS
        if count != held:
            self._add(f"block {block} has codes of {count} of its {held} rows (12)")
        self.readable[first : first + count] = True

    def _check_sample(self) -> None:
        """Codes are those that the model gives the vectors (13)."""
        chosen = np.flatnonzero(self.readable & self.living)
        chosen = np.random.default_rng(SEED).permutation(chosen)[:SAMPLE]
        chosen = chosen[np.argsort(self.placed[chosen], kind="stable")]
        if len(chosen) == 0:
            return
        form = self.entry.form
        vectors = rows.gather(self.reader, self.number, self.state, form, chosen)[2]
        lists = np.minimum(self.placed[chosen], self.model.lists).astype(np.intp)
        made = self.model.encode(vectors, lists, chosen.astype(np.uint32))
        stored = codes.join([self._stored(row) for row in chosen.tolist()])
        sizes = lengths(vectors) + float(np.linalg.norm(self.model.mean))
        # Where all in a list are far shorter than its centroid, that is what sums are rounded by.
        sizes += lengths(self.model.centres[lists])
        wrong = chosen[_differ(self.model, sizes, made, stored)]
        self._add_rows(wrong, f"of {len(chosen)} not coded as their vectors are (13)")

    def _stored(self, row: int) -> Codes:
        """The code of one row as it is in the file."""
        which = int(self.placed[row])
        if which == NO_LIST:
            found = index.read_block_codes(self.reader, self.number, self.model, row >> 6)
            return found.take(slice(row & 63, (row & 63) + 1))
        found = index.read_list(self.reader, self.number, self.model, which)
        return found.take(np.flatnonzero(found.rows == row)[:1])


class _BucketsCheck:
    """The links between the buckets of binary vectors and the rows."""

    def __init__(
        self,
        reader: Reader,
        report: Report,
        entry: Entry,
        state: State,
        alive: Words,
        found: Buckets,
        where: str,
    ) -> None:
        self.reader, self.report, self.entry, self.state = reader, report, entry, state
        self.number, self.found, self.alive, self.where = entry.number, found, alive, where
        self.bands = found.bands
        # The rows that the first band names, which all the others are to name.
        self.named: NDArray[np.uint32] | None = None

    def run(self) -> None:
        """Check everything."""
        open_block = self.state.open_block
        if open_block != NO_BLOCK and self.found.listed[open_block]:
            self._add(f"block {open_block} is open and in buckets (15)")
        self._check_keys()
        living = self.alive * self.found.listed
        for band, numbers in buckets.columns(
            self.reader, self.entry, self.state, living, self.bands
        ):
            with self.report.guard(self.where):
                self._check_band(band, rows.members(living), numbers)

    def _add(self, what: str) -> None:
        self.report.add(self.where, what)

    def _check_keys(self) -> None:
        """There are the buckets of every band, and nothing else (9)."""
        prefix = layout.collection_key(self.number)
        expected = {
            "index": {index_layout.index_key(self.number, name) for name in (PLAN, LISTED)},
            "lists": {index_layout.list_key(self.number, band) for band in range(self.bands.count)},
        }
        for database, known in expected.items():
            found = {key for key, _ in self.reader.items(database, prefix)}
            for key in sorted(found ^ known):
                state = "is missing" if key in known else "is not expected"
                self._add(f"{database}: key {key.hex()} {state} (9)")
        for key, _ in self.reader.items("tiers", layout.tier_prefix(self.number, CODE_TIER)):
            self._add(f"tiers: key {key.hex()} is not expected (9)")

    def _check_band(self, band: int, living: NDArray[np.intp], numbers: NDArray[np.uint16]) -> None:
        """Buckets hold the rows of the listed blocks, once each, by their bits (15, 16)."""
        value = self.reader.get("lists", index_layout.list_key(self.number, band))
        if value is None:
            return
        width, where = int(self.bands.widths[band]), f"band {band}"
        layout.verify_bulk(value, f"{where} of collection {self.number}")
        index_layout.check_band(value, self.number, band, width, self.found.rows)
        offsets, named = index_layout.split_band(value, width, self.found.rows)
        edges = offsets.astype(np.int64)
        if edges[0] != 0 or edges[-1] != len(named) or (np.diff(edges) < 0).any():
            self._add(f"{where}: buckets do not lie one behind the other (16)")
            return
        ordered = np.sort(named)
        if self.named is None:
            self.named = ordered
            self._check_named(where, ordered)
        elif not np.array_equal(ordered, self.named):
            self._add(f"{where} names other rows than the first band (15)")
        # What each living row's bucket is by its bits, and by where it stands; -1 for nowhere.
        stands = np.full(len(self.alive) * BLOCK_ROWS, -1)
        inside = named < len(stands)
        stands[named[inside]] = np.repeat(np.arange(1 << width), np.diff(edges))[inside]
        wrong = living[stands[living] != numbers]
        if len(wrong):
            rows_ = f"{len(wrong)} rows, such as {wrong[0]}"
            self._add(f"{where}: {rows_}, are not in their bucket (16)")

    def _check_named(self, where: str, ordered: NDArray[np.uint32]) -> None:
        """Rows that are named are of listed blocks, and named once; no such block has none (15)."""
        if (ordered[1:] == ordered[:-1]).any():
            self._add(f"{where} names a row twice (15)")
        inside = ordered[ordered < len(self.alive) * BLOCK_ROWS]
        if len(inside) < len(ordered):
            self._add(f"{where} names row {ordered[-1]}, which is not (15)")
        blocks = np.zeros(len(self.alive), bool)
        blocks[inside >> 6] = True
        for block in np.flatnonzero(blocks != self.found.listed)[:3].tolist():
            state = "is listed and in no bucket" if self.found.listed[block] else "is not listed"
            self._add(f"{where}: block {block} {state} (15)")


def _differ(
    model: Model, sizes: NDArray[np.float64], made: Codes, stored: Codes
) -> NDArray[np.bool_]:
    """Which rows have other codes than were made again, bool (n,).

    Args:
        model: What coded them.
        sizes: float64 (n,), the lengths of what is added up: vector, mean and centroid together.
        made: The codes made again.
        stored: Those in the file.
    """
    scales, fine_scales, offsets = (
        abs(getattr(made, name).astype(np.float64) - getattr(stored, name))
        for name in ("scales", "fine_scales", "offsets")
    )
    # Nothing is true of what is not a number.
    same = ~_flipped(made.groups, stored.groups) & (scales <= ERROR * made.scales)
    same |= made.scales * model.coded**0.5 <= ROUNDING * sizes
    fine = ~_flipped(made.fine, stored.fine) & (fine_scales <= ERROR * made.fine_scales)
    fine |= made.fine_scales * model.dim**0.5 <= ROUNDING * sizes
    wrong: NDArray[np.bool_] = ~(same & fine & (offsets <= ERROR * sizes**2))
    return wrong


def _flipped(made: codes.Bytes, stored: codes.Bytes) -> NDArray[np.bool_]:
    """Which rows have codes of more other groups than rounding explains, bool (n,)."""
    flips: NDArray[np.bool_] = (made != stored).sum(axis=1) > 1 + made.shape[1] // GROUPS_A_FLIP
    return flips
