"""Which texts have a vector already? The `digests` database.

Under the digest of each text that the encoder of a collection embedded stands the order of the
record, or passage, that has its vector. Releases that do not know the database leave entries behind
that are wrong, so all of them count only while the counters are those after the last write that
kept them. A vector is taken from its row only if the text there is the same and its checksum right.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vecstore import catalog, layout, records, rows
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.layout import Packed, State
from vecstore.records import Stored
from vecstore.report import Report
from vecstore.store import Reader, Transaction

# Vectors compared at a time.
_STEP = 1024


@dataclass(frozen=True, slots=True)
class Known:
    """Vectors of some of the texts that were looked up.

    Attributes:
        places: Which of the texts.
        packed: As many vectors, in stored form.
    """

    places: list[int]
    packed: Packed


def digest(text: str) -> bytes:
    """What a text is found by: BLAKE2b of its UTF-8, 16 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=layout.DIGEST_BYTES).digest()


def checksums(packed: Packed) -> list[int]:
    """The crc32 of each vector: of its norm, its numbers and its scale, as they are stored."""
    columns = [packed.norms[:, None], packed.numbers]
    columns += [] if packed.scales is None else [packed.scales[:, None]]
    data = np.hstack([np.ascontiguousarray(column).view(np.uint8) for column in columns])
    return [zlib.crc32(row) for row in map(bytes, data)]


def find(reader: Reader, entry: Entry, digests: Sequence[bytes], texts: Sequence[str]) -> Known:
    """Look up the vectors of texts by their digests; what is damaged is not found."""
    candidates = []
    try:
        if _counts(reader, entry.number, catalog.state(reader, entry.number)):
            candidates = list(_candidates(reader, entry, digests, texts))
        return _compared(reader, entry, candidates)
    except CorruptionError:
        # The texts are embedded as if they were new.
        return _compared(reader, entry, [])


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A text whose vector should be in a row."""

    place: int
    order: int
    row: int
    checksum: int


def _candidates(
    reader: Reader, entry: Entry, digests: Sequence[bytes], texts: Sequence[str]
) -> Iterator[_Candidate]:
    texts_at = _Texts(reader, entry.number)
    for place, (sought, text) in enumerate(zip(digests, texts, strict=True)):
        found = next(reader.items("digests", layout.digest_prefix(entry.number, sought)), None)
        if found is not None:
            order, checksum = layout.unpack_digest(*found)
            row, there = texts_at.read(order)
            if there == text:
                yield _Candidate(place, order, row, checksum)


def _compared(reader: Reader, entry: Entry, candidates: list[_Candidate]) -> Known:
    """The candidates whose rows hold what they should."""
    places = np.array([one.row for one in candidates], np.intp)
    state = catalog.state(reader, entry.number)
    found = rows.gather_packed(reader, entry.number, state, entry.form, places)
    orders, sums = found.orders.tolist(), checksums(found.packed)
    right = [
        (one.order, one.checksum) == there
        for one, there in zip(candidates, zip(orders, sums, strict=True), strict=True)
    ]
    kept = [one.place for one, fits in zip(candidates, right, strict=True) if fits]
    return Known(kept, found.packed.take(np.array(right, bool)))


class _Texts:
    """Reads what was embedded of a record or passage; remembers the last record of passages."""

    def __init__(self, reader: Reader, collection: int) -> None:
        self._reader, self._collection = reader, collection
        self._record: Stored | None = None

    def read(self, order: int) -> tuple[int, str | None]:
        """The row of what has an order, and its text; CorruptionError if it is not there."""
        found = records.placed(self._reader, self._collection, order)
        if isinstance(found, Stored):
            return found.row, next(iter(embedded(found)), None)
        if self._record is None or self._record.order != found.parent:
            self._record = records.read(self._reader, self._collection, found.parent)
        return found.row, (self._record.text or "")[found.start : found.end]


def embedded(record: Stored) -> list[str]:
    """The texts whose vectors a record has: its own, or those of its passages."""
    if record.text is None or record.passages is None:
        return [] if record.text is None else [record.text]
    return [record.text[start:end] for start, end in record.passages.spans]


# Inside the transaction


def keys_of(reader: Reader, entry: Entry, record: Stored) -> list[bytes]:
    """The keys that there may be for a record and its passages."""
    if entry.spec.encoder is None or not reader.has("digests"):
        return []
    orders = [record.order, *(() if record.passages is None else record.passages.orders)]
    return [
        layout.digest_key(entry.number, digest(text), order)
        for text, order in zip(embedded(record), orders, strict=False)
    ]


def drop(txn: Transaction, keys: Iterable[bytes]) -> None:
    """Forget texts; keys that are not there are passed over."""
    for key in keys:
        txn.delete("digests", key)


def put(
    txn: Transaction,
    entry: Entry,
    state: State,
    digests: Sequence[bytes | None],
    orders: Sequence[int],
    packed: Packed,
) -> None:
    """Remember where the vectors of texts are; without a digest they are not the encoder's."""
    if not txn.has("digests"):
        return
    marker = layout.collection_key(entry.number)
    if not _counts(txn, entry.number, state):
        txn.delete_prefix("digests", marker)
        txn.put("digests", marker, layout.pack_generation(state.generation))
    items = [
        (layout.digest_key(entry.number, found, order), layout.CHECKSUM.pack(checksum))
        for found, order, checksum in zip(digests, orders, checksums(packed), strict=True)
        if found is not None
    ]
    # Neighbouring keys share their way down the tree.
    txn.put_many("digests", sorted(items))


def _counts(reader: Reader, collection: int, state: State) -> bool:
    """Whether every write since the entries were made kept them."""
    if not reader.has("digests"):
        return False
    marker = reader.get("digests", layout.collection_key(collection))
    return marker is not None and bytes(marker) == layout.pack_generation(state.generation)


# Checking


def verify(reader: Reader, report: Report, entry: Entry, state: State) -> None:
    """Each entry leads to its text, and to the vector that was made of it (19)."""
    where, marker = f"collection {entry.spec.name!r}", layout.collection_key(entry.number)
    if not reader.has("digests"):
        return
    value = reader.get("digests", marker)
    if value is not None:
        layout.unpack_checked(value, f"{where}: what digests belong to")
    if not _counts(reader, entry.number, state):
        return
    texts_at, candidates = _Texts(reader, entry.number), []
    for place, (key, value) in enumerate(reader.items("digests", marker)):
        if key == marker:
            continue
        with report.guard(f"{where}, digests"):
            order, checksum = layout.unpack_digest(key, value)
            row, text = texts_at.read(order)
            if text is None or not key.startswith(layout.digest_prefix(entry.number, digest(text))):
                raise CorruptionError(f"key {key.hex()} leads to another text (19)")
            candidates.append(_Candidate(place, order, row, checksum))
    for at in range(0, len(candidates), _STEP):
        part = candidates[at : at + _STEP]
        right = set(_compared(reader, entry, part).places)
        for one in part:
            if one.place not in right:
                what = f"the digest of order {one.order} leads to another vector (19)"
                report.add(where, what)
