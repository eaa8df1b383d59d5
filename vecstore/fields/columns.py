"""What lies under each path of some records? Metadata turned into sorted columns.

A column is all that a filter can ask about one path: which rows have the path at all, which have
null, False or True there, and which numbers, instants, strings and bytes they have, sorted, with
their rows. It holds what `values.leaves` gives. Rows are places in a range of 65,536 rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from vecstore.field_layout import Constant, Places, SortedKind, TermKind
from vecstore.rows import distinct
from vecstore.values import instant, leaves

Flags = NDArray[np.bool_]
Metadata = dict[str, Any] | None
# Of longer strings and bytes so much is kept, and a digest of all of it behind.
LONGEST, DIGEST_BYTES = 256, 16


@dataclass(frozen=True, slots=True)
class Sorted:
    """Values in ascending order.

    Attributes:
        values: float64 of numbers, int64 of instants, (n,). Whole numbers that float64 lacks are
            the nearest ones that it has.
        places: uint16 (n,), of each value.
    """

    values: NDArray[Any]
    places: Places

    def only(self, kept: Flags) -> Sorted:
        """Those of some places, bool (65536,)."""
        mine = kept[self.places]
        return Sorted(self.values[mine], self.places[mine])


@dataclass(frozen=True, slots=True)
class Terms:
    """Different strings, as bytes in ascending order.

    Attributes:
        texts: What is kept of each, see `kept`.
        starts: int64 (n + 1,), where the places of each begin, and the end.
        places: uint16, ascending and once for each string.
    """

    texts: list[bytes]
    starts: NDArray[np.int64]
    places: Places

    def only(self, kept: Flags) -> Terms:
        """Those of some places, bool (65536,)."""
        mine = kept[self.places]
        numbers = np.repeat(np.arange(len(self.texts)), np.diff(self.starts))[mine]
        sizes = np.bincount(numbers, minlength=len(self.texts))
        texts = list(itertools.compress(self.texts, (sizes > 0).tolist()))
        return Terms(texts, _starts(sizes[sizes > 0]), self.places[mine])


@dataclass(slots=True)
class Column:
    """What lies under one path; places of `exists` and `constants` are ascending and once."""

    exists: Places
    constants: dict[Constant, Places] = field(default_factory=dict)
    ordered: dict[SortedKind, Sorted] = field(default_factory=dict)
    terms: dict[TermKind, Terms] = field(default_factory=dict)

    def only(self, kept: Flags) -> Column:
        """What lies there in some places, bool (65536,)."""
        found = Column(self.exists[kept[self.exists]])
        for constant, places in self.constants.items():
            if len(mine := places[kept[places]]):
                found.constants[constant] = mine
        for kind, values in self.ordered.items():
            if len((left := values.only(kept)).places):
                found.ordered[kind] = left
        for name, terms in self.terms.items():
            if len((some := terms.only(kept)).places):
                found.terms[name] = some
        return found


def kept(text: bytes) -> bytes:
    """What is kept of a string: all of a short one; of others the beginning and a digest."""
    if len(text) <= LONGEST:
        return text
    return text[:LONGEST] + blake2b(text, digest_size=DIGEST_BYTES).digest()


def columns(places: Places, metadata: Sequence[Metadata]) -> dict[str, Column]:
    """Return the columns of some records, by path.

    Args:
        places: uint16 (n,), ascending.
        metadata: As it is stored, of each.
    """
    gathered: dict[str, _Gathered] = {}
    if not _gather_alike(places, metadata, gathered):
        for place, record in zip(places.tolist(), metadata, strict=True):
            if record:
                _gather(place, record, gathered)
    return {path: _column(found) for path, found in gathered.items()}


@dataclass(slots=True)
class _Gathered:
    """Values under one path and the place of each; places where there is the path alone."""

    values: list[Any] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    bare: list[int] = field(default_factory=list)


_SCALARS = frozenset((str, int, float, bool, type(None), datetime, bytes))


def _is_plain(key: str) -> bool:
    """Whether a key is a path of one segment that filters can name."""
    return bool(key) and "." not in key and key[0] != "$"


def _gather_alike(
    places: Places, metadata: Sequence[Metadata], gathered: dict[str, _Gathered]
) -> bool:
    """Gather from records with the same keys and nothing but scalars there; else return False."""
    first = metadata[0] if metadata else None
    if not first or not all(map(_is_plain, first)):
        return False
    keys = first.keys()
    if not all(record is not None and record.keys() == keys for record in metadata):
        return False
    columns = {key: [record[key] for record in metadata] for key in keys}  # type: ignore[index]
    if not all(_SCALARS.issuperset(map(type, values)) for values in columns.values()):
        return False
    every = places.tolist()
    for key, values in columns.items():
        gathered[key] = _Gathered(values, every)
    return True


def _gather(place: int, record: dict[str, Any], gathered: dict[str, _Gathered]) -> None:
    rest: dict[str, Any] = {}
    for key, value in record.items():
        if type(value) not in _SCALARS or not _is_plain(key):
            rest[key] = value
            continue
        found = gathered.get(key)
        if found is None:
            found = gathered[key] = _Gathered()
        found.values.append(value)
        found.places.append(place)
    for path, values in leaves(rest).items() if rest else ():
        found = gathered.setdefault(path, _Gathered())
        found.values += values
        found.places += [place] * len(values)
        if not values:
            found.bare.append(place)


def _column(gathered: _Gathered) -> Column:
    values, places = gathered.values, np.array(gathered.places, np.uint16)
    column = Column(_once(np.concatenate([places, np.array(gathered.bare, np.uint16)])))
    kinds = set(map(type, values))
    if kinds <= {int, float}:
        # The commonest kinds alone.
        if kinds:
            _put(column, float, values, places)
        return column
    if len(kinds) == 1:
        _put(column, kinds.pop(), values, places)
        return column
    numbers = [i for i, value in enumerate(values) if type(value) in (int, float)]
    if numbers:
        _put(column, float, [values[i] for i in numbers], places[numbers])
    for kind in kinds - {int, float}:
        some = [i for i, value in enumerate(values) if type(value) is kind]
        _put(column, kind, [values[i] for i in some], places[some])
    return column


def _put(column: Column, kind: type, values: list[Any], places: Places) -> None:
    if kind is float:
        column.ordered["number"] = _sorted(np.array(values, np.float64), places)
    elif kind is str:
        column.terms["string"] = _terms([value.encode() for value in values], places)
    elif kind is bool:
        true = np.array(values, bool)
        for name, found in (("false", places[~true]), ("true", places[true])):
            if len(found):
                column.constants[name] = _once(found)  # type: ignore[index]
    elif kind is datetime:
        instants = np.array([instant(value) for value in values], np.int64)
        column.ordered["datetime"] = _sorted(instants, places)
    elif kind is bytes:
        column.terms["bytes"] = _terms(values, places)
    else:
        column.constants["null"] = _once(places)


def _once(places: Places) -> Places:
    """Places in ascending order, each once."""
    return places if _ascend(places) else distinct(places)


def _sorted(values: NDArray[Any], places: Places) -> Sorted:
    order = np.argsort(values, kind="stable")
    return Sorted(values[order], places[order])


def _terms(texts: list[bytes], places: Places) -> Terms:
    if len(max(texts, key=len)) > LONGEST:
        texts = list(map(kept, texts))
    different = sorted(set(texts))
    numbers = dict(zip(different, range(len(different)), strict=True))
    codes = np.fromiter(map(numbers.__getitem__, texts), np.int64, len(texts))
    if not _ascend(places):
        # A list may hold a string twice.
        both = distinct(codes << 16 | places)
        codes, places = both >> 16, (both & 0xFFFF).astype(np.uint16)
    order = np.argsort(codes, kind="stable")
    starts = _starts(np.bincount(codes, minlength=len(different)))
    return Terms(different, starts, places[order])


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where things of some sizes begin that lie one behind the other, and the end."""
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts


