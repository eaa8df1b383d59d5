"""What does every byte of a field index mean? The values of `fields`.

A segment holds the columns of some rows of one range of 65,536 rows, as named arrays: the number of
the column, in the order of the paths, a dot, and what it is. Nothing here touches a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vecstore import layout
from vecstore.errors import CorruptionError
from vecstore.index_layout import Arrays, pack_arrays, read_arrays
from vecstore.layout import BITS, HEADER, SEGMENT, SEGMENT_ROWS, Header, collection_key

RANGE_ROWS = 1 << 16
RANGE_WORDS = RANGE_ROWS // 64
# Rows have numbers of 32 bits.
RANGES = 2**32 // RANGE_ROWS
# So many places take as much room as a bit for each place of a range.
DENSE = RANGE_ROWS // 16
# Of sorted values the bits of all before every so-manieth are kept.
STEP = 4096

Words = NDArray[np.uint64]
Places = NDArray[np.uint16]
# What a column knows of values: null, False and True; kinds that are ordered by numbers, and kinds
# whose values are bytes.
Constant = Literal["null", "false", "true"]
SortedKind = Literal["number", "datetime"]
TermKind = Literal["string", "bytes"]
_DTYPES: dict[SortedKind, str] = {"number": "<f8", "datetime": "<i8"}


def segment_prefix(collection: int) -> bytes:
    """Beginning of the keys in `fields` of segments; their numbers follow."""
    return collection_key(collection) + b"s"


def segment_key(collection: int, number: int) -> bytes:
    """Key in `fields` of a segment."""
    return segment_prefix(collection) + number.to_bytes(4, "big")


def rows_key(collection: int, number: int) -> bytes:
    """Key in `fields` of the rows for which a segment speaks."""
    return collection_key(collection) + b"r" + number.to_bytes(4, "big")


def manifest_key(collection: int) -> bytes:
    """Key in `fields` of the manifest."""
    return collection_key(collection) + b"m"


@dataclass(frozen=True, slots=True)
class Listed:
    """A segment as the manifest names it.

    Attributes:
        number: No other segment of the collection has it; later it may be another one's.
        edition: Random, so that no other segment is taken for this one.
        range: Which 65,536 rows.
        rows: Of how many of them it has columns.
    """

    number: int
    edition: bytes
    range: int
    rows: int

    @property
    def words(self) -> slice:
        """The words of its range in a bitmap of all rows."""
        return slice(self.range * RANGE_WORDS, (self.range + 1) * RANGE_WORDS)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Which segments there are.

    Attributes:
        pending: About how many living rows no segment speaks for.
        segments: In the order of their numbers.
    """

    pending: int = 0
    segments: tuple[Listed, ...] = ()

    def pack(self) -> bytes:
        """Make the value of the manifest."""
        listed = [[one.number, one.edition, one.range, one.rows] for one in self.segments]
        return layout.pack_meta({"pending": self.pending, "segments": listed})

    @classmethod
    def unpack(cls, value: bytes | memoryview, where: str) -> Manifest:
        """Read the value of a manifest; CorruptionError if it is none."""
        values = layout.unpack_meta(value, where)
        try:
            found = cls(values["pending"], tuple(Listed(*one) for one in values["segments"]))
            counts = [found.pending]
            counts += [part for one in found.segments for part in (one.number, one.range, one.rows)]
            if not all(type(count) is int and 0 <= count < 2**32 for count in counts):
                raise ValueError(f"counts {counts[:8]}")
            if not all(one.range < RANGES for one in found.segments):
                raise ValueError("a range beyond all rows")
            numbers = [one.number for one in found.segments]
            if sorted(set(numbers)) != numbers:
                raise ValueError(f"segments {numbers[:8]}")
            if not all(type(one.edition) is bytes for one in found.segments):
                raise ValueError("an edition is not bytes")
        except (KeyError, ValueError, TypeError) as error:
            raise CorruptionError(f"{where}: cannot be read: {error!r}") from error
        return found


# Segments


@dataclass(frozen=True, slots=True)
class Directory:
    """What a segment holds.

    Attributes:
        paths: The number of each path's column.
        arrays: Its arrays; where they begin is told from the beginning of the value.
    """

    paths: dict[str, int]
    arrays: Arrays


def pack_segment(
    collection: int,
    listed: Listed,
    paths: Sequence[str],
    arrays: Mapping[str, NDArray[Any]],
    page: int,
) -> bytearray:
    """Make the value of a segment.

    Args:
        collection: The collection's number.
        listed: The segment's number, range and rows.
        paths: Of the columns, ascending.
        arrays: What docs/layout.md says, by name.
        page: The file's page size.
    """
    payload = pack_arrays({"edition": listed.edition, "paths": paths}, arrays, aligned=True)
    header = Header(SEGMENT, BITS, listed.rows, len(paths), listed.range, 0, 0, collection)
    return layout.pack_bulk(header, payload, page)


