"""What can be read of a damaged file? Collections, records and vectors, each by its own checksum.

Trees are followed as far as they are sound. If something of one is missing, all pages that no tree
leads to are looked at: of those that are not free, nothing can be old. Where it is not known which
pages are free, what is found so may have been deleted or replaced long ago: it is uncertain.
"""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vecstore import attached, catalog, layout, record_layout, records
from vecstore.ann import index
from vecstore.ann.index import Kind
from vecstore.attached import Attached
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError, FormatError, UsageError
from vecstore.index_layout import PLAN
from vecstore.layout import BLOCK_ROWS, Block, Form, Packed, State
from vecstore.metadata import plain_metadata
from vecstore.record_layout import Part, Passages
from vecstore.spec import CollectionSpec, Id, check_id, encode_utf8
from vecstore.store.pages import READ_AGAIN, Far, Pages, Value, Walk
from vecstore.values import EXPIRES
from vecstore.vectors import are_sound

# Bytes of blocks, and pages of records, that are kept at hand.
BLOCKS_KEPT, PAGES_KEPT = 64 << 20, 256
# So many values of one block may be found.
VALUES_OF_BLOCK = 16
_PART = tuple(Part.__dataclass_fields__)
_SPEC, _STATE, _ADAPTER = (
    make(0)[:-4] for make in (layout.spec_key, layout.state_key, layout.adapter_key)
)
_NAME = layout.name_key("")


@dataclass(slots=True)
class Kept:
    """What is known of a collection beside its records.

    Attributes:
        entry: Its name and spec; None where that is lost.
        state: Its counters, if they can be read and are not old.
        attached: Its adapter.
        kind: The kind of index that was wanted.
        damaged: Records, and passages, whose checksums are wrong.
        parts: Of each passage order, row, parent, index, start and end, one behind the other.
    """

    entry: Entry | None = None
    state: State | None = None
    attached: Attached | None = None
    kind: Kind | None = None
    damaged: int = 0
    parts: Any = field(default_factory=lambda: array("Q"))
    orders: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))


@dataclass(frozen=True, slots=True)
class Found:
    """A record whose checksum is right.

    Attributes:
        number: That of its collection.
        order: Its own.
        id: Its id, and so on.
        rows: Where its vectors are, that of the record first; None for a passage that is lost.
        orders: Of what these rows belong to.
        certain: Whether it cannot be old.
    """

    number: int
    order: int
    id: Id
    text: str | None
    metadata: dict[str, Any] | None
    passages: Passages | None
    rows: tuple[int | None, ...]
    orders: tuple[int, ...]
    certain: bool


