"""What does every byte of a record mean? The values of `records`: of records, and of passages.

The body of a record is an array of three parts, or of six if it has passages, and that of a passage
one of four: so none is taken for another one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import msgpack

from vecstore.errors import CorruptionError, UsageError
from vecstore.layout import collection_key
from vecstore.spec import Chunking, Id
from vecstore.values import instant

RECORD = struct.Struct("<II")
DATETIME_CODE = 1
NAIVE = -(2**31)
_DATETIME = struct.Struct("<qi")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The first bytes of msgpack for arrays of three, four and six parts, for a text of under 32 bytes
# and for an int of one byte.
_THREE_PARTS, _PASSAGE, _WITH_PASSAGES = 0x93, 0x94, 0x96
_SHORT_TEXT, _UINT8 = 0xA0, 0xCC
_ID_AT = RECORD.size + 1
# How many bytes belong to the first byte of an id; other ids are rare.
_ID_SIZES = {
    **dict.fromkeys(range(128), 0),
    **{_SHORT_TEXT + size: size for size in range(32)},
    **{_UINT8 + power: 1 << power for power in range(4)},
}
_ID, _TEXT, _METADATA = (str, int), (str, type(None)), (dict, type(None))


def pack_body(value: Id, text: str | None, metadata: Mapping[str, Any] | None) -> bytes:
    """Make the body of a record: msgpack of id, text and metadata.

    The metadata must come from `plain_metadata`.
    """
    packed: bytes = msgpack.packb((value, text, metadata), default=pack_extension)
    return packed


def pack_record(key: bytes, row: int, body: bytes) -> bytes:
    """Make the value of a record: checksum over key, row and body; then row and body."""
    rest = row.to_bytes(4, "little") + body
    return zlib.crc32(rest, zlib.crc32(key)).to_bytes(4, "little") + rest


def pack_records(
    collection: int,
    first: int,
    rows: Sequence[int],
    ids: Sequence[Id],
    texts: Sequence[str | None],
    metadata: Sequence[Mapping[str, Any] | None],
) -> list[tuple[bytes, bytes]]:
    """Make keys and values of records with ascending orders; as `pack_record`, but many at once."""
    pack = msgpack.Packer(default=pack_extension).pack
    prefix, crc32 = collection_key(collection), zlib.crc32
    items = []
    bodies = map(pack, zip(ids, texts, metadata, strict=True))
    for order, (row, body) in enumerate(zip(rows, bodies, strict=True), first):
        key = prefix + order.to_bytes(8, "big")
        rest = row.to_bytes(4, "little") + body
        items.append((key, crc32(rest, crc32(key)).to_bytes(4, "little") + rest))
    return items


def check_record(key: bytes, value: bytes | memoryview) -> int:
    """Return the row of a record, having checked its checksum.

    Raises:
        CorruptionError: The record is damaged, or stands under another key.
    """
    if len(value) > RECORD.size:
        crc: int
        row: int
        crc, row = RECORD.unpack_from(value)
        if zlib.crc32(value[4:], zlib.crc32(key)) == crc:
            return row
    raise CorruptionError(
        f"records: the record under key {bytes(key).hex()} is damaged"
        f" ({len(value)} bytes, wrong checksum)"
    )


def unpack_ids(values: Sequence[bytes | memoryview]) -> list[Id]:
    """Return the ids of records, as `unpack_body` does; texts and metadata are passed over."""
    try:
        return list(map(_unpack_id, values))
    except UnicodeDecodeError as error:
        raise CorruptionError(f"records: a record cannot be read: {error}") from error


def _unpack_id(value: bytes | memoryview) -> Id:
    # Only all of a value can be had from msgpack, and most of it is text.
    if len(value) > _ID_AT and value[RECORD.size] == _THREE_PARTS:
        head, start = value[_ID_AT], _ID_AT + 1
        size = _ID_SIZES.get(head)
        # Text and metadata take at least a byte each.
        if size is not None and start + size + 2 <= len(value):
            if head < _SHORT_TEXT:
                return head
            content = value[start : start + size]
            return int.from_bytes(content, "big") if head >= _UINT8 else str(content, "utf-8")
    return unpack_body(value)[0]


def unpack_body(value: bytes | memoryview) -> tuple[Id, str | None, dict[str, Any] | None]:
    """Return id, text and metadata of a record whose checksum `check_record` has passed.

    Raises:
        CorruptionError: The checksum is right but the content is not a record.
    """
    try:
        return check_body(_unpack(value))
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise CorruptionError(f"records: a record cannot be read: {error}") from error


def _unpack(value: bytes | memoryview) -> Any:
    """What msgpack makes of a body."""
    # Its own instants, which are never written here, come as datetimes: they are no types of ours.
    return msgpack.unpackb(
        value[RECORD.size :], ext_hook=unpack_extension, strict_map_key=True, timestamp=3
    )


def check_body(body: Any) -> tuple[Id, str | None, dict[str, Any] | None]:
    """Return what msgpack made of a body; CorruptionError if it is no id, text and metadata."""
    identity, text, metadata = body
    kinds = (type(identity), type(text), type(metadata))
    if kinds[0] not in _ID or kinds[1] not in _TEXT or kinds[2] not in _METADATA:
        raise CorruptionError(f"records: a record holds {kinds}, not id, text and metadata")
    return identity, text, metadata


def pack_extension(value: object) -> msgpack.ExtType:
    """What msgpack stores for a datetime, the only type here that it does not know."""
    if isinstance(value, datetime):
        offset = value.utcoffset()
        seconds = NAIVE if offset is None else round(offset.total_seconds())
        return msgpack.ExtType(DATETIME_CODE, _DATETIME.pack(instant(value), seconds))
    raise UsageError(f"metadata holds {type(value).__name__} {value!r:.60}, which cannot be stored")


def unpack_extension(code: int, data: bytes) -> datetime:
    """The datetime of a msgpack extension; ValueError if it is none."""
    if code != DATETIME_CODE or len(data) != _DATETIME.size:
        raise ValueError(f"extension type {code} of {len(data)} bytes is unknown")
    micros, seconds = _DATETIME.unpack(data)
    try:
        instant = _EPOCH + timedelta(microseconds=micros)
        if seconds == NAIVE:
            return instant.replace(tzinfo=None)
        return instant.astimezone(UTC if seconds == 0 else timezone(timedelta(seconds=seconds)))
    except (OverflowError, ValueError) as error:
        raise ValueError(f"a datetime is out of range: {error}") from error


# Passages


@dataclass(frozen=True, slots=True)
class Passages:
    """What a record says of its passages.

    Attributes:
        chunking: How they were cut, and are to be cut when the text changes.
        orders: The orders of all but the first, which is where the record is.
        spans: Where each begins and ends in the text, in characters; one more than orders.
    """

    chunking: Chunking
    orders: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What a passage that is not its record's first says of itself.

    Attributes:
        order: Its own order.
        row: Where its vector is.
        parent: The order of its record.
        index: Which of the record's passages it is, at least 1.
        start: Where it begins in the text.
        end: Where it ends.
    """

    order: int
    row: int
    parent: int
    index: int
    start: int
    end: int


