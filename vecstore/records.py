"""How is a record found, read and walked? The `ids` and `records` databases.

`ids` leads from an id to the record's order, `records` from the order to row, id, text and
metadata. The order is given once and kept for life, whatever row the record moves to. Passages of a
record behind its first one have orders and rows of their own.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vecstore import layout, record_layout
from vecstore.errors import CorruptionError
from vecstore.record_layout import Part, Passages
from vecstore.spec import Id
from vecstore.store import Reader, Snapshot
from vecstore.values import EXPIRES, instant

# Ids of so many records of a collection are remembered, and of so many collections.
REMEMBERED, COLLECTIONS = 32_768, 8


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as it is stored: `row` leads to its vector, or to that of its first passage."""

    order: int
    row: int
    id: Id
    text: str | None
    metadata: dict[str, Any] | None
    passages: Passages | None = None

    @property
    def expires_at(self) -> datetime | None:
        """When the record expires, if it does."""
        return end_of(self.metadata)

    def is_expired(self, now: int) -> bool:
        """Whether the record is past its time, in microseconds since 1970."""
        end = self.expires_at
        return end is not None and instant(end) <= now


def find(reader: Reader, collection: int, value: Id) -> int | None:
    """The order of the record with this id, or None."""
    found = reader.get("ids", layout.id_key(collection, value))
    if found is None:
        return None
    if len(found) != layout.ORDER.size:
        raise CorruptionError(f"ids: the entry of id {value!r} has {len(found)} bytes")
    return int(layout.ORDER.unpack(found)[0])


def read(reader: Reader, collection: int, order: int) -> Stored:
    """The record of this order; CorruptionError if it is missing or damaged."""
    key = layout.record_key(collection, order)
    value = reader.get("records", key)
    if value is None:
        raise CorruptionError(f"records: order {order} of collection {collection} is missing")
    return _unpack(key, value)


def still(reader: Reader, collection: int, order: int) -> Stored | None:
    """The record of this order; None if it is gone."""
    key = layout.record_key(collection, order)
    value = reader.get("records", key)
    return None if value is None else _unpack(key, value)


def placed(reader: Reader, collection: int, order: int) -> Stored | Part:
    """The record or passage of this order; CorruptionError if it is missing or damaged."""
    key = layout.record_key(collection, order)
    value = reader.get("records", key)
    if value is None or not record_layout.is_passage(value):
        return read(reader, collection, order)
    return record_layout.unpack_part(key, value)


def verified(
    reader: Reader, collection: int, orders: list[int]
) -> tuple[list[int], list[memoryview]]:
    """Rows and values of the records of some orders, whose checksums are right; errors as `read`.

    The values end with the transaction.
    """
    prefix = layout.collection_key(collection)
    keys = [prefix + order.to_bytes(8, "big") for order in orders]
    values = reader.get_each("records", keys)
    # An empty value is there, and damaged.
    if not all(values) and None in values:
        order = orders[values.index(None)]
        raise CorruptionError(f"records: order {order} of collection {collection} is missing")
    return list(map(record_layout.check_record, keys, values)), values


def remembered(reader: Reader, uid: bytes) -> dict[int, Id]:
    """The ids of a collection that were read before, by order, for `ids`.

    An order never gets another id.
    """
    if not isinstance(reader, Snapshot):
        return {}
    known: dict[int, Id] = reader.store.tables.keep("ids", uid, COLLECTIONS, dict)
    return known


def remembered_parts(reader: Reader, uid: bytes) -> dict[int, Part | None]:
    """The passages of a collection that were read before, by order, for `parts_of`.

    An order that is a passage's is never anything else, and its passage never changes but its row.
    """
    if not isinstance(reader, Snapshot):
        return {}
    known: dict[int, Part | None] = reader.store.tables.keep("parts", uid, COLLECTIONS, dict)
    return known


def parts_of(
    reader: Reader, collection: int, known: dict[int, Part | None], orders: list[int]
) -> list[Part | None]:
    """The passages that have some orders; None for an order that is a record's.

    The rows may be those of another version of the file.
    """
    # Other threads may forget all of them at any time.
    found = {order: known[order] for order in orders if order in known}
    missing = [order for order in orders if order not in found]
    if missing:
        keys = [layout.record_key(collection, order) for order in missing]
        for order, key, value in zip(missing, keys, reader.get_each("records", keys), strict=True):
            # What is no passage is verified when it is read as a record.
            passage = value is not None and record_layout.is_passage(value)
            found[order] = record_layout.unpack_part(key, value) if passage else None
        if len(known) + len(missing) > REMEMBERED:
            known.clear()
        known.update(found)
    return [found[order] for order in orders]


