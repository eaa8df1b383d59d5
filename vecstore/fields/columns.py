"""What lies under each path of some records? Metadata turned into sorted columns.

A column is all that a filter can ask about one path: which rows have the path at all, which have
null, False or True there, and which numbers, instants, strings and bytes they have, sorted, with
their rows. It holds what `values.leaves` gives. Rows are places in a range of 65,536 rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from vecstore.field_layout import Constant, Places, SortedKind, TermKind
from vecstore.rows import distinct
from vecstore.values import EXPIRES, instant, leaves

Flags = NDArray[np.bool_]
Metadata = dict[str, Any] | None
# Of longer strings and bytes so much is kept, and a digest of all of it behind.
LONGEST, DIGEST_BYTES = 256, 16
# Stands in the metadata of a passage that is not the first of its record, and is no field's path.
PASSAGE = "$passage"


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
        return Terms(texts, starts_of(sizes[sizes > 0]), self.places[mine])


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


def columns(
    places: Places, metadata: Sequence[Metadata], indexes: Callable[[str], bool] | None = None
) -> dict[str, Column]:
    """Return the columns of some records, by path.

    Args:
        places: uint16 (n,), ascending.
        metadata: As it is stored, of each; of passages with PASSAGE.
        indexes: Which paths get a column; all if it is None.
    """
    gathered: dict[str, _Gathered] = {}
    for key, values, where in _by_key(places, metadata):
        kinds = set(map(type, values))
        if not _is_path(key) or not _SCALARS.issuperset(kinds - {list}):
            _spread(key, values, where, gathered)
        elif list not in kinds:
            if not has_column(key, indexes):
                continue
            gathered.setdefault(key, _Gathered()).add(values, where)
        else:
            _flatten(key, values, where, gathered)
    return _columns(gathered, indexes)


def by_leaves(
    places: Places, metadata: Sequence[Metadata], indexes: Callable[[str], bool]
) -> dict[str, Column]:
    """As `columns`, record by record: what `values.leaves` says, and nothing else."""
    gathered: dict[str, _Gathered] = {}
    for place, record in zip(places.tolist(), metadata, strict=True):
        held = dict(record or {})
        if held.pop(PASSAGE, False):
            gathered.setdefault(PASSAGE, _Gathered()).add([True], [place])
        for key, value in held.items():
            _spread(key, [value], [place], gathered)
    return _columns(gathered, indexes)


def _columns(
    gathered: dict[str, _Gathered], indexes: Callable[[str], bool] | None
) -> dict[str, Column]:
    return {path: _column(found) for path, found in gathered.items() if has_column(path, indexes)}


def has_column(path: str, indexes: Callable[[str], bool] | None) -> bool:
    """Whether a path gets a column; all do if `indexes` is None."""
    return indexes is None or path in (PASSAGE, EXPIRES) or indexes(path)


@dataclass(slots=True)
class _Gathered:
    """Values under one path and the place of each; places where there is the path alone."""

    values: list[Any] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    bare: list[int] = field(default_factory=list)

    def add(self, values: list[Any], places: list[int]) -> None:
        """Take over some values."""
        self.values, self.places = self.values + values, self.places + places


_SCALARS = frozenset((str, int, float, bool, type(None), datetime, bytes))


def _by_key(
    places: Places, metadata: Sequence[Metadata]
) -> Iterator[tuple[str, list[Any], list[int]]]:
    """What lies under each key of the records themselves, and the places of these records."""
    first, every = (metadata[0] if len(metadata) else None) or {}, places.tolist()
    alike = first.keys()
    if all(record is not None and record.keys() == alike for record in metadata):
        for key in alike:
            yield key, [record[key] for record in metadata], every  # type: ignore[index]
        return
    found: dict[str, tuple[list[Any], list[int]]] = {}
    for place, record in zip(every, metadata, strict=True):
        for key, value in (record or {}).items():
            values, where = found.setdefault(key, ([], []))
            values.append(value)
            where.append(place)
    for key, (values, where) in found.items():
        yield key, values, where


def _is_path(key: str) -> bool:
    """Whether a key is a path of one segment that filters can name."""
    return bool(key) and "." not in key and (key[0] != "$" or key in (PASSAGE, EXPIRES))


def _flatten(
    key: str, values: list[Any], places: list[int], gathered: dict[str, _Gathered]
) -> None:
    """Gather scalars and lists of scalars."""
    listed = [value if type(value) is list else (value,) for value in values]
    flat = list(itertools.chain.from_iterable(listed))
    if not _SCALARS.issuperset(map(type, flat)):
        _spread(key, values, places, gathered)
        return
    sizes = list(map(len, listed))
    found = gathered.setdefault(key, _Gathered())
    found.add(flat, np.repeat(places, sizes).tolist())
    found.bare += [place for place, size in zip(places, sizes, strict=True) if not size]


def _spread(key: str, values: list[Any], places: list[int], gathered: dict[str, _Gathered]) -> None:
    """Gather what lies under a key and below it, record by record."""
    for value, place in zip(values, places, strict=True):
        for path, some in leaves({key: value}).items():
            found = gathered.setdefault(path, _Gathered())
            found.values += some
            found.places += [place] * len(some)
            if not some:
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
        assert kind is type(None), f"{kind} is no type of stored metadata"
        column.constants["null"] = _once(places)


def _once(places: Places) -> Places:
    """Places in ascending order, each once."""
    return places if _ascend(places) else distinct(places)


def _sorted(values: NDArray[Any], places: Places) -> Sorted:
    order = np.argsort(values, kind="stable") if rising(places) else np.lexsort((places, values))
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
    starts = starts_of(np.bincount(codes, minlength=len(different)))
    return Terms(different, starts, places[order])


def starts_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where things of some sizes begin that lie one behind the other, and the end."""
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts


def _ascend(places: Places) -> bool:
    return bool((places[1:] > places[:-1]).all())


def rising(numbers: NDArray[Any]) -> bool:
    """Whether no number is less than the one before."""
    return bool((numbers[1:] >= numbers[:-1]).all())


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
    return Terms(texts, starts_of(np.bincount(codes, minlength=len(texts))), places[order])
