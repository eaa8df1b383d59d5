"""What does every byte on disk mean? The only implementation of docs/layout.md.

Those of records are in `record_layout.py`, those of an index in `index_layout.py`; the kinds of all
bulk values, and the tiers, are here.
Keys are big-endian so that they sort, payloads little-endian so that numpy reads them in place.
Nothing here touches a file: values become bytes and bytes become values.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from vecstore.errors import CorruptionError
from vecstore.spec import MIN_INT_ID, CollectionSpec, Id

MAGIC = "vecstore"
# The newest that is known here. Files without passages are of the oldest that can hold them.
FORMAT, PLAIN_FORMAT = 2, 1
OLDEST_READABLE = 1

DATABASES = ("meta", "ids", "records", "tiers", "lists", "index", "fields", "live", "digests")
# Files of the first releases lack it.
OPTIONAL = ("digests",)

BLOCK_ROWS = 64
TILE_ROWS = 32
PART_ROWS = 16_384
PART_BYTES = PART_ROWS // 8
# Their lists take one page of 4,096 bytes: longer values seldom find free pages in a row.
LIST_PART_ROWS = 960
MAX_ROWS = 2**32 - BLOCK_ROWS
# More than can ever be given out; rows of binary vectors are ranked by words with an order inside.
MAX_ORDERS = 2**50

HEADER = struct.Struct("<4sBBHIIIQII12x")
HEADER_MAGIC = b"vecs"
HEADER_CRC = slice(28, 32)
FULL_BLOCK, LIVE_PART, LIST, CODE_BLOCK, LIST_PART, BUNDLE, BYTE_BLOCK, BAND = range(1, 9)
SEGMENT, SEGMENT_ROWS = 9, 10
FLOAT32, BITS, FLOAT16, INT8, UINT32 = 1, 2, 3, 4, 5
FULL_TIER, CODE_TIER, BYTE_TIER = 0, 1, 2

ORDERS_BYTES = NORMS_BYTES = BLOCK_ROWS * 8
COLUMNS_BYTES = ORDERS_BYTES + NORMS_BYTES
SCALES_BYTES = BLOCK_ROWS * 4

STATE = struct.Struct("<QQQIIII")
PASSAGES = struct.Struct("<Q")
EXPIRY = struct.Struct("<Qq")
CHECKSUM = struct.Struct("<I")
ORDER = struct.Struct("<Q")
GENERATION = struct.Struct("<Q")
DIGEST_BYTES = 16
NO_BLOCK = 2**32 - 1

KEY_FORMAT = b"format"
KEY_NEXT = b"next"

assert HEADER.size == 48
assert STATE.size == 40


# Keys


def collection_key(collection: int) -> bytes:
    """The prefix of every key that belongs to a collection."""
    return collection.to_bytes(4, "big")


def name_key(name: str) -> bytes:
    """Key in `meta` that leads from a collection's name to its number."""
    return b"name/" + name.encode()


def spec_key(collection: int) -> bytes:
    """Key in `meta` of a collection's spec."""
    return b"spec/" + collection_key(collection)


def state_key(collection: int) -> bytes:
    """Key in `meta` of a collection's counters."""
    return b"state/" + collection_key(collection)


def adapter_key(collection: int) -> bytes:
    """Key in `meta` of the adapter behind a collection's encoder."""
    return b"adapter/" + collection_key(collection)


def id_key(collection: int, value: Id) -> bytes:
    """Key in `ids`: a type tag and then UTF-8, or the integer shifted so that it sorts."""
    prefix = collection.to_bytes(4, "big")
    if isinstance(value, str):
        return prefix + b"s" + value.encode()
    return prefix + b"i" + (value - MIN_INT_ID).to_bytes(8, "big")


def id_keys(collection: int, values: Sequence[Id]) -> list[bytes]:
    """Keys in `ids`; as `id_key`, but many at once."""
    prefix = collection.to_bytes(4, "big")
    text, number = prefix + b"s", prefix + b"i"
    return [
        text + value.encode()
        if isinstance(value, str)
        else number + (value - MIN_INT_ID).to_bytes(8, "big")
        for value in values
    ]


