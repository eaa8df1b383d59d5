"""Which records have which value of a field? Values in order, and the rows that have each.

Values come from columns where these hold them whole; where they do not, records are read: those of
rows that no segment speaks for, of long strings, and of whole numbers that float64 lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore import records, rows
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.field_layout import RANGE_ROWS, Constant, Places, SortedKind, TermKind
from vecstore.fields import columns, index, segments
from vecstore.fields.conditions import GAPS
from vecstore.fields.reading import placed
from vecstore.fields.segments import Segment
from vecstore.filters import values_of
from vecstore.layout import State
from vecstore.record_layout import Part
from vecstore.rows import Rows, Words
from vecstore.store import Reader
from vecstore.values import ID, TEXT, Kind, comparable, moment

# Values of different kinds stand in this order.
KINDS: tuple[Kind, ...] = ("null", "bool", "number", "datetime", "string", "bytes")
_CONSTANTS: dict[Constant, tuple[Kind, Any]] = {
    "null": ("null", None),
    "false": ("bool", False),
    "true": ("bool", True),
}


@dataclass(frozen=True, slots=True)
class Groups:
    """The values of a field, and the rows that have each.

    Attributes:
        values: In order: by kind, and ascending within one; numbers that are equal are one value.
        starts: intp (n + 1,), where the rows of each begin, and the end.
        rows: intp, ascending and once for each value.
    """

    values: list[Any]
    starts: NDArray[np.intp]
    rows: Rows

    @property
    def counts(self) -> NDArray[np.intp]:
        """How many rows have each value."""
        return np.diff(self.starts)

    def ranked(self, *, descending: bool) -> tuple[Rows, Rows]:
        """Rows with a value, each once, and the number of its first, or last, value in that order.

        The numbers ascend; rows with one number ascend.
        """
        which = np.repeat(np.arange(len(self.values)), self.counts)
        numbers, members = (-which, self.rows) if descending else (which, self.rows)
        order = np.lexsort((numbers, members))
        first = np.ones(len(order), bool)
        first[1:] = members[order][1:] != members[order][:-1]
        kept = order[first]
        kept = kept[np.lexsort((members[kept], numbers[kept]))]
        return members[kept], numbers[kept]


def groups(reader: Reader, entry: Entry, state: State, path: str, allowed: Words) -> Groups:
    """Group living rows by the values of a field; a row with several values is in several groups.

    Args:
        reader: Where to read.
        entry: The collection.
        state: Its counters.
        path: The field, or $id or $text.
        allowed: uint64 (blocks,), the rows; those of passages have what their record has.
    """
    found, unknown = _Found(), allowed
    if path not in (ID, TEXT) and columns.has_column(path, entry.spec.indexes):
        made = index.load(reader, entry.number, state)
        for segment in [] if made is None else made.segments(reader):
            unknown = unknown.copy() if unknown is allowed else unknown
            left = unknown[segment.listed.words]
            own = segment.rows[: len(left)] & left
            left &= ~own
            with segments.reading(segment, entry.number):
                left |= found.add(segment, path, own)
    get = values_of(path)
    for row, held in placed(reader, entry, state, unknown):
        if isinstance(held, Part):
            held = records.read(reader, entry.number, held.parent)
        for pair in {comparable(value) for value in get(held)}:
            if pair is not None:
                found.add_one(row, pair)
    try:
        return found.groups()
    except OverflowError as error:
        raise CorruptionError(
            f"fields: a datetime of collection {entry.number}: {error}"
        ) from error


class _Found:
    """Values with their rows, gathered by kind."""

    def __init__(self) -> None:
        self._constants: dict[tuple[Kind, Any], list[Rows]] = {}
        self._ordered: dict[SortedKind, list[tuple[NDArray[Any], Rows]]] = {}
        self._terms: dict[TermKind, list[tuple[list[bytes], Rows, Rows]]] = {}
        self._single: dict[tuple[Kind, Any], list[int]] = {}

    def add(self, segment: Segment, path: str, own: Words) -> Words:
        """Add what a segment says of some rows; return those of which it does not say all."""
        column, vague = segment.column(path), np.zeros(len(own), np.uint64)
        if column is None:
            return vague
        kept = np.zeros(RANGE_ROWS, bool)
        kept[: len(own) * 64] = rows.flags(own)
        start, flags = segment.listed.range * RANGE_ROWS, np.zeros(RANGE_ROWS, bool)

        def mine(places: Places) -> Rows:
            return start + places[kept[places]].astype(np.intp)

        whole = segments.whole(column)
        for constant, places in whole.constants.items():
            self._constants.setdefault(_CONSTANTS[constant], []).append(mine(places))
        for kind, held in whole.ordered.items():
            some = kept[held.places]
            if kind == "number":
                large = np.abs(held.values) >= GAPS
                flags[held.places[large]] = True
                some &= ~large
            pair = held.values[some], start + held.places[some].astype(np.intp)
            self._ordered.setdefault(kind, []).append(pair)
        for name, terms in whole.terms.items():
            numbers = np.repeat(np.arange(len(terms.texts)), np.diff(terms.starts))
            cut = np.fromiter((len(text) > columns.LONGEST for text in terms.texts), bool)
            some = kept[terms.places] & ~cut[numbers]
            flags[terms.places[cut[numbers]]] = True
            inside = start + terms.places[some].astype(np.intp)
            self._terms.setdefault(name, []).append((terms.texts, numbers[some], inside))
        bits = np.packbits(flags & kept, bitorder="little").view(np.uint64)
        vague[:] = bits[: len(own)]
        return vague

    def add_one(self, row: int, pair: tuple[Kind, Any]) -> None:
        """Add one value of one row."""
        self._single.setdefault(pair, []).append(row)

    def groups(self) -> Groups:
        """All that was added."""
        values, numbers, members = list[Any](), list[Rows](), list[Rows]()
        for kind in KINDS:
            single = {value: found for (of, value), found in self._single.items() if of == kind}
            for known, which, inside in self._of(kind, single):
                numbers.append(which + len(values))
                members.append(inside)
                values += known
        return _grouped(values, numbers, members)

    def _of(
        self, kind: Kind, single: dict[Any, list[int]]
    ) -> Iterator[tuple[list[Any], Rows, Rows]]:
        """Values of a kind in order, the number of each row's, and the rows; once at most."""
        if kind in ("null", "bool"):
            for constant in dict.fromkeys(_CONSTANTS.values()):
                if constant[0] == kind:
                    parts = self._constants.get(constant, [])
                    parts = [*parts, np.array(single.get(constant[1], []), np.intp)]
                    inside = np.concatenate(parts)
                    if len(inside):
                        yield [constant[1]], np.zeros(len(inside), np.intp), inside
        elif kind in ("number", "datetime"):
            yield _sorted(self._ordered.get(kind, []), single, kind)
        elif kind in ("string", "bytes"):
            yield _named(self._terms.get(kind, []), single, kind)