class Wreck:
    """A file that is read without being trusted.

    Attributes:
        kept: What is known of each collection, by its number.
        passed: Pages that could not be read, with what was below them.
        scanned: Whether pages were looked at that no tree leads to.
        certain: Whether what was found so cannot be old.
    """

    def __init__(self, path: Path) -> None:
        self._pages = Pages(path)
        try:
            self.kept: dict[int, Kept] = {}
            self.passed = 0
            self.scanned = False
            self.certain = True
            self.known = False
            self._specs: list[Entry] = []
            self._named: dict[str, int] = {}
            self._blocks: dict[tuple[int, int], list[Far]] = {}
            # The first key of a record on each page that no tree leads to.
            self._loose: list[tuple[bytes, int]] = []
            self._ready: OrderedDict[tuple[int, int], list[Block]] = OrderedDict()
            self._ready_bytes = 0
            self._survey()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._pages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pages(self) -> int:
        """How many pages the file has."""
        return self._pages.count

    @property
    def headers(self) -> int:
        """How many of the two header pages are of use."""
        return len(self._pages.headers)

    # The first look

    def _survey(self) -> None:
        """Read all but the records, note the pages of these, and look for what is missing."""
        seen, whole = bytearray(self._pages.seen), True
        for name, note in (
            ("meta", self._note_meta),
            ("index", self._note_index),
            ("tiers", self._note_block),
            ("records", None),
        ):
            tree = self._pages.trees.get(name)
            if tree is None:
                whole = False
                continue
            walk = Walk(self._pages, tree, seen)
            for key, value, _ in walk:
                if note is not None:
                    note(key, value, True)
            self.passed += walk.passed
            whole = whole and walk.whole
        if not whole:
            self.scanned = True
            self.certain = self._pages.free is not None and not self._pages.contradicted
            self._pages.take_spare(seen)
            self._scan(seen)
        self._place_specs()
        for key, value, _ in self._chosen(self._note_damaged):
            if record_layout.is_passage(value):
                self._note_part(key, value)
        for kept in self.kept.values():
            kept.orders = np.array(kept.parts[:: len(_PART)], np.uint64)

    def _place_specs(self) -> None:
        """Give each collection its spec: that to which a name leads, for keys have no checksum."""
        owners = [self._named.get(entry.spec.name, entry.number) for entry in self._specs]
        placed = list(zip(owners, self._specs, strict=True))
        for owner, entry in sorted(placed, key=lambda pair: pair[0] != pair[1].number):
            kept = self.kept.setdefault(owner, Kept())
            kept.entry = kept.entry or entry

    def _of(self, key: bytes) -> Kept:
        """What is known of the collection whose number ends a key of `meta`."""
        return self.kept.setdefault(int.from_bytes(key[-4:], "big"), Kept())

    def _note_meta(self, key: bytes, value: Value, certain: bool) -> None:
        ours = key == layout.KEY_FORMAT or key.startswith((_NAME, _SPEC, _STATE, _ADAPTER))
        data = self._pages.load(value) if ours else None
        if data is None:
            return
        try:
            if key == layout.KEY_FORMAT:
                self._check_format(layout.unpack_meta(data, "meta: format"))
            elif len(key) == len(_SPEC) + 4 and key.startswith(_SPEC):
                self._specs.append(catalog.parse(int.from_bytes(key[-4:], "big"), data))
            elif key.startswith(_NAME):
                name = key.removeprefix(_NAME).decode("utf-8", "replace")
                number = layout.unpack_meta(data, "meta: a name").get("number")
                self._named.setdefault(name, number if isinstance(number, int) else 0)
            elif len(key) == len(_STATE) + 4 and key.startswith(_STATE) and certain:
                self._of(key).state = State.unpack(data)
            elif len(key) == len(_ADAPTER) + 4 and key.startswith(_ADAPTER):
                number = int.from_bytes(key[-4:], "big")
                self._of(key).attached = self._of(key).attached or attached.parse(data, number)
        except CorruptionError:
            return

    def _check_format(self, values: dict[str, Any]) -> None:
        oldest = values.get("oldest_readable")
        if isinstance(oldest, int) and oldest > layout.FORMAT:
            raise FormatError(f"the file has format {oldest} or a newer one; upgrade vecstore")
        self.known = True

    def _note_index(self, key: bytes, value: Value, certain: bool) -> None:
        data = self._pages.load(value) if key[4:] == PLAN else None
        if data is None:
            return
        try:
            kind = layout.unpack_meta(data, "index: plan").get("kind")
        except CorruptionError:
            return
        kept = self.kept.setdefault(int.from_bytes(key[:4], "big"), Kept())
        if kind in index.KINDS and kept.kind is None:
            kept.kind = kind

    def _note_block(self, key: bytes, value: Value, certain: bool) -> None:
        if isinstance(value, Far):
            self._add_block(self._block_at(self._pages.widest(value)))

    def _block_at(self, far: Far) -> tuple[tuple[int, int], Far] | None:
        """Whose block it is that begins there, as it says itself, and its value; None for others.

        Keys have no checksum.
        """
        head = self._pages.load(Far(far.page, layout.HEADER.size))
        if head is None:
            return None
        magic, kind, *_, first, length, _, number = layout.HEADER.unpack(head)
        value = Far(far.page, layout.HEADER.size + length)
        ours = (magic, kind) == (layout.HEADER_MAGIC, layout.FULL_BLOCK)
        if not ours or first % BLOCK_ROWS or value.size > far.size:
            return None
        return (number, first // BLOCK_ROWS), value

    def _add_block(self, found: tuple[tuple[int, int], Far] | None) -> None:
        if found is not None:
            values = self._blocks.setdefault(found[0], [])
            if len(values) < VALUES_OF_BLOCK:
                values.append(found[1])

    def _note_part(self, key: bytes, value: bytes) -> None:
        kept = self.kept.setdefault(int.from_bytes(key[:4], "big"), Kept())
        try:
            part = record_layout.unpack_part(key, value)
            kept.parts.extend([getattr(part, name) for name in _PART])
        except (CorruptionError, OverflowError):
            kept.damaged += 1

    def _scan(self, seen: bytearray) -> None:
        """Look at all pages that no tree leads to."""
        for number, page in self._pages.loose(seen):
            far = self._pages.far(number, page)
            if far is not None:
                self._note_loose_block(far, seen)
                continue
            nodes = self._pages.parse(page)
            if nodes is None:
                continue
            self._note_loose_items(number, [(key, value) for key, value, _ in nodes.items])
        self._loose.sort()

    def _note_loose_block(self, far: Far, seen: bytearray) -> None:
        found = self._block_at(far)
        if found is None or not self._is_whole(found[1]):
            return
        self._add_block(found)
        # What is in a sound value is no page of anything else.
        pages = -(-(found[1].size + 16) // self._pages.size)
        seen[far.page : far.page + pages] = b"\1" * pages

    def _is_whole(self, value: Far) -> bool:
        data = self._pages.load(value)
        try:
            layout.verify_bulk(data or b"", "block")
        except CorruptionError:
            return False
        return True

    def _note_loose_items(self, number: int, items: list[tuple[bytes, Value]]) -> None:
        for key, value in items:
            self._note_meta(key, value, self.certain)
            self._note_index(key, value, self.certain)
        keys = [key for key, _ in items if len(key) == 12]
        if keys:
            self._loose.append((min(keys), number))

    # Records

    def _note_damaged(self, key: bytes) -> None:
        kept = self.kept.get(int.from_bytes(key[:4], "big"))
        if kept is not None:
            kept.damaged += 1

    def _chosen(
        self, note: Callable[[bytes], None] | None = None
    ) -> Iterator[tuple[bytes, bytes, bool]]:
        """Keys and values of sound records and passages, ascending, and whether they are certain.

        Of several under one key, one that a tree leads to, then one whose vector is there; after
        that the one on the last page. `note` is told of keys that have none.
        """
        both = heapq.merge(self._walked(), self._loose_items(), key=lambda item: item[0])
        left = READ_AGAIN * self._pages.count * self._pages.size
        for key, versions in itertools.groupby(both, key=lambda item: item[0]):
            best: tuple[tuple[bool, bool, int], bytes] | None = None
            known = set[Value]()
            for _, page, value in versions:
                # Old pages name the values that have not changed since.
                if value in known:
                    continue
                known.add(value)
                if page >= 0 and isinstance(value, Far):
                    left -= value.size
                data = None if page >= 0 and left < 0 else self._pages.load(value)
                try:
                    row = record_layout.check_record(key, data or b"")
                except CorruptionError:
                    continue
                assert data is not None
                rank = (page < 0, self._is_there(key, row) if page >= 0 else True, page)
                if best is None or rank > best[0]:
                    best = rank, data
            if best is not None:
                yield key, best[1], best[0][0] or self.certain
            elif note is not None:
                note(key)

    def _walked(self) -> Iterator[tuple[bytes, int, Value]]:
        """What the tree of records leads to; -1 stands for its pages."""
        tree = self._pages.trees.get("records")
        if tree is not None:
            for key, value, _ in Walk(self._pages, tree, bytearray(self._pages.seen)):
                if len(key) == 12:
                    yield key, -1, value

    def _loose_items(self) -> Iterator[tuple[bytes, int, Value]]:
        """What other pages hold, in order; pages are read as they are needed."""
        held: OrderedDict[int, list[tuple[bytes, Value]]] = OrderedDict()

        def items_of(page: int) -> list[tuple[bytes, Value]]:
            if page not in held:
                nodes = self._pages.parse(self._pages.page(page) or bytes(self._pages.size))
                found = [] if nodes is None else nodes.items
                sizes = [(key, value) for key, value, _ in found if len(key) == 12]
                held[page] = sorted(sizes, key=lambda item: item[0])
                if len(held) > PAGES_KEPT:
                    held.popitem(last=False)
            return held[page]

        heap: list[tuple[bytes, int, int]] = []
        left = iter(self._loose)
        following = next(left, None)
        while heap or following is not None:
            while following is not None and (not heap or following[0] <= heap[0][0]):
                heapq.heappush(heap, (*following, 0))
                following = next(left, None)
            key, page, place = heapq.heappop(heap)
            items = items_of(page)
            # Somebody may be writing to the file.
            if place < len(items):
                yield key, page, items[place][1]
            if place + 1 < len(items):
                heapq.heappush(heap, (items[place + 1][0], page, place + 1))

    def _is_there(self, key: bytes, row: int) -> bool:
        """Whether a block says that a row belongs to the record under a key."""
        number, order = int.from_bytes(key[:4], "big"), int.from_bytes(key[4:], "big")
        kept = self.kept.get(number)
        if kept is None or kept.entry is None:
            return False
        return self._vector(number, kept.entry.form, row, order) is not None

    def records(self) -> Iterator[Found | tuple[int, int, str]]:
        """Yield all sound records, by number of collection and order.

        One whose content cannot be is the number, the order, and why.
        """
        for key, value, certain in self._chosen():
            if record_layout.is_passage(value):
                continue
            number, order = int.from_bytes(key[:4], "big"), int.from_bytes(key[4:], "big")
            try:
                yield self._found(number, order, value, certain)
            except (CorruptionError, UsageError) as error:
                yield number, order, str(error)

    def _found(self, number: int, order: int, value: bytes, certain: bool) -> Found:
        row = record_layout.RECORD.unpack_from(value)[1]
        identity, text, metadata, passages = record_layout.unpack_content(order, value)
        check_id(identity)
        if text is not None:
            encode_utf8(text, "a text")
        records.end_of(metadata)
        plain_metadata({k: v for k, v in (metadata or {}).items() if k != EXPIRES})
        places: list[int | None] = [row]
        orders = [order]
        for place, part in enumerate(() if passages is None else passages.orders, 1):
            found = self._part(number, part)
            fits = found is not None and (found.parent, found.index) == (order, place)
            places.append(found.row if found is not None and fits else None)
            orders.append(part)
        return Found(
            number, order, identity, text, metadata, passages, tuple(places), tuple(orders), certain
        )

    def _part(self, number: int, order: int) -> Part | None:
        kept = self.kept.get(number)
        if kept is None or order >= 2**64:
            return None
        place = int(np.searchsorted(kept.orders, np.uint64(order)))
        if place == len(kept.orders) or int(kept.orders[place]) != order:
            return None
        return Part(*kept.parts[place * len(_PART) : (place + 1) * len(_PART)])

    # Vectors

    def vectors(
        self, number: int, spec: CollectionSpec, found: Sequence[Found]
    ) -> tuple[Packed, NDArray[np.bool_]]:
        """The vectors of some records, one behind the other, and which of them are sound."""
        form = layout.form(spec)
        wanted = [pair for one in found for pair in zip(one.rows, one.orders, strict=True)]
        scales = np.zeros(len(wanted), np.float32) if form.code == layout.INT8 else None
        numbers = np.zeros((len(wanted), form.width), form.dtype)
        packed = Packed(np.zeros(len(wanted)), numbers, scales)
        there = np.zeros(len(wanted), bool)
        for place, (row, order) in enumerate(wanted):
            held = None if row is None else self._vector(number, form, row, order)
            if held is None or row is None:
                continue
            there[place], inside = True, row % BLOCK_ROWS
            packed.norms[place] = held.packed.norms[inside]
            numbers[place] = held.packed.numbers[inside]
            if scales is not None and held.packed.scales is not None:
                scales[place] = held.packed.scales[inside]
        there[there] = are_sound(packed.take(there), spec)
        return packed, there

    def _vector(self, number: int, form: Form, row: int, order: int) -> Block | None:
        """The block in which a row belongs to an order."""
        inside = row % BLOCK_ROWS
        for block in self._blocks_of(number, row // BLOCK_ROWS, form):
            if inside < len(block.orders) and int(block.orders[inside]) == order:
                return block
        return None

    def _blocks_of(self, number: int, block: int, form: Form) -> list[Block]:
        """The sound values of a block; several where old ones cannot be told."""
        place = number, block
        if place in self._ready:
            self._ready.move_to_end(place)
            return self._ready[place]
        found = list(self._sound(place, form))
        self._ready[place] = found
        self._ready_bytes += sum(block.packed.numbers.nbytes for block in found)
        while self._ready_bytes > BLOCKS_KEPT and len(self._ready) > 1:
            _, gone = self._ready.popitem(last=False)
            self._ready_bytes -= sum(block.packed.numbers.nbytes for block in gone)
        return found

    def _sound(self, place: tuple[int, int], form: Form) -> Iterable[Block]:
        longest = layout.HEADER.size + form.block_bytes(BLOCK_ROWS)
        for value in self._blocks.get(place, ()):
            data = self._pages.load(Far(value.page, min(value.size, longest)))
            try:
                layout.verify_bulk(data or b"", "block")
                held = layout.check_block(data or b"", *place, form)
            except CorruptionError:
                continue
            yield layout.view_block(data or b"", held, form)