def parse_id_key(key: bytes) -> Id:
    """The id of a key in `ids`."""
    tag, rest = key[4:5], key[5:]
    if tag == b"s":
        with contextlib.suppress(UnicodeDecodeError):
            return str(rest, "utf-8")
    if tag == b"i" and len(rest) == 8:
        return int.from_bytes(rest, "big") + MIN_INT_ID
    raise CorruptionError(f"ids: key {key.hex()} holds no id")


def record_key(collection: int, order: int) -> bytes:
    """Key in `records`: records stand in insertion order."""
    return collection.to_bytes(4, "big") + order.to_bytes(8, "big")


def tier_prefix(collection: int, tier: int = FULL_TIER) -> bytes:
    """Prefix in `tiers` of one tier; the block's number follows in four bytes."""
    return collection.to_bytes(4, "big") + bytes((tier,))


def block_key(collection: int, block: int, tier: int = FULL_TIER) -> bytes:
    """Key in `tiers` of one block."""
    return tier_prefix(collection, tier) + block.to_bytes(4, "big")


def part_key(collection: int, part: int) -> bytes:
    """Key in `live` of one bitmap of 16,384 rows."""
    return collection.to_bytes(4, "big") + part.to_bytes(4, "big")


def digest_prefix(collection: int, digest: bytes) -> bytes:
    """Prefix in `digests` of a text; the order of what has its vector follows in eight bytes."""
    return collection.to_bytes(4, "big") + digest


def digest_key(collection: int, digest: bytes, order: int) -> bytes:
    """Key in `digests` of a text whose vector a record or passage has."""
    return digest_prefix(collection, digest) + order.to_bytes(8, "big")


def unpack_digest(key: bytes, value: bytes | memoryview) -> tuple[int, int]:
    """The order that an entry of `digests` leads to, and the checksum of its vector."""
    if len(key) != 4 + DIGEST_BYTES + 8 or len(value) != CHECKSUM.size:
        raise CorruptionError(f"digests: the entry of key {key.hex()} has {len(value)} bytes")
    return int.from_bytes(key[-8:], "big"), int(CHECKSUM.unpack(value)[0])


def pack_generation(generation: int) -> bytes:
    """Make the value in `digests` that says of which generation its entries are."""
    return pack_checked(GENERATION.pack(generation))


# Bulk values


@dataclass(frozen=True, slots=True)
class Header:
    """The 48 bytes before the payload of a bulk value."""

    kind: int
    dtype: int
    rows: int
    width: int
    first: int
    length: int
    crc32: int
    collection: int


