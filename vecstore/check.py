"""Is everything on disk as docs/layout.md says? Walks the whole file and reports, never raises.

The numbers in brackets are those of the invariants in docs/layout.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vecstore import attached, catalog, digests, layout, record_layout, records, rows
from vecstore.ann import verify
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError, NotFoundError, StoreError
from vecstore.fields import verify as columns
from vecstore.layout import BLOCK_ROWS, Packed, State
from vecstore.record_layout import Content, Part, Passages
from vecstore.rows import PART_WORDS, Words
from vecstore.store import Reader
from vecstore.values import instant
from vecstore.vectors import count_bits, lengths, unit_slack, widen


@dataclass(frozen=True, slots=True)
class Problem:
    """Something on disk that is not as it must be.

    Attributes:
        where: The database, and the collection, record or block; or the file, where LMDB's own
            pages are damaged.
        what: What is wrong there.
        repaired: Whether `check(repair=True)` mended it.
    """

    where: str
    what: str
    repaired: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Report:
    """Collects problems; damage met on the way becomes one instead of an exception."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, where: str, what: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(where, what))

    @contextlib.contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Note whatever damage stops the body of the with statement, and go on after it."""
        try:
            yield
        except (StoreError, NotFoundError, ValueError, KeyError, TypeError, OverflowError) as error:
            self.add(where, str(error))


def check(reader: Reader) -> list[Problem]:
    """Return every problem in the file; an empty list when it is sound."""
    report = Report()
    # LMDB's own pages come first: where they are damaged, reading on could crash.
    for what in [] if reader.copies else reader.store.damage():
        report.add("file", what)
    if report.problems:
        return report.problems
    entries = _check_catalog(reader, report)
    numbers = {entry.number for entry in entries}
    for database in filter(reader.has, catalog.PREFIXED):
        with report.guard(database):
            _check_owners(reader, report, database, numbers)
    for entry in entries:
        report.problems += check_collection(reader, entry)
    return report.problems


def check_collection(reader: Reader, entry: Entry) -> list[Problem]:
    """Return every problem of one collection, in a file whose pages are sound."""
    report = Report()
    with report.guard(f"meta: collection {entry.spec.name!r}"):
        attached.verify(reader, report, entry)
    with report.guard(f"meta: collection {entry.spec.name!r}"):
        state = catalog.state(reader, entry.number)
        _CollectionCheck(reader, report, entry, state).run()
    return report.problems


def _check_catalog(reader: Reader, report: Report) -> list[Entry]:
    """Names, specs and counters belong together one to one (1)."""
    entries: list[Entry] = []
    names: list[str] = []
    with report.guard("meta"):
        names = catalog.names(reader)
    for name in names:
        with report.guard(f"meta: name {name!r}"):
            entry = catalog.find(reader, name)
            if entry is not None:
                entries.append(entry)
                if entry.spec.name != name:
                    report.add(
                        "meta", f"name {name!r} leads to the spec of {entry.spec.name!r} (1)"
                    )
    with report.guard("meta: format"):
        layout.unpack_meta(reader.get("meta", layout.KEY_FORMAT) or b"", "meta: format")
    numbers = [entry.number for entry in entries]
    if len(set(numbers)) != len(numbers):
        report.add("meta", "two names lead to one collection (1)")
    expected = {layout.KEY_FORMAT, *(layout.name_key(name) for name in names)}
    for number in numbers:
        expected |= {layout.spec_key(number), layout.state_key(number)}
        if reader.get("meta", layout.adapter_key(number)) is not None:
            expected.add(layout.adapter_key(number))
    if numbers:
        expected.add(layout.KEY_NEXT)
        with report.guard("meta: next"):
            value = reader.get("meta", layout.KEY_NEXT) or b""
            following = layout.unpack_meta(value, "meta: next")["next"]
            if following <= max(numbers):
                report.add("meta", f"the next number {following} is in use (1)")
    found: set[bytes] = set()
    with report.guard("meta"):
        found = {key for key, _ in reader.items("meta", b"")}
    for key in sorted(found ^ (expected | (found & {layout.KEY_NEXT}))):
        report.add("meta", f"key {key!r} is {'not expected' if key in found else 'missing'} (1)")
    return entries


def _check_owners(reader: Reader, report: Report, database: str, numbers: set[int]) -> None:
    """Every key begins with the number of a collection, and can be found (2)."""
    strangers = lost = 0
    # Releases that do not know digests leave them behind.
    gone = catalog.following(reader) if database == "digests" else 0
    for key, _ in reader.items(database, b""):
        owner = int.from_bytes(key[:4], "big")
        if len(key) < 4 or (owner not in numbers and owner >= gone):
            strangers += 1
        # Walking from page to page does not ask the pages above which keys these have.
        lost += reader.get(database, key) is None
    if lost:
        what = f"{lost} keys of {database} cannot be found: pages above them are damaged (2)"
        report.add("file", what)
    if strangers:
        report.add(database, f"{strangers} keys belong to no collection (2)")


class _CollectionCheck:
    """The links between ids, records, rows, blocks, bitmaps and counters of one collection."""

    def __init__(self, reader: Reader, report: Report, entry: Entry, state: State) -> None:
        self.reader, self.report, self.entry, self.state = reader, report, entry, state
        self.number = entry.number
        self.where = f"collection {entry.spec.name!r}"
        # Which order each row's record has, as the records say; -1 for none.
        self.orders: dict[int, int] = {}
        # What records say of their passages, by order, as far as these were not met yet.
        self.expected: dict[int, tuple[int, Passages]] = {}

    def run(self) -> None:
        """Check everything; the records first, they are what the rest must agree with."""
        self._check_records()
        self._check_ids()
        alive = self._check_live()
        self._check_blocks(alive)
        with self.report.guard(self.where):
            digests.verify(self.reader, self.report, self.entry, self.state)
        columns.verify(self.reader, self.report, self.entry, self.state, alive, self.orders)
        verify.verify(self.reader, self.report, self.entry, self.state, alive)

    def _check_records(self) -> None:
        """Records are whole, and ids, orders and rows lead back to them (3, 4, 18)."""
        where, state, prefix = self.where, self.state, layout.collection_key(self.number)
        count = passages = 0
        ends = list[int]()
        for key, value in self.reader.items("records", prefix):
            passage = record_layout.is_passage(value)
            count, passages = count + (not passage), passages + passage
            with self.report.guard(f"{where}, records"):
                if len(key) != 12:
                    raise CorruptionError(f"key {key.hex()} has {len(key)} bytes (3)")
                order = int.from_bytes(key[4:], "big")
                row = record_layout.check_record(key, value)
                if order >= state.next_order:
                    self.report.add(where, f"order {order} was never given out (3)")
                if row in self.orders:
                    self.report.add(where, f"row {row} belongs to two records (4)")
                self.orders[row] = order
                if passage:
                    self._check_passage(order, record_layout.unpack_part(key, value))
                else:
                    content = record_layout.unpack_content(order, value)
                    self._check_record(order, content)
                    end = records.end_of(content[2])
                    ends += [] if end is None else [instant(end)]
        if count != state.records:
            self.report.add(where, f"{count} records, the counter says {state.records} (3)")
        if passages != state.passages:
            what = f"{passages} passages behind the first, the counter says {state.passages} (18)"
            self.report.add(where, what)
        for order in sorted(self.expected):
            self.report.add(where, f"the passage of order {order} is missing (18)")
        least = min(ends, default=state.earliest)
        if (len(ends), least) != (state.expiring, max(least, state.earliest)):
            what = (
                f"{len(ends)} records expire, from {least} on; the counters say {state.expiring},"
                f" from {state.earliest} on (22)"
            )
            self.report.add(where, what)
        if (passages or ends) and min(catalog.format_of(self.reader)) < layout.FORMAT:
            self.report.add(where, "records are in a file of a format without their kind (18, 22)")

    def _check_record(self, order: int, content: Content) -> None:
        identity, _, _, passages = content
        if records.find(self.reader, self.number, identity) != order:
            self.report.add(self.where, f"id {identity!r} does not lead to its record (3)")
        if passages is not None:
            self.expected |= dict.fromkeys(passages.orders, (order, passages))

    def _check_passage(self, order: int, part: Part) -> None:
        """A passage is one of its record, which came before it (18)."""
        parent, passages = self.expected.pop(order, (None, None))
        if parent != part.parent:
            what = f"order {order} is a passage of order {part.parent}, which has no such (18)"
            self.report.add(self.where, what)
            return
        record_layout.check_part(part, passages)

    def _check_ids(self) -> None:
        """Together with the records' own ids: ids and records are one to one (3)."""
        count = 0
        for key, _ in self.reader.items("ids", layout.collection_key(self.number)):
            count += 1
            with self.report.guard(f"{self.where}, ids"):
                layout.parse_id_key(key)
        if count != self.state.records:
            self.report.add(self.where, f"{count} ids, the counter says {self.state.records} (3)")

    def _check_live(self) -> Words:
        """The living rows are the rows of the records (4); bitmaps are whole (5)."""
        words = np.zeros(self.state.blocks, np.uint64)
        with self.report.guard(f"{self.where}, live"):
            words = rows.live(self.reader, self.number, self.state)
        living = set(rows.members(words).tolist())
        if living != self.orders.keys():
            odd = sorted(living ^ self.orders.keys())
            self.report.add(
                self.where,
                f"{len(odd)} rows live without a record or have one without living, such as"
                f" {odd[0]} (4)",
            )
        parts = {layout.part_key(self.number, part) for part in range(-(-len(words) // PART_WORDS))}
        for key, _ in self.reader.items("live", layout.collection_key(self.number)):
            if key not in parts:
                self.report.add(self.where, f"live: key {key.hex()} is not expected (5)")
        return words

    def _check_blocks(self, alive: Words) -> None:
        """A block has a value if and only if a row of it lives; rows lead to records (4, 6, 7)."""
        present = set()
        prefix = layout.tier_prefix(self.number)
        others = tuple(
            layout.tier_prefix(self.number, tier) for tier in (layout.CODE_TIER, layout.BYTE_TIER)
        )
        for key, value in self.reader.items("tiers", layout.collection_key(self.number)):
            if key.startswith(others):
                # The index has its own check.
                continue
            if not key.startswith(prefix) or len(key) != len(prefix) + 4:
                self.report.add(self.where, f"tiers: key {key.hex()} is not expected (6)")
                continue
            block = int.from_bytes(key[-4:], "big")
            present.add(block)
            if block >= len(alive):
                self.report.add(self.where, f"block {block} was never allotted (6)")
                continue
            with self.report.guard(self.where):
                layout.verify_bulk(value, f"block {block}")
                self._check_block(block, value, int(alive[block]))
        for block in sorted(present ^ set(np.flatnonzero(alive).tolist())):
            state = "has no living row" if block in present else "is missing"
            self.report.add(self.where, f"block {block} {state} (6)")

    def _check_block(self, block: int, value: memoryview, word: int) -> None:
        form, state = self.entry.form, self.state
        held = layout.check_block(value, self.number, block, form)
        if held != (state.open_rows if block == state.open_block else BLOCK_ROWS):
            self.report.add(self.where, f"block {block} holds {held} rows (6)")
        if word >> held:
            self.report.add(self.where, f"block {block}: rows beyond its {held} live (6)")
        found = layout.view_block(value, held, form)
        self._check_numbers(block, found.packed)
        for inside in range(held):
            row, order = block * BLOCK_ROWS + inside, int(found.orders[inside])
            if word >> inside & 1 and self.orders.get(row) != order:
                self.report.add(
                    self.where,
                    f"row {row} says order {order}, its record {self.orders.get(row)} (4)",
                )

    def _check_numbers(self, block: int, packed: Packed) -> None:
        """Vectors and norms are finite and fit each other (7)."""
        numbers = [packed.numbers, packed.norms]
        numbers += [] if packed.scales is None else [packed.scales]
        if not all(np.isfinite(values).all() for values in numbers):
            self.report.add(self.where, f"block {block} holds a value that is not finite (7)")
        if self.entry.spec.metric == "hamming":
            spare = packed.numbers.view(np.uint8)[:, self.entry.spec.dim // 8 :]
            if (packed.norms != count_bits(packed.numbers)).any() or spare.any():
                self.report.add(self.where, f"block {block} holds a wrong count of bits (7)")
            return
        sizes = lengths(widen(packed))
        if self.entry.spec.metric != "cosine":
            if (abs(packed.norms - sizes) > 1e-9 * sizes).any():
                self.report.add(self.where, f"block {block} holds a wrong norm (7)")
        elif (abs(sizes - 1) > unit_slack(packed)).any() or (packed.norms <= 0).any():
            self.report.add(self.where, f"block {block} holds a vector not of unit length (7)")
