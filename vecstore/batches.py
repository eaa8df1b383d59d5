"""What was given to be stored? The user's arguments, checked, become a batch.

Nothing here touches the file.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecstore import passages
from vecstore.chunking import Span
from vecstore.errors import UsageError, VectorError
from vecstore.layout import Packed
from vecstore.metadata import is_plain, plain_metadata
from vecstore.spec import (
    MAX_ID_BYTES,
    Chunking,
    CollectionSpec,
    Id,
    check_id,
    encode_utf8,
    is_id,
    show,
)
from vecstore.values import EXPIRES, instant, moment
from vecstore.vectors import pack

Metadata = dict[str, Any]
# When a record expires: at an instant, or never.
Expiry = datetime | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Records ready to be written; sequences of one length n.

    Attributes:
        ids: str or int, distinct.
        texts: str or None.
        metadata: Plain values, or None for a record without; with the instant under EXPIRES.
        packed: m vectors in stored form, or None until the texts are encoded.
        places: Which records the vectors belong to, (m,) ascending; all of them but in an update.
            One that comes again has passages.
        chunkings: How the texts are to be cut; None for one that is not.
        cuts: Where they were cut, two spans at least; None for one that was not.
        digests: Of the texts that the vectors were made of, (m,), None for a vector that is not
            what the encoder makes of a text alone; empty if none is.
    """

    ids: list[Id]
    texts: list[str | None]
    metadata: list[Metadata | None]
    packed: Packed | None
    places: NDArray[np.intp]
    chunkings: list[Chunking | None]
    cuts: list[list[Span] | None]
    digests: list[bytes | None] = field(default_factory=list)


def pick(batch: Batch, places: list[int]) -> Batch:
    """Some records, ascending, of a batch that has vectors for all."""
    chosen = np.flatnonzero(np.isin(batch.places, places))
    return Batch(
        [batch.ids[i] for i in places],
        [batch.texts[i] for i in places],
        [batch.metadata[i] for i in places],
        None if batch.packed is None else batch.packed.take(chosen),
        np.searchsorted(places, batch.places[chosen]),
        [batch.chunkings[i] for i in places],
        [batch.cuts[i] for i in places],
        [batch.digests[i] for i in chosen.tolist()] if batch.digests else [],
    )


def prepare(
    spec: CollectionSpec,
    texts: str | Sequence[str | None] | None,
    vectors: ArrayLike | None,
    ids: Id | Iterable[Id | None] | None,
    metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None,
    chunk: bool | Chunking | None = None,
    expires_at: Expiry | Sequence[Expiry] = None,
) -> Batch:
    """Check parallel sequences, or the values of one record, and return them as a batch.

    Raises:
        UsageError: Nothing given, lengths that differ, duplicate ids, values that cannot be
            stored; a VectorError where a vector is the trouble.
    """
    if texts is None and vectors is None:
        raise UsageError("nothing to store: give texts, vectors, or both")
    chunking = _check_chunk(chunk, vectors)
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
    return _batch(_check_ids(ids, count), checked, metadata, packed, chunking, expires_at)


def _batch(
    ids: list[Id],
    texts: list[str | None],
    metadata: Any,
    packed: Packed | None,
    chunking: Chunking | None,
    expires_at: Any,
) -> Batch:
    """A batch whose texts are not cut yet; metadata and instants are checked here."""
    count = len(ids)
    checked = _check_metadata(metadata, count)
    if expires_at is not None:
        _note_expiry(checked, expires_at)
    places = np.arange(count)
    return Batch(ids, texts, checked, packed, places, [chunking] * count, [None] * count)


def _check_chunk(chunk: bool | Chunking | None, vectors: ArrayLike | None) -> Chunking | None:
    chunking = passages.declared(chunk)
    if chunking is not None and vectors is not None:
        raise UsageError("chunk= cuts texts to embed their passages: leave out vectors, or chunk")
    return chunking


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


def _note_expiry(metadata: list[Metadata | None], given: Any, *, keeping: bool = False) -> None:
    """Put instants under their key into the metadata of records.

    Args:
        metadata: Of each record; changed.
        given: An instant for all, or a sequence of one for each.
        keeping: Whether records have one that `...` leaves as it is, and None takes away.
    """
    one = given is None or given is ... or isinstance(given, datetime)
    listed = [given] * len(metadata) if one else _match(given, len(metadata), "expires_at")
    for i, end in enumerate(listed):
        if end is ... and keeping:
            continue
        if end is None and not keeping:
            continue
        if end is not None and not isinstance(end, datetime):
            raise UsageError(
                f"expires_at[{i}] is {type(end).__name__} {show(end)}; give a datetime (one without"
                " a time zone is taken as UTC), such as datetime.now(UTC) + timedelta(days=30)"
            )
        try:
            moment_ = None if end is None else moment(instant(end))
        except Exception:
            # A time zone is anybody's code.
            what = f"expires_at[{i}] = {show(end)} is no instant of the years 1 to 9999 in UTC"
            raise UsageError(what) from None
        metadata[i] = {**(metadata[i] or {}), EXPIRES: moment_}


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
    chunk: bool | Chunking | None = None,
    expires_at: Expiry | EllipsisType | Sequence[Expiry | EllipsisType] = ...,
) -> Batch:
    """Check the arguments of an update; as `prepare`, but every part may be missing.

    In the metadata the instant None stands for one that is to be taken away.
    """
    if texts is None and vectors is None and metadata is None and expires_at is ...:
        raise UsageError("nothing to update: give text, vector, metadata or expires_at")
    chunking = _check_chunk(chunk, vectors)
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
    batch = _batch(_check_ids(listed, count), checked, metadata, packed, chunking, None)
    if expires_at is not ...:
        _note_expiry(batch.metadata, expires_at, keeping=True)
    return batch


@dataclass(slots=True)
class Group:
    """Records of a stream that are stored together."""

    ids: list[Any]
    texts: list[Any] | None
    vectors: list[Any] | None
    metadata: list[Any]
    expires: list[Any]


RECORD_KEYS = {"id", "text", "vector", "metadata", "expires_at"}


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
                f"record {number} of the stream must be a dict with id, text, vector, metadata and"
                f" expires_at, got {show(strange)}; other fields belong into metadata"
            )
        bare, identity = item.get("vector") is None, item.get("id")
        known = is_id(identity) and identity in seen
        if group and (len(group.ids) >= size or known or bare is not (group.vectors is None)):
            yield group
            group = None
        if group is None:
            group, seen = Group([], [], None if bare else [], [], []), set()
        group.ids.append(identity)
        group.metadata.append(item.get("metadata"))
        group.expires.append(item.get("expires_at"))
        group.texts.append(item.get("text"))  # type: ignore[union-attr]  # made as a list above
        if group.vectors is not None:
            group.vectors.append(item["vector"])
        if is_id(identity):
            seen.add(identity)
    if group:
        yield group
