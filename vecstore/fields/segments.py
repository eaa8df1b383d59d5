"""What does a field index hold, and for which rows? Its segments, as they lie in the file.

A segment holds columns of the rows of one range of 65,536 rows that it speaks for: all that it was
made for, less those whose records changed since. No living row is in two. Those that are in none
are pending: their records have to be read.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, overload

import numpy as np
from numpy.typing import NDArray

from vecstore.errors import CorruptionError
from vecstore.field_layout import (
    DENSE,
    RANGE_WORDS,
    STEP,
    Constant,
    Directory,
    Listed,
    Places,
    SortedKind,
    TermKind,
    Words,
    bits_of,
)
from vecstore.fields.columns import DIGEST_BYTES, LONGEST, Column, Sorted, Terms, rising
from vecstore.rows import count, distinct, flags

Numbers = NDArray[np.intp]

# Fewer places are set one by one.
FEW = 1000
# So many terms of a column are remembered.
REMEMBERED = 256


class ColumnView:
    """The column of one path in a segment."""

    __slots__ = ("_known", "_number", "_segment")

    def __init__(self, segment: Segment, number: int) -> None:
        self._segment, self._number = segment, number
        self._known: dict[str, Any] = {}

    @property
    def rows(self) -> Words:
        """The rows that the segment speaks for."""
        return self._segment.rows

    def find(self, name: str) -> NDArray[Any] | None:
        """One of its arrays, see docs/layout.md; None if it has none of this name."""
        if name not in self._known:
            self._known[name] = self._segment.find(f"{self._number}.{name}")
        found: NDArray[Any] | None = self._known[name]
        return found

    def array(self, name: str) -> NDArray[Any]:
        """One of its arrays that must be there."""
        found = self.find(name)
        return self._segment.array(f"{self._number}.{name}") if found is None else found

    def terms(self, kind: TermKind) -> TermsView | None:
        """The different strings of a kind, if there are any."""
        if kind not in self._known:
            ends = self.find(f"{kind}.ends")
            view = None if ends is None else TermsView(self.array(f"{kind}.texts"), ends)
            self._known[kind] = view
        found: TermsView | None = self._known[kind]
        return found

    def add_set(self, name: str, words: Words) -> None:
        """Set the bits of the rows that have a constant."""
        found = self.find(name)
        if found is not None:
            add_places(words, found)

    def add_existing(self, words: Words) -> None:
        """Set the bits of the rows that have the path."""
        found = self.find("exists")
        # All have it if it is not said which.
        add_places(words, self._segment.rows if found is None else found)

    def add_sorted(self, kind: SortedKind, start: int, stop: int, words: Words) -> None:
        """Set the bits of the rows of the sorted values from one number to another."""
        places, steps = self.array(f"{kind}.places"), self.find(f"{kind}.steps")
        if steps is None or stop - start < 2 * STEP:
            add_places(words, places[start:stop])
            return
        low, high = (min(round(end / STEP), len(steps) - 1) for end in (start, stop))
        found = steps[high] ^ steps[low]
        for end, step in ((start, low * STEP), (stop, high * STEP)):
            # A row has one value: what the steps have too much, or lack, is turned over.
            found ^= bits_of(places[min(end, step) : max(end, step)])
        words |= found

    def add_many_sorted(
        self, kind: SortedKind, starts: Numbers, stops: Numbers, words: Words
    ) -> None:
        """As `add_sorted`, for many runs of values."""
        if len(starts) == 1:
            self.add_sorted(kind, int(starts[0]), int(stops[0]), words)
        elif len(starts):
            places = self.array(f"{kind}.places")
            add_places(words, places[within(starts, stops, len(places))])

    def add_terms(self, kind: TermKind, first: int, last: int, words: Words) -> None:
        """Set the bits of the rows of the terms from one number to another."""
        starts, often = self.array(f"{kind}.starts"), self.find(f"{kind}.often")
        add_places(words, self.array(f"{kind}.places")[int(starts[first]) : int(starts[last])])
        if often is not None:
            bits = self.array(f"{kind}.bits")
            for number in np.flatnonzero((often >= first) & (often < last)).tolist():
                words |= bits[number]

    def add_many_terms(self, kind: TermKind, numbers: Numbers, words: Words) -> None:
        """As `add_terms`, for many terms."""
        if len(numbers) == 1:
            self.add_terms(kind, int(numbers[0]), int(numbers[0]) + 1, words)
            return
        starts, often = self.array(f"{kind}.starts"), self.find(f"{kind}.often")
        places = self.array(f"{kind}.places")
        add_places(words, places[within(starts[numbers], starts[numbers + 1], len(places))])
        if often is not None:
            bits = self.array(f"{kind}.bits")
            for number in np.flatnonzero(np.isin(often, numbers)).tolist():
                words |= bits[number]


def within(starts: NDArray[Any], stops: NDArray[Any], count: int) -> Numbers:
    """All numbers of some runs below `count`, each from its start to before its stop.

    Raises:
        CorruptionError: Runs overlap, or end before they start or beyond `count`.
    """
    first = starts.astype(np.intp)
    sizes = stops.astype(np.intp) - first
    if len(sizes) and (sizes.min() < 0 or stops.max() > count or sizes.sum() > count):
        raise CorruptionError("fields: a segment's places are not where its values say")
    found: Numbers = np.repeat(first - np.cumsum(sizes) + sizes, sizes)
    found += np.arange(len(found))
    return found


class TermsView(Sequence[bytes]):
    """The different strings of a column, as `columns.kept` leaves them, ascending."""

    def __init__(self, texts: NDArray[np.uint8], ends: NDArray[np.uint32]) -> None:
        self._texts, self._ends = memoryview(texts), ends  # type: ignore[arg-type]
        # One of its numbers is asked for in a third of the time that numpy takes.
        self._each = memoryview(ends)  # type: ignore[arg-type]
        self._numbers: dict[bytes, int] | None = None

    def numbers(self, wanted: Sequence[bytes]) -> Numbers:
        """The numbers of those of some strings that are there, in the order of these strings."""
        known, count = self._numbers, len(self)
        if known is None and (count <= REMEMBERED or len(wanted) * count.bit_length() > count):
            known = {text: number for number, text in enumerate(self)}
            if count <= REMEMBERED:
                self._numbers = known
        if known is not None:
            found = [known[text] for text in wanted if text in known]
        else:
            places = ((bisect_left(self, text), text) for text in wanted)
            found = [at for at, text in places if at < count and self[at] == text]
        return np.array(found, np.intp)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> bytes: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...

    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        start = self._each[place - 1] if place else 0
        return bytes(self._texts[start : self._each[place]])

    def __iter__(self) -> Iterator[bytes]:
        texts, ends = bytes(self._texts), self._ends.tolist()
        return (texts[start:end] for start, end in zip([0, *ends], ends, strict=False))

    def containing(self, part: bytes) -> tuple[list[int], list[int]]:
        """The numbers of the strings that have a part, and of those that may: these were cut."""
        texts, ends = bytes(self._texts), self._ends
        if not part:
            return list(range(len(ends))), []
        cut = np.diff(ends, prepend=np.uint32(0)) > LONGEST
        found = list[int]()
        at = texts.find(part)
        while at >= 0 and len(found) < len(ends):
            number = int(np.searchsorted(ends, at, "right"))
            if number == len(ends):
                break
            end = int(ends[number]) - (DIGEST_BYTES if cut[number] else 0)
            if at + len(part) <= end:
                found.append(number)
            # What begins later in this string, and did not fit, fits no better.
            at = texts.find(part, int(ends[number]))
        maybe = set(np.flatnonzero(cut).tolist()).difference(found)
        return found, sorted(maybe)


def add_places(words: Words, places: NDArray[Any]) -> None:
    """Set the bits of a set of rows, given by places or by bits; uint64 (RANGE_WORDS,)."""
    if places.dtype == np.uint64:
        words |= places
    elif len(places) < FEW:
        bits = np.uint64(1) << (places & 63).astype(np.uint64)
        np.bitwise_or.at(words, places >> 6, bits)
    else:
        words |= bits_of(places)


class Segment:
    """A segment; what it views lives no longer than its reader.

    Args:
        listed: Its number, range and rows.
        directory: What it holds, and where.
        value: All its bytes.
        rows: uint64 (RANGE_WORDS,), those that it speaks for.
    """

    def __init__(self, listed: Listed, directory: Directory, value: Any, rows: Words) -> None:
        self.listed, self.rows = listed, rows
        self._directory, self._value = directory, value
        # Otherwise it holds columns of rows too that it no longer speaks for.
        self.whole = count(rows) == listed.rows
        self._columns: dict[str, ColumnView] = {}

    @property
    def paths(self) -> dict[str, int]:
        """The number of each path's column."""
        return self._directory.paths

    def column(self, path: str) -> ColumnView | None:
        """The column of a path, if there is one."""
        found = self._columns.get(path)
        if found is None and (number := self._directory.paths.get(path)) is not None:
            found = self._columns[path] = ColumnView(self, number)
        return found

    def find(self, name: str) -> NDArray[Any] | None:
        """One of the arrays; None if there is none of this name."""
        place = self._directory.arrays.get(name)
        if place is None:
            return None
        dtype, shape, at = place
        try:
            return np.ndarray(shape, dtype, self._value, at)
        except (TypeError, ValueError) as error:
            raise CorruptionError(f"fields: segment {self.listed.number}: {error}") from error

    def array(self, name: str) -> NDArray[Any]:
        """One of the arrays; CorruptionError if there is none of this name."""
        found = self.find(name)
        if found is None:
            raise CorruptionError(f"fields: segment {self.listed.number} has no array {name!r}")
        return found


