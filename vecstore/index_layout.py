"""What does every byte of an index mean? Its part of docs/layout.md, implemented here alone.

An index is a value a list in `lists`, the codes of blocks in the tail under a tier of their own in
`tiers`, and in `index` what was learned and which rows are in which list. An index of binary
vectors is a value a band in `lists`, and in `index` which blocks' rows are in them.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from vecstore.errors import CorruptionError
from vecstore.layout import (
    BAND,
    BITS,
    BLOCK_ROWS,
    BUNDLE,
    BYTE_BLOCK,
    CHECKSUM,
    CODE_BLOCK,
    HEADER,
    INT8,
    LIST,
    LIST_PART,
    LIST_PART_ROWS,
    PART_ROWS,
    TILE_ROWS,
    UINT32,
    Header,
    pack_bulk,
    unpack_header,
    verify_bulk,
)

NO_LIST = NO_ROW = 2**32 - 1
# What is in `index` once for each collection; the parts of the column of lists follow their name.
PLAN, MODEL, LISTED, ROWS = b"plan", b"model", b"listed", b"rows"
GROUP_BYTES = TILE_ROWS // 2
# Numbers of a fine code that lie together.
FINE_DIMS = 64
ARRAYS_ALIGNED = 64
# Bytes of a row are filled up to a multiple of so many.
BYTE_DIMS = 16


# Keys


def list_key(collection: int, number: int) -> bytes:
    """Key in `lists` of one list."""
    return collection.to_bytes(4, "big") + number.to_bytes(4, "big")


def index_key(collection: int, name: bytes) -> bytes:
    """Key in `index` of what is there once: PLAN, MODEL or LISTED."""
    return collection.to_bytes(4, "big") + name


def list_parts(collection: int) -> bytes:
    """What the keys in `index` of the lists of rows begin with."""
    return collection.to_bytes(4, "big") + ROWS


def list_part_key(collection: int, part: int) -> bytes:
    """Key in `index` of the lists of 960 rows."""
    return list_parts(collection) + part.to_bytes(4, "big")


# Lists of codes, and codes of blocks that are in no list


@dataclass(frozen=True, slots=True)
class CodeShape:
    """What the codes of a collection look like.

    Attributes:
        groups: Groups of 4 bits of a code.
        offsets: Whether rows have an offset of their own.
        dim: Numbers of a vector.
    """

    groups: int
    offsets: bool
    dim: int

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile: codes and scales of 32 rows, and offsets if any."""
        return self.groups * GROUP_BYTES + TILE_ROWS * 4 * (1 + self.offsets)

    @property
    def fine_bytes(self) -> int:
        """Bytes of a fine code with its scale, and its offset if any."""
        return 4 * (1 + self.offsets) + fine_bytes(self.dim)

    def bytes_of(self, kind: int, count: int) -> int:
        """Bytes of the codes of so many rows, in a LIST or a CODE_BLOCK."""
        names = TILE_ROWS * 4 if kind == LIST else 0
        return tiles_of(count) * (self.tile_bytes + names) + count * self.fine_bytes