def pack_bulk(header: Header, payload: bytearray | bytes, page: int) -> bytearray:
    """Join header and payload, with checksum, padded so that LMDB keeps it on overflow pages.

    `header.length` and `header.crc32` are computed here; `page` is the file's page size.
    """
    length = len(payload)
    value = bytearray(max(HEADER.size + length, page // 2))
    value[HEADER.size : HEADER.size + length] = payload
    return seal_bulk(header, value, length)


def seal_bulk(header: Header, value: bytearray, length: int) -> bytearray:
    """Write the header, with its checksum, in front of a payload that is already in `value`."""
    fields = (header.kind, header.dtype, 0, header.rows, header.width, header.first, length)
    HEADER.pack_into(value, 0, HEADER_MAGIC, *fields, 0, header.collection)
    crc = zlib.crc32(memoryview(value)[: HEADER.size + length])
    HEADER.pack_into(value, 0, HEADER_MAGIC, *fields, crc, header.collection)
    return value


def unpack_header(value: bytes | memoryview, where: str) -> Header:
    """Read the header of a bulk value.

    Raises:
        CorruptionError: The value is too short, or is no bulk value, or its length lies.
    """
    if len(value) < HEADER.size:
        raise CorruptionError(f"{where}: {len(value)} bytes are too few for a header")
    magic, kind, dtype, flags, rows, width, first, length, crc, owner = HEADER.unpack_from(value)
    if magic != HEADER_MAGIC or flags != 0:
        raise CorruptionError(f"{where}: not a bulk value (magic {magic!r}, flags {flags})")
    if length > len(value) - HEADER.size:
        raise CorruptionError(
            f"{where}: the header claims {length} bytes of payload,"
            f" {len(value) - HEADER.size} are there"
        )
    return Header(kind, dtype, rows, width, first, length, crc, owner)


def bulk_length(value: NDArray[np.uint8]) -> int:
    """How long the payload of a bulk value is, whose header was read before."""
    return int(HEADER.unpack(value.tobytes())[7])


def verify_bulk(value: bytes | memoryview, where: str) -> Header:
    """Read the header of a bulk value and check the checksum of header and payload.

    Raises:
        CorruptionError: The checksum, or what `unpack_header` checks, is wrong.
    """
    header = unpack_header(value, where)
    start = bytearray(value[: HEADER.size])
    start[HEADER_CRC] = bytes(4)
    crc = zlib.crc32(value[HEADER.size : HEADER.size + header.length], zlib.crc32(start))
    if crc != header.crc32:
        raise CorruptionError(
            f"{where}: checksum is {crc:08x}, {header.crc32:08x} was stored; the value was damaged"
        )
    return header


# Blocks of the full tier: orders, norms, scales where there are any, vectors


@dataclass(frozen=True, slots=True)
class Form:
    """How the vectors of a collection lie in its blocks; made by `form`.

    Attributes:
        dim: Numbers, or bits, per vector.
        code: FLOAT32, FLOAT16, INT8 or BITS.
        dtype: The numpy dtype of the numbers.
        width: Numbers of that dtype in a row.
        vectors_at: Where the vectors begin in the payload.
    """

    dim: int
    code: int
    dtype: np.dtype[Any]
    width: int
    vectors_at: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector."""
        return self.width * self.dtype.itemsize

    def block_bytes(self, rows: int) -> int:
        """Payload bytes of a block that holds `rows` rows."""
        return self.vectors_at + rows * self.row_bytes


_CODES = {
    "float32": (FLOAT32, "<f4"),
    "float16": (FLOAT16, "<f2"),
    "int8": (INT8, "i1"),
    "bits": (BITS, "<u8"),
}


def form(spec: CollectionSpec) -> Form:
    """The form of a collection's vectors."""
    return _form(spec.dim, spec.precision)


@functools.lru_cache(maxsize=512)
def _form(dim: int, precision: str) -> Form:
    code, dtype = _CODES[precision]
    at = COLUMNS_BYTES + (SCALES_BYTES if code == INT8 else 0)
    width = -(-dim // 64) if code == BITS else dim
    return Form(dim, code, np.dtype(dtype), width, at)


@dataclass(frozen=True, slots=True)
class Packed:
    """Vectors in their stored form; arrays of one length n.

    Attributes:
        norms: float64 (n,): lengths of the vectors, as docs/layout.md defines them.
        numbers: float32, float16 or int8, (n, dim); of bits uint64 (n, words).
        scales: float32 (n,) for int8, whose numbers they multiply; else None.
    """

    norms: NDArray[np.float64]
    numbers: NDArray[Any]
    scales: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.norms)

    def take(self, which: Any) -> Packed:
        """Some of the vectors, by anything that indexes an array."""
        scales = None if self.scales is None else self.scales[which]
        return Packed(self.norms[which], self.numbers[which], scales)


def join_packed(parts: Sequence[Packed]) -> Packed:
    """Some vectors behind others, of one form."""
    scales = [part.scales for part in parts if part.scales is not None]
    return Packed(
        np.concatenate([part.norms for part in parts]),
        np.concatenate([part.numbers for part in parts]),
        np.concatenate(scales) if scales else None,
    )


@dataclass(frozen=True, slots=True)
class Block:
    """Views into the value of a block: orders, uint64 (rows,), and as many vectors."""

    orders: NDArray[np.uint64]
    packed: Packed


def pack_block(
    collection: int,
    block: int,
    old: bytes | memoryview | None,
    held: int,
    orders: NDArray[np.uint64],
    packed: Packed,
    form: Form,
    page: int,
) -> bytearray:
    """Make the value of a block of the full tier, from a former value and rows to append.

    Args:
        collection: The collection's number.
        block: The block's number.
        old: The former value, or None.
        held: Rows in the former value.
        orders: uint64, (n,).
        packed: n vectors of the form.
        form: The collection's.
        page: The file's page size.
    """
    rows = held + len(orders)
    length = form.block_bytes(rows)
    value = bytearray(max(HEADER.size + length, page // 2))
    if old is not None:
        end = HEADER.size + form.block_bytes(held)
        memoryview(value)[:end] = memoryview(old)[:end]
    new = view_block(value, rows, form)
    new.orders[held:] = orders
    new.packed.norms[held:] = packed.norms
    new.packed.numbers[held:] = packed.numbers
    if new.packed.scales is not None:
        new.packed.scales[held:] = packed.scales
    header = Header(FULL_BLOCK, form.code, rows, form.dim, block * BLOCK_ROWS, 0, 0, collection)
    return seal_bulk(header, value, length)


def check_block(value: bytes | memoryview, collection: int, block: int, form: Form) -> int:
    """Return the number of rows in a block of the full tier, having checked its header.

    What passes here is safe to read: `rows` vectors of the form lie inside the value.

    Raises:
        CorruptionError: The header is not that of this block.
    """
    where = f"tiers: block {block} of collection {collection}"
    header = unpack_header(value, where)
    if (header.kind, header.dtype, header.width, header.first, header.collection) != (
        FULL_BLOCK,
        form.code,
        form.dim,
        block * BLOCK_ROWS,
        collection,
    ):
        raise CorruptionError(f"{where}: the header belongs to another value: {header}")
    if not 0 < header.rows <= BLOCK_ROWS or header.length != form.block_bytes(header.rows):
        raise CorruptionError(f"{where}: {header.rows} rows in {header.length} bytes")
    return header.rows


def view_block(value: bytes | bytearray | memoryview, rows: int, form: Form) -> Block:
    """View a block whose header `check_block` has passed; it lives no longer than `value`."""
    at, scales = HEADER.size, None
    if form.code == INT8:
        scales = np.frombuffer(value, "<f4", rows, at + COLUMNS_BYTES)
    norms = np.frombuffer(value, "<f8", rows, at + ORDERS_BYTES)
    numbers = np.frombuffer(value, form.dtype, rows * form.width, at + form.vectors_at)
    packed = Packed(norms, numbers.reshape(rows, form.width), scales)
    return Block(np.frombuffer(value, "<u8", rows, at), packed)


# Bitmaps of living rows


def pack_part(collection: int, part: int, bits: bytes | bytearray, page: int) -> bytearray:
    """Make the value of a bitmap of 16,384 rows from its 2,048 bytes."""
    header = Header(LIVE_PART, BITS, PART_ROWS, 0, part * PART_ROWS, 0, 0, collection)
    return pack_bulk(header, bits, page)


def unpack_part(value: bytes | memoryview, collection: int, part: int) -> bytearray:
    """Copy the bytes of a bitmap; the checksum is verified, it is small.

    Raises:
        CorruptionError: Not this bitmap, or damaged.
    """
    where = f"live: part {part} of collection {collection}"
    header = verify_bulk(value, where)
    if (header.kind, header.first, header.length, header.collection) != (
        LIVE_PART,
        part * PART_ROWS,
        PART_BYTES,
        collection,
    ):
        raise CorruptionError(f"{where}: the header belongs to another value: {header}")
    return bytearray(value[HEADER.size : HEADER.size + PART_BYTES])


# Small values in `meta`


@dataclass(slots=True)
class State:
    """The counters of a collection.

    Attributes:
        records: Living records.
        next_order: The order that the next new record gets; orders are never reused.
        generation: Number of transactions that changed the collection.
        blocks: Blocks ever allotted; block numbers are below it.
        open_block: The block that takes the next rows, or NO_BLOCK.
        open_rows: Rows used in the open block.
        backlog: Rows that came or died since the index was last brought up to date.
        passages: Living rows of passages that are not the first ones of their records.
        expiring: Living records that expire at some instant, be it past.
        earliest: None of them expires before that, in microseconds since 1970.
    """

    records: int = 0
    next_order: int = 0
    generation: int = 0
    blocks: int = 0
    open_block: int = NO_BLOCK
    open_rows: int = 0
    backlog: int = 0
    passages: int = 0
    expiring: int = 0
    earliest: int = 0

    @property
    def rows(self) -> int:
        """Living rows."""
        return self.records + self.passages

    def pack(self) -> bytes:
        """Return the stored form."""
        counters = (self.records, self.next_order, self.generation, self.blocks)
        try:
            backlog = min(self.backlog, 2**32 - 1)
            data = STATE.pack(*counters, self.open_block, self.open_rows, backlog)
            if self.expiring or self.passages:
                data += PASSAGES.pack(self.passages)
            if self.expiring:
                data += EXPIRY.pack(self.expiring, self.earliest)
            return pack_checked(data)
        except struct.error:
            # Counting on from counters that were wrong.
            raise CorruptionError(f"meta: a collection's counters are impossible: {self}") from None

    @classmethod
    def unpack(cls, value: bytes | memoryview) -> State:
        """Read the stored form; CorruptionError if it is damaged or impossible."""
        data = unpack_checked(value, "meta: a collection's counters")
        counters, more = data[: STATE.size], data[STATE.size :]
        passages, expiry = more[: PASSAGES.size], more[PASSAGES.size :]
        sizes = len(counters), len(passages), len(expiry)
        if (
            sizes[0] != STATE.size
            or sizes[1] not in (0, PASSAGES.size)
            or sizes[2] not in (0, EXPIRY.size)
        ):
            raise CorruptionError(f"meta: a collection's counters have {len(data)} bytes")
        state = cls(*STATE.unpack(counters))
        if passages:
            (state.passages,) = PASSAGES.unpack(passages)
        if expiry:
            state.expiring, state.earliest = EXPIRY.unpack(expiry)
        fits = state.blocks <= MAX_ROWS // BLOCK_ROWS and state.rows <= state.blocks * BLOCK_ROWS
        fits = fits and state.expiring <= state.records and state.next_order <= MAX_ORDERS
        if state.open_block == NO_BLOCK:
            fits = fits and state.open_rows == 0
        else:
            fits = fits and state.open_block < state.blocks and 0 < state.open_rows < BLOCK_ROWS
        if not fits:
            raise CorruptionError(f"meta: a collection's counters are impossible: {state}")
        return state


def pack_checked(data: bytes) -> bytes:
    """Put a checksum in front of a small value."""
    return CHECKSUM.pack(zlib.crc32(data)) + data


def unpack_checked(value: bytes | memoryview, where: str) -> bytes:
    """Return a small value without its checksum; CorruptionError if that is wrong."""
    data = bytes(value[CHECKSUM.size :])
    if len(value) < CHECKSUM.size or CHECKSUM.pack(zlib.crc32(data)) != value[: CHECKSUM.size]:
        raise CorruptionError(f"{where}: wrong checksum; the value was damaged")
    return data


def pack_meta(values: Mapping[str, Any]) -> bytes:
    """Make a small value of `meta` from plain values."""
    return pack_checked(msgpack.packb(values))


def pack_format(number: int, oldest: int) -> bytes:
    """Make the value of `meta` that says which version of the format a file is of.

    `oldest` is the oldest version whose readers understand the file.
    """
    return pack_meta({"magic": MAGIC, "format": number, "oldest_readable": oldest})


def unpack_meta(value: bytes | memoryview, where: str) -> dict[str, Any]:
    """Read a small value of `meta`; CorruptionError if it is damaged."""
    data = unpack_checked(value, where)
    try:
        values = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise CorruptionError(f"{where}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CorruptionError(f"{where}: {type(values).__name__} where a map should be")
    return values
