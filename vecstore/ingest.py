"""What happens on a write? Encode, then one transaction over everything.

`encode` gives a batch its vectors without touching the file; `add`, `upsert`, `update` and `delete`
apply it inside a write transaction. Whatever fails, fails before the commit.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vecstore import (
    bars,
    catalog,
    digests,
    layout,
    passages,
    record_layout,
    records,
    removal,
    rows,
)
from vecstore.ann.index import IndexedRows
from vecstore.batches import Batch, pick
from vecstore.catalog import Entry
from vecstore.chunking import Span
from vecstore.digests import Known
from vecstore.encoders import Encoder
from vecstore.errors import (
    AlreadyExistsError,
    EncoderError,
    NotFoundError,
    UsageError,
    VecstoreError,
    VectorError,
)
from vecstore.fields import upkeep
from vecstore.fields.upkeep import Change, Fresh
from vecstore.layout import Packed, State
from vecstore.record_layout import Passages
from vecstore.records import Stored
from vecstore.spec import Chunking, CollectionSpec, Id
from vecstore.store import Reader, Transaction
from vecstore.values import EXPIRES, instant
from vecstore.vectors import Vectors, as_vectors, check_lengths, differ, shorten, store_form

Metadata = dict[str, Any]
# Texts embedded between two movements of a bar; for no more than these there is none by default.
COUNTED = 256
# How encoders begin to tell which of their texts is wrong.
_PLACE = re.compile(r"^text \d+\b")


class EncoderSource(Protocol):
    """Gives the encoder of a collection when text has to be embedded."""

    def __call__(self) -> Encoder:
        """Return the encoder, or raise why there is none."""


class Lookup(Protocol):
    """Gives the vectors that a collection has of texts."""

    def __call__(self, found: list[bytes], texts: list[str], /) -> Known:
        """Look up texts, each under its digest."""


def encode(
    spec: CollectionSpec,
    batch: Batch,
    encoder: EncoderSource,
    lookup: Lookup,
    progress: bool | None = False,
) -> Batch:
    """Return the batch with vectors for its texts, unless it came with vectors or has no text.

    A text that is to be chunked, and fits no passage, gets several. Texts that the collection has
    are not embedded again. With `progress` a bar on stderr counts the others; None if that is a
    terminal and there are many.
    """
    if batch.packed is not None or all(text is None for text in batch.texts):
        return batch
    model = encoder()
    texts, places, cuts, late = _cut(batch, model)
    # Passages in their context are not what the encoder makes of their text alone.
    alone = np.ones(len(texts), bool)
    for _, found in late:
        alone[found] = False
    made = {text: digests.digest(text) for text in itertools.compress(texts, alone)}

    def named(text: str) -> str:
        number = texts.index(text)
        record = places[number]
        spans = cuts[record]
        if spans is None:
            return f"texts[{record}]"
        start, end = spans[number - places.index(record)]
        return f"texts[{record}], its passage from character {start} to {end},"

    parts, numbers = _embed_new(spec, made, model, lookup, progress, named)
    where = np.array([numbers.get(text, -1) for text in texts], np.intp)
    for i, found in late:
        spans = cuts[i] or []
        where[found] = np.arange(len(spans)) + sum(map(len, parts))
        parts.append(_packed(spec, _embed_late(spec, batch.texts[i] or "", spans, model)))
    packed = layout.join_packed(parts)
    if len(packed) != len(where) or (where[1:] < where[:-1]).any():
        packed = packed.take(where)
    keys = [made[text] if own else None for text, own in zip(texts, alone.tolist(), strict=True)]
    return replace(batch, packed=packed, places=np.array(places), cuts=cuts, digests=keys)


def known_in(batch: Batch | None, lookup: Lookup) -> Lookup:
    """Look up texts in a batch too that is not written yet."""
    if batch is None or batch.packed is None or not any(batch.digests):
        return lookup
    packed = batch.packed
    there = {key: place for place, key in enumerate(batch.digests) if key is not None}

    def both(found: list[bytes], texts: list[str]) -> Known:
        known = lookup(found, texts)
        left = set(range(len(texts))).difference(known.places)
        more = [place for place in sorted(left) if found[place] in there]
        if not more:
            return known
        taken = packed.take([there[found[place]] for place in more])
        return Known([*known.places, *more], layout.join_packed([known.packed, taken]))

    return both


def _cut(
    batch: Batch, encoder: Encoder
) -> tuple[list[str], list[int], list[list[Span] | None], list[tuple[int, slice]]]:
    """Cut the texts of a batch that are to be cut.

    Returns:
        What gets a vector each; the places of their records; the cuts; and of each record whose
        passages are embedded in their context its place, and where they are.
    """
    pieces: list[str] = []
    places: list[int] = []
    late = []
    cuts = list(batch.cuts)
    for i, (text, chunking) in enumerate(zip(batch.texts, batch.chunkings, strict=True)):
        if text is None:
            continue
        spans = passages.cut(text, chunking, encoder)
        if len(spans) > 1:
            cuts[i] = spans
            if chunking is not None and chunking.late:
                late.append((i, slice(len(pieces), len(pieces) + len(spans))))
        pieces += [text[start:end] for start, end in spans]
        places += [i] * len(spans)
    return pieces, places, cuts, late


def _embed_new(
    spec: CollectionSpec,
    made: dict[str, bytes],
    encoder: Encoder,
    lookup: Lookup,
    progress: bool | None,
    named: Callable[[str], str],
) -> tuple[list[Packed], dict[str, int]]:
    """Vectors of distinct documents with their digests: embedded, unless the collection has them.

    Returns:
        The vectors in parts, and the place of each text's vector among them.
    """
    texts = list(made)
    known = lookup(list(made.values()), texts)
    held = [texts[place] for place in known.places]
    there = set(held)
    new = [text for text in texts if text not in there]
    parts = [known.packed] if held else []
    if new:
        parts.append(_packed(spec, _embed_counted(spec, new, encoder, progress, named)))
    return parts, {text: number for number, text in enumerate([*held, *new])}


def _embed_counted(
    spec: CollectionSpec,
    texts: list[str],
    encoder: Encoder,
    progress: bool | None,
    named: Callable[[str], str],
) -> Vectors:
    """Embed documents; in steps where a bar counts them."""
    if progress is None and len(texts) <= COUNTED:
        progress = False
    step = COUNTED if bars.shown(progress) else len(texts)
    found = []
    with bars.counting(progress, len(texts), "embedding", "texts") as advance:
        for at in range(0, len(texts), step):
            part = texts[at : at + step]
            found.append(embed_named(spec, part, encoder, "document", named))
            advance(len(part))
    return np.concatenate(found) if len(found) > 1 else found[0]


def _packed(spec: CollectionSpec, vectors: Vectors) -> Packed:
    return store_form(vectors, spec.metric, spec.precision)


def _embed_late(spec: CollectionSpec, text: str, spans: list[Span], encoder: Encoder) -> Vectors:
    """Embed passages of a text in their context."""
    return _embedded(spec, encoder, lambda: passages.late_vectors(text, spans, encoder), len(spans))


def embed(spec: CollectionSpec, texts: list[str], encoder: Encoder, kind: Any) -> Vectors:
    """Embed texts and check what the encoder returned, float32 (n, dim).

    Of a collection that holds a prefix of the encoder's vectors, that prefix.
    """
    # A copy: encoders may sort or extend their list.
    return _embedded(spec, encoder, lambda: encoder.encode(list(texts), kind=kind), len(texts))


def embed_named(
    spec: CollectionSpec,
    texts: list[str],
    encoder: Encoder,
    kind: Any,
    named: Callable[[str], str],
) -> Vectors:
    """Embed texts as `embed`; of one that is refused the error says what its owner calls it.

    The encoder knows its place among these texts only, which are not all that a user gave.
    """
    try:
        return embed(spec, texts, encoder, kind)
    except UsageError as error:
        culprit, said = _culprit(spec, texts, encoder, kind, str(error))
        name = named(culprit)
        message, count = _PLACE.subn(lambda _: name, said, count=1)
        raise UsageError(message if count else f"{name}: {said}") from error


def _culprit(
    spec: CollectionSpec, texts: list[str], encoder: Encoder, kind: Any, said: str
) -> tuple[str, str]:
    """The first text that an encoder refuses, and what it says; halving finds it soon."""
    low, high = 0, len(texts)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            embed(spec, texts[low:middle], encoder, kind)
            low = middle
        except UsageError as error:
            high, said = middle, str(error)
    return texts[low], said


def _embedded(
    spec: CollectionSpec, encoder: Encoder, encode: Callable[[], Any], count: int
) -> Vectors:
    """What an encoder returns for so many texts, checked, with as many numbers as are stored."""
    try:
        vectors = encode()
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
    if len(vectors) != count:
        raise EncoderError(
            f"encoder {encoder.name!r} returned {len(vectors)} vectors for {count} texts"
        )
    return vectors


# Inside the transaction


def check_new(reader: Reader, entry: Entry, ids: list[Id]) -> list[bytes]:
    """Return the keys of the ids; AlreadyExistsError if one of them is taken."""
    keys = layout.id_keys(entry.number, ids)
    found = reader.get_many("ids", keys)
    there = [value for value, key in zip(ids, keys, strict=True) if key in found]
    taken = [value for value in there if records.living(reader, entry.number, value)]
    if taken:
        shown = ", ".join(map(repr, taken[:3])) + (", ..." if len(taken) > 3 else "")
        raise AlreadyExistsError(
            f"{len(taken)} of {len(ids)} ids exist already in {entry.spec.name!r}: {shown}; use"
            " upsert to replace them"
        )
    return keys


def add(txn: Transaction, entry: Entry, batch: Batch) -> None:
    """Store records whose ids are all new."""
    removal.forget_expired(txn, entry, batch.ids)
    keys = check_new(txn, entry, batch.ids)
    state = catalog.state(txn, entry.number)
    writer = IndexedRows(txn, entry, state)
    fresh = _insert(txn, entry, state, writer, batch, keys)
    writer.finish()
    upkeep.keep_up(txn, entry, state, Change(writer.added, writer.allotted, fresh))
    catalog.save_state(txn, entry.number, state)


def upsert(txn: Transaction, entry: Entry, batch: Batch) -> None:
    """Store records; one whose id exists is replaced whole and keeps its place in the order."""
    removal.forget_expired(txn, entry, batch.ids)
    keys = layout.id_keys(entry.number, batch.ids)
    known = txn.get_many("ids", keys)
    found = [
        records.get(txn, entry.number, value) if key in known else None
        for value, key in zip(batch.ids, keys, strict=True)
    ]
    state = catalog.state(txn, entry.number)
    writer = IndexedRows(txn, entry, state)
    old = [(i, record) for i, record in enumerate(found) if record is not None]
    changed, fresh = list[int](), None
    if old:
        places = [i for i, _ in old]
        records_ = [record for _, record in old]
        changed = _replace(txn, entry, state, writer, records_, pick(batch, places))
    new = [i for i, record in enumerate(found) if record is None]
    if new:
        coming = pick(batch, new) if old else batch
        fresh = _insert(txn, entry, state, writer, coming, [keys[i] for i in new])
    removal.finish(txn, entry, state, writer, fresh, changed)


def chunkings(reader: Reader, entry: Entry, ids: list[Id]) -> list[Chunking | None]:
    """How the texts of records were cut; NotFoundError if one of the ids does not exist."""
    check_known(reader, entry, ids)
    found = (records.get(reader, entry.number, value) for value in ids)
    return [
        None if record is None or record.passages is None else record.passages.chunking
        for record in found
    ]


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
    removal.forget_expired(txn, entry, batch.ids)
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
            record.metadata if values is None else _merged(record.metadata, values)
            for record, values in zip(old, batch.metadata, strict=True)
        ],
    )
    changed = _replace(txn, entry, state, writer, old, merged)
    removal.finish(txn, entry, state, writer, changed=changed)


def _merged(metadata: Metadata | None, values: Metadata) -> Metadata | None:
    """Metadata with other values; without the instant of expiry where that is None now."""
    both = {**(metadata or {}), **values}
    if EXPIRES in both and both[EXPIRES] is None:
        del both[EXPIRES]
        return both or None
    return both


def _insert(
    txn: Transaction,
    entry: Entry,
    state: State,
    writer: IndexedRows,
    batch: Batch,
    keys: list[bytes],
) -> Fresh | None:
    """Store new records, whose ids have these keys: vectors, then records and ids.

    Returns:
        Rows and metadata, as far as these need not be read again.
    """
    assert batch.packed is not None
    count, first = len(batch.ids), state.next_order
    orders, leading = np.arange(first, first + count, dtype=np.uint64), _leading(batch.places)
    whole = bool(leading.all())
    packed = batch.packed if whole else batch.packed.take(leading)
    placed = writer.add(packed, orders).tolist()
    state.next_order += count
    state.records += count
    _count_expiring(txn, state, batch.metadata)
    _remember(txn, entry, state, batch, orders)
    parts = batch.ids, batch.texts, batch.metadata
    if whole:
        items = record_layout.pack_records(entry.number, first, placed, *parts)
    else:
        found = _store_passages(txn, entry, state, writer, batch, range(first, first + count))
        contents = zip(*parts, found, strict=True)
        items = [
            _record_item(entry, first + number, row, *content)
            for number, (row, content) in enumerate(zip(placed, contents, strict=True))
        ]
    txn.put_many("records", items)
    values = map(layout.ORDER.pack, range(first, first + count))
    # Neighbouring keys share their way down the tree.
    txn.put_many("ids", sorted(zip(keys, values, strict=True)))
    # Passages have the metadata of their records.
    return (np.array(placed, np.intp), batch.metadata) if whole else None


def _count_expiring(txn: Transaction, state: State, metadata: Sequence[Metadata | None]) -> None:
    """Note in the counters what some records say of their expiry."""
    ends = [instant(held[EXPIRES]) for held in metadata if held and EXPIRES in held]
    if ends:
        catalog.raise_format(txn)
        state.earliest = min(ends + [state.earliest] * bool(state.expiring))
        state.expiring += len(ends)


def _remember(
    txn: Transaction, entry: Entry, state: State, batch: Batch, orders: NDArray[np.uint64]
) -> None:
    """Note where the vectors of texts are, before passages get the orders that come next.

    `orders` are those of all the batch's records.
    """
    if batch.packed is None or not any(batch.digests):
        return
    leading = _leading(batch.places)
    given = orders[batch.places]
    given[~leading] = state.next_order + np.arange(len(given) - leading.sum(), dtype=np.uint64)
    digests.put(txn, entry, state, batch.digests, given.tolist(), batch.packed)


def _leading(places: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which vectors of a batch are the first of their records."""
    first = np.ones(len(places), bool)
    first[1:] = places[1:] != places[:-1]
    return first