# Writing


@contextlib.contextmanager
def reading(segment: Segment, collection: int) -> Iterator[None]:
    """Raise CorruptionError where what is read of a segment makes no sense.

    Checksums of segments are not verified on each read.
    """
    try:
        yield
    except (ValueError, IndexError) as error:
        where = f"fields: segment {segment.listed.number} of collection {collection}"
        raise CorruptionError(f"{where}: cannot be read: {error}") from error


def arrays_of(columns: Mapping[str, Column], rows: int) -> dict[str, NDArray[Any]]:
    """The arrays of columns, in the order of their paths, of so many rows."""
    return {
        f"{number}.{name}": part
        for number, path in enumerate(sorted(columns))
        for name, part in _arrays(columns[path], rows)
    }


def _arrays(column: Column, rows: int) -> Iterator[tuple[str, NDArray[Any]]]:
    if len(column.exists) < rows:
        yield "exists", _set(column.exists)
    for constant, places in column.constants.items():
        yield constant, _set(places)
    for kind, found in column.ordered.items():
        yield f"{kind}.values", found.values
        yield f"{kind}.places", found.places
        if len(found.places) >= 2 * STEP and len(found.places) == len(distinct(found.places)):
            yield f"{kind}.steps", _steps(found.places)
    for name, terms in column.terms.items():
        sizes = np.diff(terms.starts)
        often = np.flatnonzero(sizes > DENSE)
        lengths = np.fromiter(map(len, terms.texts), np.uint32, len(terms.texts))
        yield f"{name}.texts", np.frombuffer(b"".join(terms.texts), np.uint8)
        yield f"{name}.ends", np.cumsum(lengths, dtype=np.uint32)
        if len(often):
            parts = np.split(terms.places, terms.starts[1:-1])
            yield f"{name}.often", often.astype(np.uint32)
            yield f"{name}.bits", np.stack([bits_of(parts[number]) for number in often.tolist()])
            sizes[often] = 0
            for number in often.tolist():
                parts[number] = parts[number][:0]
            terms = Terms(
                terms.texts, np.concatenate([[0], np.cumsum(sizes)]), np.concatenate(parts)
            )
        yield f"{name}.starts", terms.starts.astype(np.uint32)
        yield f"{name}.places", terms.places