def _ascend(places: Places) -> bool:
    return bool((places[1:] > places[:-1]).all())


# Merging


def merged(parts: Sequence[dict[str, Column]]) -> dict[str, Column]:
    """Return the columns of the rows of several, no row of which is in two."""
    by_path: dict[str, list[Column]] = {}
    for part in parts:
        for path, column in part.items():
            by_path.setdefault(path, []).append(column)
    return {path: _joined(some) for path, some in by_path.items()}


def _joined(some: Sequence[Column]) -> Column:
    found = Column(np.sort(np.concatenate([one.exists for one in some])))
    for constant in get_args(Constant):
        if sets := [one.constants[constant] for one in some if constant in one.constants]:
            found.constants[constant] = np.sort(np.concatenate(sets))
    for kind in get_args(SortedKind):
        if ordered := [one.ordered[kind] for one in some if kind in one.ordered]:
            values = np.concatenate([one.values for one in ordered])
            places = np.concatenate([one.places for one in ordered])
            order = np.lexsort((places, values))
            found.ordered[kind] = Sorted(values[order], places[order])
    for name in get_args(TermKind):
        if terms := [one.terms[name] for one in some if name in one.terms]:
            found.terms[name] = _joined_terms(terms)
    return found


def _joined_terms(some: Sequence[Terms]) -> Terms:
    texts = sorted(set().union(*(one.texts for one in some)))
    numbers = dict(zip(texts, range(len(texts)), strict=True))
    codes = np.concatenate(
        [np.repeat([numbers[text] for text in one.texts], np.diff(one.starts)) for one in some]
    )
    places = np.concatenate([one.places for one in some])
    order = np.argsort(codes << 16 | places, kind="stable")
    return Terms(texts, _starts(np.bincount(codes, minlength=len(texts))), places[order])