def _record_item(entry: Entry, order: int, row: int, *content: Any) -> tuple[bytes, bytes]:
    """Key and value of a record."""
    key = layout.record_key(entry.number, order)
    return key, record_layout.pack_record(key, row, record_layout.pack_content(*content))


def _store_passages(
    txn: Transaction,
    entry: Entry,
    state: State,
    writer: IndexedRows,
    batch: Batch,
    parents: Sequence[int],
) -> list[Passages | None]:
    """Store the passages of a batch but the first of each record; return what records say of them.

    `parents` are the records' orders.
    """
    rest = ~_leading(batch.places)
    if batch.packed is None or not rest.any():
        return [None] * len(parents)
    first, total = state.next_order, int(rest.sum())
    orders = np.arange(first, first + total, dtype=np.uint64)
    placed = writer.add(batch.packed.take(rest), orders).tolist()
    left = iter(zip(orders.tolist(), placed, strict=True))
    found: list[Passages | None] = [None] * len(parents)
    items = []
    for i, (spans, chunking) in enumerate(zip(batch.cuts, batch.chunkings, strict=True)):
        if spans is None or chunking is None:
            continue
        own = list(itertools.islice(left, len(spans) - 1))
        found[i] = Passages(chunking, tuple(order for order, _ in own), tuple(spans))
        for index, (order, row) in enumerate(own, 1):
            key = layout.record_key(entry.number, order)
            body = record_layout.pack_part(parents[i], index, *spans[index])
            items.append((key, record_layout.pack_record(key, row, body)))
    txn.put_many("records", items)
    state.next_order += total
    state.passages += total
    catalog.raise_format(txn)
    return found