def fine_bytes(dim: int) -> int:
    """Bytes of a fine code alone."""
    return -(-dim // FINE_DIMS) * FINE_DIMS // 2


def tiles_of(count: int) -> int:
    """Tiles of so many rows."""
    return -(-count // TILE_ROWS)


def pack_codes(
    collection: int,
    kind: int,
    first: int,
    tiles: NDArray[np.uint8],
    fine: NDArray[np.uint8],
    rows: NDArray[np.uint32],
    groups: int,
    page: int,
) -> bytearray:
    """Make the value of a list, or of the codes of a block.

    Args:
        collection: The collection's number.
        kind: LIST or CODE_BLOCK.
        first: The list's number, or the block's first row.
        tiles: uint8, the codes.
        fine: uint8, the fine codes.
        rows: uint32 (n,), whose codes they are; stored in a list only.
        groups: Groups of 4 bits of a code.
        page: The file's page size.
    """
    payload = tiles.tobytes()
    if kind == LIST:
        names = np.full(tiles_of(len(rows)) * TILE_ROWS, NO_ROW, "<u4")
        names[: len(rows)] = rows
        payload += names.tobytes()
    payload += fine.tobytes()
    return pack_bulk(Header(kind, BITS, len(rows), groups, first, 0, 0, collection), payload, page)


def check_codes(
    value: bytes | memoryview, collection: int, kind: int, first: int, shape: CodeShape
) -> int:
    """Return how many rows a list, or a block, has codes of, having checked the header.

    What passes here is safe to scan, but for the numbers of rows, which are to be compared.

    Raises:
        CorruptionError: The header is not that of this list or block.
    """
    name = f"list {first}" if kind == LIST else f"codes of row {first} on"
    where = f"{name} of collection {collection}"
    header = unpack_header(value, where)
    if (header.kind, header.dtype, header.width, header.first, header.collection) != (
        kind,
        BITS,
        shape.groups,
        first,
        collection,
    ):
        raise CorruptionError(f"{where}: the header belongs to another value: {header}")
    length = shape.bytes_of(kind, header.rows)
    if header.length != length or (kind == CODE_BLOCK and not 0 < header.rows <= BLOCK_ROWS):
        raise CorruptionError(f"{where}: {header.rows} rows in {header.length} bytes")
    return header.rows


def split_codes(
    value: bytes | memoryview, kind: int, count: int, shape: CodeShape
) -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint8]]:
    """View the parts of a value that `check_codes` has passed.

    Returns:
        Tiles, uint8 (tiles, bytes); the rows of a list, those that fill up the last tile too,
        uint32; and fine codes, uint8 (count, bytes).
    """
    tiles, at = tiles_of(count), HEADER.size
    codes = np.frombuffer(value, np.uint8, tiles * shape.tile_bytes, at)
    at += tiles * shape.tile_bytes
    names = np.frombuffer(value, "<u4", tiles * TILE_ROWS if kind == LIST else 0, at)
    at += names.nbytes
    fine = np.frombuffer(value, np.uint8, count * shape.fine_bytes, at)
    return codes.reshape(tiles, shape.tile_bytes), names, fine.reshape(count, shape.fine_bytes)


# Bytes of a block: columns, then the numbers as `model.Matrix` keeps those of its rows