def _set(places: Places) -> NDArray[Any]:
    return bits_of(places) if len(places) > DENSE else places


def _steps(places: Places) -> Words:
    """Of sorted values the bits of all before the first, the STEP-th, and so on."""
    steps = np.zeros((len(places) // STEP + 1, RANGE_WORDS), np.uint64)
    for number in range(1, len(steps)):
        part = places[(number - 1) * STEP : number * STEP]
        steps[number] = steps[number - 1] | bits_of(part)
    return steps


# Reading whole


def columns_of(segment: Segment, living: Words) -> dict[str, Column]:
    """The columns of a segment without what is of other rows than some, uint64 (RANGE_WORDS,)."""
    kept = flags(living)
    found = {}
    for path in segment.paths:
        view = segment.column(path)
        assert view is not None
        column = whole(view).only(kept)
        if len(column.exists):
            found[path] = column
    return found


def whole(view: ColumnView) -> Column:
    """A column as it is before it is packed; its arrays may be views."""
    exists = view.find("exists")
    column = Column(_places(view.rows if exists is None else exists))
    for constant in get_args(Constant):
        found = view.find(constant)
        if found is not None:
            column.constants[constant] = _places(found)
    for kind in get_args(SortedKind):
        values = view.find(f"{kind}.values")
        if values is not None:
            if not (np.isfinite(values).all() and rising(values)):
                raise CorruptionError(f"fields: the {kind}s of a segment are not in order")
            column.ordered[kind] = Sorted(values, view.array(f"{kind}.places"))
    for name in get_args(TermKind):
        terms = view.terms(name)
        if terms is not None:
            column.terms[name] = _terms(view, name, terms)
    return column


def _check_terms(view: ColumnView, name: TermKind) -> None:
    """Raise CorruptionError where arrays of strings contradict one another.

    Checksums are not verified on each read, and numbers that lie could ask for any memory.
    """
    starts, ends = (view.array(f"{name}.{part}").astype(np.int64) for part in ("starts", "ends"))
    texts, places = view.array(f"{name}.texts"), view.array(f"{name}.places")
    sound = rising(starts) and starts[0] == 0 and starts[-1] == len(places)
    sound = sound and rising(ends) and (not len(ends) or ends[-1] == len(texts))
    often = view.find(f"{name}.often")
    if often is not None:
        sound = sound and bool((often < len(ends)).all()) and bool((often[1:] > often[:-1]).all())
    if not sound:
        raise CorruptionError(f"fields: the {name}s of a segment are not where it says")


def _terms(view: ColumnView, name: TermKind, terms: TermsView) -> Terms:
    _check_terms(view, name)
    starts = view.array(f"{name}.starts").astype(np.int64)
    places, often = view.array(f"{name}.places"), view.find(f"{name}.often")
    if often is not None:
        parts, bits = np.split(places, starts[1:-1]), view.array(f"{name}.bits")
        for number, words in zip(often.tolist(), bits, strict=True):
            parts[number] = _places(words)
        places = np.concatenate(parts)
        starts = np.cumsum([0, *map(len, parts)])
    return Terms(list(terms), starts, places)


def _places(found: NDArray[Any]) -> Places:
    """A set of rows as places."""
    if found.dtype != np.uint64:
        return found
    return np.flatnonzero(flags(found)).astype(np.uint16)
