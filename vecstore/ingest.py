"""What happens on a write? Validate everything, encode, then one transaction over everything.

`prepare` turns what the user gave into a `Batch` without touching the file; `add`, `upsert`,
`update` and `delete` apply it inside a write transaction. Whatever fails, fails before the commit.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecstore import catalog, layout, maintenance, records, rows
from vecstore.ann.index import IndexedRows
from vecstore.catalog import Entry
from vecstore.encoders import Encoder
from vecstore.errors import (
    AlreadyExistsError,
    EncoderError,
    NotFoundError,
    UsageError,
    VecstoreError,
    VectorError,
)
from vecstore.filters import Filter
from vecstore.layout import Packed, State
from vecstore.metadata import is_plain, plain_metadata
from vecstore.records import Stored
from vecstore.spec import MAX_ID_BYTES, CollectionSpec, Id, check_id, encode_utf8, is_id, show
from vecstore.store import Reader, Transaction
from vecstore.vectors import Vectors, as_vectors, check_lengths, differ, pack, shorten, store_form

Metadata = dict[str, Any]


class EncoderSource(Protocol):
    """Gives the encoder of a collection when text has to be embedded."""

    def __call__(self) -> Encoder:
        """Return the encoder, or raise why there is none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records ready to be written; sequences of one length n.

    Attributes:
        ids: str or int, distinct.
        texts: str or None.
        metadata: Plain values, or None for a record without.
        packed: m vectors in stored form, or None until the texts are encoded.
        places: Which records the vectors belong to, (m,) ascending; all of them but in an update.
    """

    ids: list[Id]
    texts: list[str | None]
    metadata: list[Metadata | None]
    packed: Packed | None
    places: NDArray[np.intp]


# From the user's arguments to a batch


def prepare(
    spec: CollectionSpec,
    texts: str | Sequence[str | None] | None,
    vectors: ArrayLike | None,
    ids: Id | Iterable[Id | None] | None,
    metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None,
) -> Batch:
    """Check parallel sequences, or the values of one record, and return them as a batch.

    Raises:
        UsageError: Nothing given, lengths that differ, duplicate ids, values that cannot be
            stored; a VectorError where a vector is the trouble.
    """
    if texts is None and vectors is None:
        raise UsageError("nothing to store: give texts, vectors, or both")
    array = None if vectors is None else _as_array(vectors)
    if isinstance(texts, str) or (texts is None and array is not None and array.ndim == 1):
        texts, array, ids, metadata = _as_one(texts, array, ids, metadata)
    listed = None if texts is None else _sequence(texts, "texts")
    count = len(array) if array is not None else len(listed or ())
    if count == 0:
        raise UsageError("nothing to store: the batch is empty")
    packed = None
    if array is not None:
        packed = pack(array, spec)
    checked = _check_texts(listed, count)
    if packed is None and spec.encoder is None:
        raise UsageError(
            f"collection {spec.name!r} holds bare vectors (dim={spec.dim}) and has no encoder:"
            " give vectors=, or make it without dim="
        )
    if packed is None and None in checked:
        raise UsageError(f"texts[{checked.index(None)}] is None and there is no vector for it")
    return Batch(
        _check_ids(ids, count),
        checked,
        _check_metadata(metadata, count),
        packed,
        np.arange(count),
    )


def _as_array(vectors: ArrayLike) -> NDArray[Any]:
    try:
        array = np.asarray(vectors)
    except ValueError as error:
        raise VectorError(f"vectors are not an array of numbers: {error}") from None
    if array.ndim == 0:
        raise VectorError(f"vectors is {vectors!r:.60}, not an array of shape (n, dim)")
    return array


def _as_one(
    texts: Any, array: NDArray[Any] | None, ids: Any, metadata: Any
) -> tuple[Any, NDArray[Any] | None, Any, Any]:
    """Turn the arguments of one record into a batch of one."""
    if array is not None and array.ndim == 1:
        array = array[None]
    if ids is None or is_id(ids):
        ids = [ids]
    if metadata is None or isinstance(metadata, Mapping):
        metadata = [metadata]
    return (None if texts is None else [texts]), array, ids, metadata


def _sequence(values: Any, what: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping):
        raise UsageError(f"{what} is one {type(values).__name__}, give a list with one per record")
    try:
        listed: list[Any] = values if isinstance(values, list) else list(values)
    except TypeError:
        raise UsageError(f"{what} is {type(values).__name__} {show(values)}, not a list") from None
    return listed


def _match(values: Any, count: int, what: str) -> list[Any]:
    listed = _sequence(values, what)
    if len(listed) != count:
        raise UsageError(f"{what} has {len(listed)} entries for {count} records")
    return listed


def _check_texts(texts: Any, count: int) -> list[str | None]:
    if texts is None:
        return [None] * count
    values = _match(texts, count, "texts")
    for i, text in enumerate(values):
        if text is None:
            continue
        if not isinstance(text, str):
            raise UsageError(f"texts[{i}] is {type(text).__name__} {show(text)}, not a str")
        if not text.strip():
            raise UsageError(f"texts[{i}] is {text!r:.40}: an empty text has no meaning to embed")
        if not text.isascii():
            encode_utf8(text, f"texts[{i}]")
    return values


def _check_ids(ids: Any, count: int) -> list[Id]:
    if ids is None:
        return new_ids(count)
    values = _match(ids, count, "ids")
    kinds = set(map(type, values))
    if kinds == {str} and "".join(values).isascii() and max(map(len, values)) <= MAX_ID_BYTES:
        return _check_distinct(values)
    missing = sum(value is None for value in values)
    made = iter(new_ids(missing) if missing else ())
    return _check_distinct([next(made) if value is None else check_id(value) for value in values])


def _check_distinct(ids: list[Id]) -> list[Id]:
    if len(set(ids)) != len(ids):
        seen: set[Id] = set()
        for i, value in enumerate(ids):
            if value in seen:
                raise UsageError(f"ids[{i}] = {value!r} stands in this batch twice")
            seen.add(value)
    return ids


def _check_metadata(metadata: Any, count: int) -> list[Metadata | None]:
    if metadata is None:
        return [None] * count
    values = _match(metadata, count, "metadata")
    # For a few records the look by columns costs more than it spares.
    if count > 4 and is_plain(values):
        return [dict(value) for value in values]
    plain: list[Metadata | None] = []
    for i, value in enumerate(values):
        try:
            plain.append(None if value is None else plain_metadata(value))
        except UsageError as error:
            raise UsageError(f"record {i}: {error}") from None
    return plain


_last_id = 0
_last_id_lock = threading.Lock()


def _after_fork() -> None:
    global _last_id_lock
    # The parent may have held it in another thread.
    _last_id_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def new_ids(count: int) -> list[Id]:
    """Make unique ids that sort by the time of their making: UUIDs of version 7 (RFC 9562).

    Within a process they ascend strictly, whatever the clock does.
    """
    global _last_id
    with _last_id_lock:
        # 48 bits of milliseconds, and 26 bits that start low at random and count up.
        start = (time.time_ns() // 1_000_000 << 26) | int.from_bytes(os.urandom(2), "big")
        first = max(start, _last_id + 1)
        _last_id = first + count - 1
    tails = os.urandom(6 * count)
    return [_uuid7(first + i, tails[6 * i : 6 * i + 6]) for i in range(count)]


def _uuid7(number: int, tail: bytes) -> str:
    millis, counter = number >> 26, number & (1 << 26) - 1
    value = (millis & (1 << 48) - 1) << 80 | 7 << 76 | (counter >> 14) << 64
    value |= 2 << 62 | (counter & (1 << 14) - 1) << 48 | int.from_bytes(tail, "big")
    return str(uuid.UUID(int=value))


def prepare_update(
    spec: CollectionSpec,
    ids: Id | Iterable[Id],
    texts: str | Sequence[str | None] | None,
    vectors: ArrayLike | None,
    metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None,
) -> Batch:
    """Check the arguments of an update; as `prepare`, but every part may be missing."""
    if texts is None and vectors is None and metadata is None:
        raise UsageError("nothing to update: give text, vector or metadata")
    array = None if vectors is None else _as_array(vectors)
    if is_id(ids):
        texts, array, ids, metadata = _as_one(texts, array, ids, metadata)
    listed = _sequence(ids, "ids")
    count = len(listed)
    if count == 0:
        raise UsageError("nothing to update: ids is empty")
    if any(value is None for value in listed):
        raise UsageError("an id to update is None")
    checked = _check_texts(texts, count)
    packed = None
    if array is not None:
        packed = pack(array, spec)
        if len(packed) != count:
            raise UsageError(f"vectors has {len(packed)} entries for {count} records")
    elif texts is not None and spec.encoder is None:
        raise UsageError(
            f"collection {spec.name!r} has no encoder: give the vector of the new text too"
        )
    return Batch(
        _check_ids(listed, count),
        checked,
        _check_metadata(metadata, count),
        packed,
        np.arange(count),
    )


@dataclass(slots=True)
class Group:
    """Records of a stream that are stored together."""

    ids: list[Any]
    texts: list[Any] | None
    vectors: list[Any] | None
    metadata: list[Any]


RECORD_KEYS = {"id", "text", "vector", "metadata"}


def groups(items: Iterable[Mapping[str, Any]], size: int) -> Iterator[Group]:
    """Cut a stream of dicts into groups of at most `size` that are all with or all without vectors.

    An id that comes again begins a new group, so that the later record replaces the earlier one.
    """
    group: Group | None = None
    seen: set[Any] = set()
    for number, item in enumerate(items):
        if not isinstance(item, Mapping) or not item.keys() <= RECORD_KEYS:
            strange = set(item) - RECORD_KEYS if isinstance(item, Mapping) else item
            raise UsageError(
                f"record {number} of the stream must be a dict with id, text, vector and metadata,"
                f" got {show(strange)}; other fields belong into metadata"
            )
        bare, identity = item.get("vector") is None, item.get("id")
        known = is_id(identity) and identity in seen
        if group and (len(group.ids) >= size or known or bare is not (group.vectors is None)):
            yield group
            group = None
        if group is None:
            group, seen = Group([], [], None if bare else [], []), set()
        group.ids.append(identity)
        group.metadata.append(item.get("metadata"))
        group.texts.append(item.get("text"))  # type: ignore[union-attr]  # made as a list above
        if group.vectors is not None:
            group.vectors.append(item["vector"])
        if is_id(identity):
            seen.add(identity)
    if group:
        yield group


def encode(spec: CollectionSpec, batch: Batch, encoder: EncoderSource) -> Batch:
    """Return the batch with vectors for its texts, unless it came with vectors or has no text."""
    if batch.packed is not None:
        return batch
    pairs = [(i, text) for i, text in enumerate(batch.texts) if text is not None]
    if not pairs:
        return batch
    texts = [text for _, text in pairs]
    vectors = embed(spec, texts, encoder(), "document")
    packed = store_form(vectors, spec.metric, spec.precision)
    return replace(batch, packed=packed, places=np.array([i for i, _ in pairs]))


def embed(spec: CollectionSpec, texts: list[str], encoder: Encoder, kind: Any) -> Vectors:
    """Embed texts and check what the encoder returned, float32 (n, dim).

    Of a collection that holds a prefix of the encoder's vectors, that prefix.
    """
    try:
        # A copy: encoders may sort or extend their list.
        vectors = encoder.encode(list(texts), kind=kind)
    except VecstoreError:
        raise
    except Exception as error:
        raise EncoderError(f"encoder {encoder.name!r} failed: {error!r}") from error
    what = f"what encoder {encoder.name!r} returned"
    try:
        vectors = as_vectors(vectors, max(encoder.dim, spec.dim), what)
        if vectors.shape[1] > spec.dim:
            vectors = as_vectors(shorten(vectors, spec.dim), spec.dim, what)
        check_lengths(vectors, spec.metric, f"{what} for text")
    except VectorError as error:
        raise EncoderError(str(error)) from error
    if len(vectors) != len(texts):
        raise EncoderError(
            f"encoder {encoder.name!r} returned {len(vectors)} vectors for {len(texts)} texts"
        )
    return vectors


# Inside the transaction


def check_new(reader: Reader, entry: Entry, ids: list[Id]) -> list[bytes]:
    """Return the keys of the ids; AlreadyExistsError if one of them is taken."""
    keys = layout.id_keys(entry.number, ids)
    found = reader.get_many("ids", keys)
    if found:
        taken = [value for value, key in zip(ids, keys, strict=True) if key in found]
        shown = ", ".join(map(repr, taken[:3])) + (", ..." if len(taken) > 3 else "")
        raise AlreadyExistsError(
            f"{len(taken)} of {len(ids)} ids exist already in {entry.spec.name!r}: {shown}; use"
            " upsert to replace them"
        )
    return keys


def add(txn: Transaction, entry: Entry, batch: Batch) -> None:
    """Store records whose ids are all new."""
    keys = check_new(txn, entry, batch.ids)
    state = catalog.state(txn, entry.number)
    writer = IndexedRows(txn, entry, state)
    _insert(txn, entry, state, writer, batch, keys)
    writer.finish()
    catalog.save_state(txn, entry.number, state)


def upsert(txn: Transaction, entry: Entry, batch: Batch) -> None:
    """Store records; one whose id exists is replaced whole and keeps its place in the order."""
    keys = layout.id_keys(entry.number, batch.ids)
    known = txn.get_many("ids", keys)
    found = [
        records.get(txn, entry.number, value) if key in known else None
        for value, key in zip(batch.ids, keys, strict=True)
    ]
    state = catalog.state(txn, entry.number)
    writer = IndexedRows(txn, entry, state)
    old = [(i, record) for i, record in enumerate(found) if record is not None]
    if old:
        places = [i for i, _ in old]
        _replace(txn, entry, state, writer, [record for _, record in old], _pick(batch, places))
    new = [i for i, record in enumerate(found) if record is None]
    if new:
        fresh = _pick(batch, new) if old else batch
        _insert(txn, entry, state, writer, fresh, [keys[i] for i in new])
    _finish(txn, entry, state, writer)


def check_known(reader: Reader, entry: Entry, ids: list[Id]) -> None:
    """Raise NotFoundError if one of the ids does not exist."""
    missing = [value for value in ids if records.find(reader, entry.number, value) is None]
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise NotFoundError(f"no record in {entry.spec.name!r} has the id {shown}")


def update(txn: Transaction, entry: Entry, batch: Batch) -> None:
    """Change records that exist: metadata is merged, text and vector replaced where given.

    A record without a new vector keeps its row.

    Raises:
        NotFoundError: An id does not exist.
    """
    check_known(txn, entry, batch.ids)
    found = (records.get(txn, entry.number, value) for value in batch.ids)
    old = [record for record in found if record is not None]
    state = catalog.state(txn, entry.number)
    writer = IndexedRows(txn, entry, state)
    merged = replace(
        batch,
        texts=[
            record.text if text is None else text
            for record, text in zip(old, batch.texts, strict=True)
        ],
        metadata=[
            record.metadata if values is None else {**(record.metadata or {}), **values}
            for record, values in zip(old, batch.metadata, strict=True)
        ],
    )
    _replace(txn, entry, state, writer, old, merged)
    _finish(txn, entry, state, writer)


def delete(txn: Transaction, entry: Entry, ids: list[Id] | None, where: Filter | None) -> int:
    """Delete the records with these ids, or that satisfy the filter; return how many there were."""
    state = catalog.state(txn, entry.number)
    if ids is not None:
        read = (records.get(txn, entry.number, value) for value in dict.fromkeys(ids))
        found = (record for record in read if record is not None)
    else:
        found = records.walk(txn, entry.number)
    # Not the records themselves: together, their texts may be larger than memory.
    doomed = [
        (record.id, record.order, record.row)
        for record in found
        if where is None or where.matches(record)
    ]
    if not doomed:
        return 0
    writer = IndexedRows(txn, entry, state)
    for value, order, _ in doomed:
        txn.delete("ids", layout.id_key(entry.number, value))
        txn.delete("records", layout.record_key(entry.number, order))
    writer.kill(np.array([row for _, _, row in doomed], np.intp))
    state.records -= len(doomed)
    _finish(txn, entry, state, writer)
    return len(doomed)


def _finish(txn: Transaction, entry: Entry, state: State, writer: IndexedRows) -> None:
    maintenance.repack_touched(txn, entry, state, writer)
    writer.finish()
    catalog.save_state(txn, entry.number, state)


def _insert(
    txn: Transaction,
    entry: Entry,
    state: State,
    writer: IndexedRows,
    batch: Batch,
    keys: list[bytes],
) -> None:
    """Store new records, whose ids have these keys: vectors, then records and ids."""
    assert batch.packed is not None
    count, first = len(batch.ids), state.next_order
    orders = np.arange(first, first + count, dtype=np.uint64)
    placed = writer.add(batch.packed, orders).tolist()
    items = layout.pack_records(entry.number, first, placed, batch.ids, batch.texts, batch.metadata)
    txn.put_many("records", items)
    values = map(layout.ORDER.pack, range(first, first + count))
    # Neighbouring keys share their way down the tree.
    txn.put_many("ids", sorted(zip(keys, values, strict=True)))
    state.next_order += count
    state.records += count


def _replace(
    txn: Transaction,
    entry: Entry,
    state: State,
    writer: IndexedRows,
    old: list[Stored],
    batch: Batch,
) -> None:
    """Write records anew in their old places; one whose vector changed gets a new row."""
    places = [record.row for record in old]
    if batch.packed is not None:
        current = np.array(places, np.intp)
        given = current[batch.places]
        found = rows.gather_packed(txn, entry.number, state, entry.form, given)
        changed = differ(found.packed, batch.packed)
        if changed.any():
            moved = writer.add(batch.packed.take(changed), found.orders[changed])
            writer.kill(given[changed])
            current[batch.places[changed]] = moved
            places = current.tolist()
    items = []
    for record, row, text, metadata in zip(old, places, batch.texts, batch.metadata, strict=True):
        key = layout.record_key(entry.number, record.order)
        body = layout.pack_body(record.id, text, metadata)
        items.append((key, layout.pack_record(key, row, body)))
    txn.put_many("records", sorted(items))


def _pick(batch: Batch, places: list[int]) -> Batch:
    """Some records of a batch that has a vector for each."""
    return Batch(
        [batch.ids[i] for i in places],
        [batch.texts[i] for i in places],
        [batch.metadata[i] for i in places],
        None if batch.packed is None else batch.packed.take(places),
        np.arange(len(places)),
    )