def part(reader: Reader, collection: int, record: Stored, index: int) -> Part:
    """A passage of a record, behind its first; CorruptionError if it is missing or damaged."""
    assert record.passages is not None
    order = record.passages.orders[index - 1]
    key = layout.record_key(collection, order)
    value = reader.get("records", key)
    if value is None:
        raise CorruptionError(f"records: order {order} of collection {collection} is missing")
    found = record_layout.unpack_part(key, value)
    if (found.parent, found.index) != (record.order, index):
        raise CorruptionError(f"records: order {order} is no passage of order {record.order}")
    record_layout.check_part(found, record.passages)
    return found


def parts(reader: Reader, collection: int, record: Stored) -> list[Part]:
    """The passages of a record behind its first; errors as `part`."""
    count = 0 if record.passages is None else len(record.passages.orders)
    return [part(reader, collection, record, index) for index in range(1, count + 1)]


def ids(reader: Reader, collection: int, known: dict[int, Id], orders: list[int]) -> list[Id]:
    """The ids of the records of some orders, some of which are `remembered`; errors as `read`."""
    try:
        return [known[order] for order in orders]
    except KeyError:
        pass
    # Other threads may forget all of them at any time.
    found = [known.get(order) for order in orders]
    missing = [order for order, value in zip(orders, found, strict=True) if value is None]
    if missing:
        read_now = record_layout.unpack_ids(verified(reader, collection, missing)[1])
        if len(known) + len(missing) > REMEMBERED:
            known.clear()
        fresh = dict(zip(missing, read_now, strict=True))
        known.update(fresh)
        found = [fresh.get(order, value) for order, value in zip(orders, found, strict=True)]
    # None is no id.
    return found  # type: ignore[return-value]


def get(reader: Reader, collection: int, value: Id) -> Stored | None:
    """The record with this id, or None."""
    order = find(reader, collection, value)
    if order is None:
        return None
    found = read(reader, collection, order)
    if found.id != value or type(found.id) is not type(value):
        raise CorruptionError(f"ids: id {value!r} leads to the record of id {found.id!r}")
    return found


def living(reader: Reader, collection: int, value: Id) -> Stored | None:
    """The record with this id; None also if it has expired."""
    found = get(reader, collection, value)
    return None if found is None or found.is_expired(reader.now) else found


def walk(
    reader: Reader, collection: int, after: int = -1, within: Sequence[bytes] = ()
) -> Generator[Stored, None, None]:
    """Yield the records of a collection by ascending order, beyond `after`; as `walk_rows`."""
    for found in walk_rows(reader, collection, after, within):
        if isinstance(found, Stored):
            yield found


def walk_rows(
    reader: Reader, collection: int, after: int = -1, within: Sequence[bytes] = ()
) -> Generator[Stored | Part, None, None]:
    """Yield all that has a row by ascending order: a passage comes behind its record.

    Records are passed over whose bytes lack any of `within`: to find them there takes a fraction
    of the time that reading a record takes.
    """
    prefix = layout.collection_key(collection)
    start = layout.record_key(collection, after + 1)
    for key, value in reader.items("records", prefix, start):
        passage = record_layout.is_passage(value)
        if within and not passage:
            stored = bytes(value)
            if not all(map(stored.__contains__, within)):
                record_layout.check_record(key, stored)
                continue
        yield record_layout.unpack_part(key, value) if passage else _unpack(key, value)


def end_of(metadata: dict[str, Any] | None) -> datetime | None:
    """When a record with some stored metadata expires; CorruptionError if that is no instant."""
    if metadata is None or EXPIRES not in metadata:
        return None
    end = metadata[EXPIRES]
    if not isinstance(end, datetime):
        raise CorruptionError(f"records: a record expires at {end!r:.60}, which is no instant")
    return end


def split(metadata: dict[str, Any] | None) -> tuple[dict[str, Any] | None, datetime | None]:
    """What users get of stored metadata, and when the record expires."""
    end = end_of(metadata)
    if metadata is None or end is None:
        return metadata, None
    return {key: value for key, value in metadata.items() if key != EXPIRES} or None, end


def _unpack(key: bytes, value: bytes | memoryview) -> Stored:
    row, order = record_layout.check_record(key, value), int.from_bytes(key[4:], "big")
    return Stored(order, row, *record_layout.unpack_content(order, value))