def _replace(
    txn: Transaction,
    entry: Entry,
    state: State,
    writer: IndexedRows,
    old: list[Stored],
    batch: Batch,
) -> list[int]:
    """Write records anew in their old places; one whose vector changed gets a new row.

    One that got a vector loses the passages that it had.

    Returns:
        The rows that stay, of records that have other metadata now.
    """
    places, held = [record.row for record in old], [record.passages for record in old]
    if batch.packed is not None:
        current, leading = np.array(places, np.intp), _leading(batch.places)
        fresh, packed = batch.places[leading], batch.packed.take(leading)
        given = current[fresh]
        found = rows.gather_packed(txn, entry.number, state, entry.form, given)
        changed = differ(found.packed, packed)
        if changed.any():
            moved = writer.add(packed.take(changed), found.orders[changed])
            writer.kill(given[changed])
            current[fresh[changed]] = moved
            places = current.tolist()
        for place in fresh.tolist():
            digests.drop(txn, digests.keys_of(txn, entry, old[place]))
            if held[place] is not None:
                parts = records.parts(txn, entry.number, old[place])
                removal.drop_passages(txn, entry, state, writer, parts)
                held[place] = None
        parents = [record.order for record in old]
        _remember(txn, entry, state, batch, np.array(parents, np.uint64))
        stored = _store_passages(txn, entry, state, writer, batch, parents)
        held = [one or other for one, other in zip(stored, held, strict=True)]
    staying = list[int]()
    for place, (record, metadata) in enumerate(zip(old, batch.metadata, strict=True)):
        if metadata is not record.metadata:
            staying += [record.row] * (places[place] == record.row)
            if held[place] is record.passages:
                staying += [part.row for part in records.parts(txn, entry.number, record)]
    contents = zip((record.id for record in old), batch.texts, batch.metadata, held, strict=True)
    items = [
        _record_item(entry, record.order, row, *content)
        for record, row, content in zip(old, places, contents, strict=True)
    ]
    txn.put_many("records", sorted(items))
    state.expiring -= sum(record.expires_at is not None for record in old)
    _count_expiring(txn, state, batch.metadata)
    return staying