def _sorted(
    parts: list[tuple[NDArray[Any], Rows]], single: dict[Any, list[int]], kind: Kind
) -> tuple[list[Any], Rows, Rows]:
    """Numbers or instants, those of columns and others."""
    known = np.concatenate([values for values, _ in parts]) if parts else np.zeros(0)
    inside = np.concatenate([part for _, part in parts]) if parts else np.zeros(0, np.intp)
    different, places = np.unique(known, return_inverse=True)
    held = [_whole(value) for value in different.tolist()]
    together = sorted({*held, *single})
    number_of = {value: number for number, value in enumerate(together)}
    renumbered = np.array([number_of[value] for value in held], np.intp)
    rest = [(number_of[value], row) for value, found in single.items() for row in found]
    more = np.array(rest, np.intp).reshape(-1, 2)
    numbers = np.concatenate([renumbered[places], more[:, 0]])
    if kind == "datetime":
        together = list(map(moment, together))
    else:
        # A float that is a whole number is one.
        together = [_whole(value) for value in together]
    return together, numbers, np.concatenate([inside, more[:, 1]])


def _whole(value: float) -> float:
    """A number as int if it is whole, and float64 has all whole numbers up to it."""
    return int(value) if abs(value) < GAPS and value == int(value) else value


def _named(
    parts: list[tuple[list[bytes], Rows, Rows]], single: dict[Any, list[int]], kind: Kind
) -> tuple[list[Any], Rows, Rows]:
    """Strings or bytes, those of columns and others."""
    encode = kind == "string"
    others = {(value.encode() if encode else value): found for value, found in single.items()}
    together = sorted(set(others).union(*(texts for texts, _, _ in parts)))
    number_of = {text: number for number, text in enumerate(together)}
    numbers, members = list[Rows](), list[Rows]()
    for texts, which, inside in parts:
        numbers.append(np.array([number_of[text] for text in texts], np.intp)[which])
        members.append(inside)
    rest = [(number_of[text], row) for text, found in others.items() for row in found]
    more = np.array(rest, np.intp).reshape(-1, 2)
    values = [text.decode(errors="replace") if encode else text for text in together]
    return values, np.concatenate([*numbers, more[:, 0]]), np.concatenate([*members, more[:, 1]])


def _grouped(values: list[Any], numbers: list[Rows], members: list[Rows]) -> Groups:
    """Groups without those that have no row."""
    none: Rows = np.zeros(0, np.intp)
    which, inside = np.concatenate([none, *numbers]), np.concatenate([none, *members])
    order = np.lexsort((inside, which))
    which, inside = which[order], inside[order]
    # A list may hold a value twice.
    first = np.ones(len(which), bool)
    first[1:] = (which[1:] != which[:-1]) | (inside[1:] != inside[:-1])
    sizes = np.bincount(which[first], minlength=len(values))
    there = np.flatnonzero(sizes)
    starts = columns.starts_of(sizes[there])
    return Groups([values[number] for number in there.tolist()], starts, inside[first])