def byte_width(dim: int) -> int:
    """Numbers of a row, filled up."""
    return -(-dim // BYTE_DIMS) * BYTE_DIMS


def bytes_of_block(dim: int) -> int:
    """Payload bytes of the bytes of a block."""
    return BLOCK_ROWS * (3 * 4 + byte_width(dim))


def pack_bytes(
    collection: int,
    block: int,
    held: int,
    columns: NDArray[np.float32],
    numbers: NDArray[np.int8],
    page: int,
) -> bytearray:
    """Make the value of the bytes of a block.

    Args:
        collection: The collection's number.
        block: The block's number.
        held: How many rows the block holds.
        columns: float32 (3, 64).
        numbers: int8 (64, dim).
        page: The file's page size.
    """
    width = byte_width(numbers.shape[1])
    filled = np.full((BLOCK_ROWS, width), 128, np.uint8)
    filled[:, : numbers.shape[1]] += numbers.view(np.uint8)
    laid = filled.reshape(BLOCK_ROWS // 16, 16, width // 4, 4).transpose(0, 2, 1, 3)
    payload = columns.astype("<f4", copy=False).tobytes() + laid.tobytes()
    first, dim = block * BLOCK_ROWS, numbers.shape[1]
    header = Header(BYTE_BLOCK, INT8, held, dim, first, 0, 0, collection)
    return pack_bulk(header, payload, page)


def check_bytes(value: bytes | memoryview, collection: int, block: int, dim: int) -> int:
    """Return how many rows of a block have bytes, having checked the header.

    Raises:
        CorruptionError: The header is not that of this block.
    """
    where = f"bytes of block {block} of collection {collection}"
    header = unpack_header(value, where)
    expected = (BYTE_BLOCK, INT8, dim, block * BLOCK_ROWS, collection, bytes_of_block(dim))
    if expected != (
        *(header.kind, header.dtype, header.width),
        *(header.first, header.collection, header.length),
    ):
        raise CorruptionError(f"{where}: the header belongs to another value: {header}")
    if not 0 < header.rows <= BLOCK_ROWS:
        raise CorruptionError(f"{where}: of {header.rows} rows")
    return header.rows


def unpack_bytes(
    value: bytes | memoryview, dim: int
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """The parts of a value that `check_bytes` has passed.

    Returns:
        A view of the columns, float32 (3, 64), and a copy of the numbers, int8 (64, dim).
    """
    width, at = byte_width(dim), HEADER.size
    columns = np.frombuffer(value, "<f4", 3 * BLOCK_ROWS, at).reshape(3, BLOCK_ROWS)
    laid = np.frombuffer(value, np.uint8, BLOCK_ROWS * width, at + columns.nbytes)
    blocks = laid.reshape(BLOCK_ROWS // 16, width // 4, 16, 4).transpose(0, 2, 1, 3)
    filled = blocks.reshape(BLOCK_ROWS, width)[:, :dim]
    return columns, (filled - np.uint8(128)).view(np.int8)


# Which list each row is in


def pack_list_part(collection: int, part: int, lists: NDArray[np.uint32], page: int) -> bytearray:
    """Make the value of the lists, uint32 (960,), that the rows of a part are in."""
    header = Header(LIST_PART, UINT32, LIST_PART_ROWS, 0, part * LIST_PART_ROWS, 0, 0, collection)
    return pack_bulk(header, lists.astype("<u4", copy=False).tobytes(), page)


def unpack_list_part(value: bytes | memoryview, collection: int, part: int) -> NDArray[np.uint32]:
    """View the lists of a part's rows; the checksum is verified, they are read to be changed.

    Returns:
        uint32 (960,); or (16,384,), of a part of the first files.

    Raises:
        CorruptionError: Not this part, or damaged.
    """
    where = f"index: lists of part {part} of collection {collection}"
    header = verify_bulk(value, where)
    rows = PART_ROWS if header.rows == PART_ROWS else LIST_PART_ROWS
    if (header.kind, header.first, header.length, header.collection) != (
        LIST_PART,
        part * rows,
        rows * 4,
        collection,
    ):
        raise CorruptionError(f"{where}: the header belongs to another value: {header}")
    return np.frombuffer(value, "<u4", rows, HEADER.size)


# Buckets of a band of binary vectors


def pack_band(
    collection: int,
    band: int,
    width: int,
    offsets: NDArray[np.uint32],
    rows: NDArray[np.uint32],
    page: int,
) -> bytearray:
    """Make the value of a band.

    Args:
        collection: The collection's number.
        band: Which one.
        width: How many bits it has.
        offsets: uint32 (2^width + 1,), where each bucket begins among the rows, and their end.
        rows: uint32 (n,), bucket by bucket.
        page: The file's page size.
    """
    payload = offsets.astype("<u4", copy=False).tobytes() + rows.astype("<u4", copy=False).tobytes()
    return pack_bulk(Header(BAND, UINT32, len(rows), width, band, 0, 0, collection), payload, page)


def band_bytes(width: int, count: int) -> int:
    """Bytes of the buckets of a band of so many bits and rows."""
    return 4 * ((1 << width) + 1 + count)


def check_band(
    value: bytes | memoryview, collection: int, band: int, width: int, count: int
) -> None:
    """Check the header of a band; what it says of rows is to be compared wherever it is used.

    Raises:
        CorruptionError: The header is not that of this band with so many bits and rows.
    """
    where = f"band {band} of collection {collection}"
    header = unpack_header(value, where)
    if (header.kind, header.dtype, header.width, header.first, header.collection) != (
        BAND,
        UINT32,
        width,
        band,
        collection,
    ):
        raise CorruptionError(f"{where}: the header belongs to another value: {header}")
    if (header.rows, header.length) != (count, band_bytes(width, count)):
        raise CorruptionError(
            f"{where}: {header.rows} rows in {header.length} bytes, {count} are expected"
        )


def split_band(
    value: bytes | memoryview, width: int, count: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """View the offsets, uint32 (2^width + 1,), and rows, uint32 (n,), of a checked band."""
    buckets = (1 << width) + 1
    offsets = np.frombuffer(value, "<u4", buckets, HEADER.size)
    return offsets, np.frombuffer(value, "<u4", count, HEADER.size + offsets.nbytes)


# Named arrays

# Of each its numpy dtype, its shape, and where it begins in the payload.
Arrays = dict[str, tuple[str, tuple[int, ...], int]]


def pack_arrays(
    values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], *, aligned: bool
) -> bytes:
    """Make a payload of plain values and named arrays: a directory in msgpack, then the arrays.

    Where it is `aligned`, so are the arrays, to be used where they are.
    """
    directory, body = [], bytearray()
    for name, array in arrays.items():
        directory.append([name, array.dtype.str, list(array.shape), len(body)])
        body += np.ascontiguousarray(array).tobytes()
        body += bytes(-len(body) % ARRAYS_ALIGNED)
    head = msgpack.packb([dict(values), directory])
    start = _start(len(head), aligned)
    filled: bytes = (CHECKSUM.pack(len(head)) + head).ljust(start, bytes(1))
    return filled + body


_DTYPE = re.compile(r"[<|][fiu][1248]")


def read_arrays(payload: bytes | memoryview, *, aligned: bool) -> tuple[dict[str, Any], Arrays]:
    """The plain values of such a payload, and where its arrays are.

    Raises:
        ValueError: It is no such payload, or an array ends behind it.
    """
    try:
        (size,) = CHECKSUM.unpack_from(payload)
        values, directory = msgpack.unpackb(payload[CHECKSUM.size : CHECKSUM.size + size])
        found: Arrays = {}
        for name, dtype, shape, at in directory:
            # numpy reads what no dtype is called as Python.
            if not (isinstance(dtype, str) and _DTYPE.fullmatch(dtype)):
                raise ValueError(f"{name!r:.40} is of the dtype {dtype!r:.40}")
            if not all(type(number) is int and number >= 0 for number in (*shape, at)):
                raise ValueError(f"{name!r:.40} has the shape {shape!r:.40} at {at!r:.40}")
            place = _start(size, aligned) + at
            # An error unless all of it is there.
            np.frombuffer(payload, dtype, math.prod(shape), place).reshape(shape)
            found[name] = dtype, tuple(shape), place
    except (TypeError, OverflowError, struct.error, msgpack.UnpackException) as error:
        raise ValueError(str(error)) from error
    return values, found


def _start(size: int, aligned: bool) -> int:
    """Where arrays begin behind a directory of so many bytes."""
    start = CHECKSUM.size + size
    return start + (-start % ARRAYS_ALIGNED if aligned else 0)


def pack_bundle(
    collection: int, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], page: int
) -> bytearray:
    """Make a value of named arrays and plain values."""
    payload = pack_arrays(values, arrays, aligned=False)
    return pack_bulk(Header(BUNDLE, BITS, len(arrays), 0, 0, 0, 0, collection), payload, page)


def unpack_bundle(
    value: bytes | memoryview, collection: int, where: str
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Copy the values and arrays of a bundle; the checksum is verified.

    Raises:
        CorruptionError: The value is damaged, or another's.
    """
    header = verify_bulk(value, where)
    if (header.kind, header.collection) != (BUNDLE, collection):
        raise CorruptionError(f"{where}: the header belongs to another value: {header}")
    payload = bytes(value[HEADER.size : HEADER.size + header.length])
    try:
        values, arrays = read_arrays(payload, aligned=False)
    except ValueError as error:
        raise CorruptionError(f"{where}: cannot be read: {error}") from error
    return values, {
        name: np.ndarray(shape, dtype, payload, at).copy()
        for name, (dtype, shape, at) in arrays.items()
    }