def read_segment(value: bytes | memoryview, collection: int, listed: Listed) -> Directory:
    """What a segment holds; whatever its arrays hold, they can be used. No checksum is verified.

    Raises:
        CorruptionError: It is another value, or its parts do not fit one another.
    """
    where = f"fields: segment {listed.number} of collection {collection}"
    header = layout.unpack_header(value, where)
    said = header.kind, header.rows, header.first, header.collection
    if said != (SEGMENT, listed.rows, listed.range, collection):
        raise CorruptionError(f"{where}: the header belongs to another value: {header}")
    try:
        payload = memoryview(value)[HEADER.size : HEADER.size + header.length]
        values, arrays = read_arrays(payload, aligned=True)
        paths = {path: number for number, path in enumerate(values["paths"])}
        if values["edition"] != listed.edition:
            raise ValueError(f"its edition is {values['edition']!r}, not {listed.edition!r}")
        if len(paths) != header.width or not all(type(path) is str for path in paths):
            raise ValueError(f"{len(paths)} paths, {header.width} are expected")
        _check(arrays, len(paths))
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptionError(f"{where}: cannot be read: {error!r}") from error
    placed = {name: (dtype, shape, HEADER.size + at) for name, (dtype, shape, at) in arrays.items()}
    return Directory(paths, placed)


_BITS, _PLACES = "<u8", "<u2"


def _check(arrays: Arrays, columns: int) -> None:
    """Raise ValueError or KeyError unless arrays have the dtypes and shapes that they must have."""
    left = dict(arrays)

    def take(name: str, dtype: str, *shape: int | None) -> tuple[int, ...]:
        found, size, _ = left.pop(name)
        fits = len(size) == len(shape) and all(
            wanted in (None, there) for wanted, there in zip(shape, size, strict=True)
        )
        if found != dtype or not fits:
            raise ValueError(f"{name} is {found} {size}")
        return size

    for number in range(columns):
        for name in ("exists", *get_args(Constant)):
            name = f"{number}.{name}"
            if name in left:
                dense = left[name][0] == _BITS
                take(name, _BITS, RANGE_WORDS) if dense else take(name, _PLACES, None)
        for kind, dtype in _DTYPES.items():
            if (name := f"{number}.{kind}") + ".values" in left:
                (count,) = take(f"{name}.values", dtype, None)
                take(f"{name}.places", _PLACES, count)
                if f"{name}.steps" in left:
                    take(f"{name}.steps", _BITS, count // STEP + 1, RANGE_WORDS)
        for term in get_args(TermKind):
            if (name := f"{number}.{term}") + ".texts" in left:
                take(f"{name}.texts", "|u1", None)
                (count,) = take(f"{name}.ends", "<u4", None)
                take(f"{name}.starts", "<u4", count + 1)
                take(f"{name}.places", _PLACES, None)
                if f"{name}.often" in left:
                    (some,) = take(f"{name}.often", "<u4", None)
                    take(f"{name}.bits", _BITS, some, RANGE_WORDS)
    if left:
        raise ValueError(f"arrays that belong to no column: {sorted(left)[:3]}")


def in_range(words: Words, which: int) -> Words:
    """A copy of what a bitmap of all rows has of one range, uint64 (RANGE_WORDS,)."""
    found = np.zeros(RANGE_WORDS, np.uint64)
    part = words[which * RANGE_WORDS : (which + 1) * RANGE_WORDS]
    found[: len(part)] = part
    return found


def bits_of(places: Places) -> Words:
    """A bit for each place, uint64 (RANGE_WORDS,)."""
    flags = np.zeros(RANGE_ROWS, bool)
    flags[places] = True
    return np.packbits(flags, bitorder="little").view(np.uint64)


def pack_rows(collection: int, listed: Listed, words: Words, page: int) -> bytearray:
    """Make the value of the rows for which a segment speaks, uint64 (RANGE_WORDS,)."""
    header = Header(SEGMENT_ROWS, BITS, 0, 0, listed.number, 0, 0, collection)
    return layout.pack_bulk(header, words.astype("<u8", copy=False).tobytes(), page)


def read_rows(value: bytes | memoryview, collection: int, listed: Listed) -> Words:
    """Copy the rows for which a segment speaks; CorruptionError if the value is damaged."""
    where = f"fields: rows of segment {listed.number} of collection {collection}"
    header = layout.verify_bulk(value, where)
    said = header.kind, header.first, header.length, header.collection
    if said != (SEGMENT_ROWS, listed.number, RANGE_WORDS * 8, collection):
        raise CorruptionError(f"{where}: the header belongs to another value: {header}")
    return np.frombuffer(value, "<u8", RANGE_WORDS, HEADER.size).copy()