Content = tuple[Id, str | None, dict[str, Any] | None, Passages | None]


def is_passage(value: bytes | memoryview) -> bool:
    """Whether a value of `records` is that of a passage, by its looks."""
    return len(value) > RECORD.size and value[RECORD.size] == _PASSAGE


def pack_content(
    identity: Id, text: str | None, metadata: dict[str, Any] | None, passages: Passages | None
) -> bytes:
    """Make the body of a record, as `pack_body`; with passages if it has any."""
    if passages is None:
        return pack_body(identity, text, metadata)
    chunking = (passages.chunking.tokens, passages.chunking.overlap, passages.chunking.late)
    ends = [place for span in passages.spans for place in span]
    packed: bytes = msgpack.packb(
        (identity, text, metadata, chunking, passages.orders, ends), default=pack_extension
    )
    return packed


def pack_part(parent: int, index: int, start: int, end: int) -> bytes:
    """Make the body of a passage."""
    packed: bytes = msgpack.packb((parent, index, start, end))
    return packed


def unpack_content(order: int, value: bytes | memoryview) -> Content:
    """Id, text, metadata and passages of a record whose checksum is right.

    Args:
        order: The record's.
        value: Its value, as `check_record` has passed it.

    Raises:
        CorruptionError: The content is not a record, or its passages are impossible.
    """
    if value[RECORD.size] != _WITH_PASSAGES:
        return *unpack_body(value), None
    try:
        *plain, chunking, orders, ends = _unpack(value)
        identity, text, metadata = check_body(plain)
        spans = tuple(zip(ends[::2], ends[1::2], strict=True))
        passages = Passages(Chunking(*chunking), tuple(orders), spans)
        _check(order, text, passages)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException, UsageError) as error:
        raise CorruptionError(f"records: a record cannot be read: {error}") from error
    return identity, text, metadata, passages


def _check(order: int, text: str | None, passages: Passages) -> None:
    """Raise ValueError for passages that cannot be."""
    orders, spans = (order, *passages.orders), passages.spans
    if not _ascend(orders) or len(orders) != len(spans) or len(orders) < 2:
        raise ValueError(f"order {order} has {len(spans)} passages of orders {orders[:5]}")
    starts, ends = zip(*spans, strict=True)
    inside = text is not None and starts[0] >= 0 and ends[-1] <= len(text)
    if not inside or not _ascend(starts) or not _ascend(ends) or any(s >= e for s, e in spans):
        raise ValueError(f"the spans of the passages of order {order} are not inside its text")


def _ascend(numbers: Sequence[int]) -> bool:
    whole = all(type(number) is int for number in numbers)
    return whole and all(one < other for one, other in pairwise(numbers))


def unpack_part(key: bytes, value: bytes | memoryview) -> Part:
    """Read a passage.

    Raises:
        CorruptionError: It is damaged, or is none.
    """
    row = check_record(key, value)
    order = int.from_bytes(key[4:], "big")
    try:
        numbers = msgpack.unpackb(value[RECORD.size :])
        parent, index, start, end = numbers
        sound = all(type(number) is int for number in numbers)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptionError(f"records: a passage cannot be read: {error}") from error
    if not sound or not 0 <= parent < order or index < 1 or not 0 <= start < end:
        raise CorruptionError(f"records: order {order} holds {numbers}, which is no passage")
    return Part(order, row, parent, index, start, end)


def check_part(part: Part, passages: Passages | None) -> None:
    """Raise CorruptionError unless a record says of a passage what that says of itself."""
    orders, spans = ((), ()) if passages is None else (passages.orders, passages.spans)
    known = part.index <= len(orders) and orders[part.index - 1] == part.order
    if not known or spans[part.index] != (part.start, part.end):
        raise CorruptionError(
            f"records: order {part.order} is a passage of order {part.parent}, which knows nothing"
            " of it"
        )
