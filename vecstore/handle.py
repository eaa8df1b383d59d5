"""What is a handle of a collection? Where it reads, its declaration, its encoder, its queries."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from vecstore import (
    arguments,
    attached,
    catalog,
    digests,
    fields,
    ingest,
    maintenance,
    records,
    removal,
    rows,
    search,
)
from vecstore.batches import Batch
from vecstore.catalog import Entry
from vecstore.digests import Known
from vecstore.encoders import Encoder
from vecstore.encoders.adapters import Adapter
from vecstore.errors import (
    EncoderMismatchError,
    NotFoundError,
    StoreError,
    UsageError,
    VecstoreError,
)
from vecstore.grouping import Grouping
from vecstore.grouping import run as run_grouped
from vecstore.hits import Hit, Hits, Passage, Record
from vecstore.recent import Recent
from vecstore.records import Stored
from vecstore.search import Request
from vecstore.spec import CollectionSpec, Id, Include, check_id, show
from vecstore.store import Reader, Transaction
from vecstore.vectors import (
    Bits,
    Vectors,
    as_query,
    check_lengths,
    prefixes,
    unpack,
)

T = TypeVar("T")


class Source(Protocol):
    """Where a collection reads and writes: a database, or a view of one."""

    def reading(self) -> contextlib.AbstractContextManager[Reader]:
        """A transaction to read in."""

    def writing(self, work: Callable[[Transaction], T], timeout: float | None) -> T:
        """Run work in a write transaction and commit it."""

    def encoder(self, reader: Reader, entry: Entry) -> Encoder:
        """The encoder given for a collection, or else the bundled one, with its adapter."""

    def wrote(self, number: int, uid: bytes, timeout: float | None) -> None:
        """Take note that a collection was written to, to keep its index up to date."""

    def recent(self, uid: bytes) -> Recent | None:
        """The sample of a collection's recent queries; None if they are not to be remembered."""

    def file_size(self) -> int:
        """Bytes of the file."""

    def check_alone(self, timeout: float | None) -> None:
        """Raise LockedError if another process has the file open, or somebody here reads it."""

    def compact(self, *, secure: bool = False, timeout: float | None = None) -> int:
        """Rewrite the file; return the bytes given back."""

    def give_back(self) -> int:
        """Rewrite the file if more than half of it is free, and nobody else uses it."""


class Handle:
    """A collection that stays the same one when it is renamed, and no other when it is dropped."""

    def __init__(self, source: Source, entry: Entry) -> None:
        self._source = source
        self._number = entry.number
        self._uid = entry.uid
        # All of a spec but names and fingerprint is fixed for the life of a collection.
        self._declared = entry.spec

    @property
    def spec(self) -> CollectionSpec:
        """The collection's declaration."""
        with self._source.reading() as reader:
            return self._entry(reader).spec

    @property
    def name(self) -> str:
        """The collection's name."""
        return self.spec.name

    @property
    def encoder(self) -> Encoder | None:
        """The encoder of the collection's texts; None where it holds bare vectors.

        Raises:
            EncoderMismatchError: It was made with another encoder than the one that was given.
        """
        return None if self._declared.encoder is None else self._encoder()

    def __repr__(self) -> str:
        try:
            spec = self.spec
        except VecstoreError as error:
            return f"<Collection that cannot be read: {error}>"
        encoder = "" if spec.encoder is None else f", encoder={spec.encoder!r}"
        return f"<Collection {spec.name!r} dim={spec.dim} metric={spec.metric!r}{encoder}>"

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that is kept with the collection, or None."""
        with self._source.reading() as reader:
            kept = attached.read(reader, self._entry(reader).number)
            return None if kept is None else kept.adapter

    def adapt(self, adapter: Adapter | None, *, timeout: float | None = None) -> None:
        """Map the queries of a collection with text by an adapter; what is stored stays as it is.

        The adapter comes behind what the collection has; it is kept in the file and is part of the
        encoder's fingerprint. Who passes the encoder to `db.collection` passes it without.

        Args:
            adapter: One that leaves documents alone, as `fit_adapter` makes them; None to take
                away what was put here.
            timeout: Seconds to wait for the right to write.

        Raises:
            UsageError: It maps documents, or takes vectors of another length; or the collection has
                no encoder, or keeps a part of its encoder's vectors only.
        """
        attached.check_queries(self._declared, adapter, self._encoder().dim)

        def work(txn: Transaction) -> None:
            attached.change(txn, self._entry(txn), adapter)

        self._source.writing(work, timeout)

    def sample(self, count: int, *, seed: int = 0) -> Vectors | Bits:
        """Return the vectors of at most `count` records drawn at random.

        Returns:
            float32 (n, dim), as they were given; uint8 (n, dim / 8) under hamming.
        """
        wanted = arguments.whole(count, "count", 1)
        with self._source.reading() as reader:
            entry = self._entry(reader)
            state = catalog.state(reader, entry.number)
            members = rows.members(fields.resolve(reader, entry, state, None).words)
            picked = np.random.default_rng(seed).permutation(members)[:wanted]
            found = rows.gather_packed(reader, entry.number, state, entry.form, np.sort(picked))
            return unpack(found.packed, entry.spec)

    def _entry(self, reader: Reader) -> Entry:
        return catalog.read(reader, self._number, self._uid)

    def _outside(self, what: str) -> Entry:
        """The entry; StoreError inside a transaction, which sees no snapshot."""
        with self._source.reading() as reader:
            if isinstance(reader, Transaction):
                raise StoreError(
                    f"this thread is inside db.transaction(), and this call {what}, each a"
                    " transaction of its own; end the transaction first"
                )
            return self._entry(reader)

    def _recent_queries(self) -> Vectors | None:
        recent = self._source.recent(self._uid)
        return None if recent is None else recent.queries()

    def _encoder(self) -> Encoder:
        with self._source.reading() as reader:
            entry = self._entry(reader)
            spec = entry.spec
            if spec.encoder is None:
                raise UsageError(
                    f"collection {spec.name!r} holds bare vectors (dim={spec.dim}) and has no"
                    " encoder for texts: give vectors"
                )
            encoder = self._source.encoder(reader, entry)
        if encoder.fingerprint != spec.fingerprint:
            raise EncoderMismatchError(
                f"collection {spec.name!r} was made with encoder {spec.encoder!r}"
                f" ({spec.fingerprint}), not with {encoder.name!r} ({encoder.fingerprint}); pass"
                " its own to db.collection(name, encoder=...)"
            )
        return encoder

    def _embed(self, texts: list[Any]) -> Vectors:
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise UsageError(f"query {i} is {show(text)}: it must be a text that is not empty")
        return ingest.embed(self._declared, texts, self._encoder(), "query")

    def _prefix(self, dims: int | None) -> int | None:
        return None if dims is None else self._declared.check_dims(arguments.whole(dims, "dims", 1))

    def _query(self, query: str | ArrayLike, request: Request) -> Vectors | Bits:
        """One query as an array of one: the part of it that is compared."""
        if isinstance(query, str):
            return self._checked(self._embed([query]), request)
        return self._checked(as_query(query, self._declared, request.dims), request)

    def _checked(self, vectors: Vectors | Bits, request: Request) -> Vectors | Bits:
        """The part of queries that is compared, which the metric can compare."""
        vectors = prefixes(vectors, request.dims)
        if self._declared.metric != "hamming":
            check_lengths(vectors, self._declared.metric, "query")
        return vectors

    def _search_usual(self, query: str | ArrayLike, usual: Vectors, request: Request) -> Hits:
        """Search for a query whose numbers were not checked, of which `usual` is a view.

        The index finds out what cannot be compared: to look for that before costs a tenth of a
        search. Where it cannot answer, the query takes the long way, which may refuse it.
        """
        with self._source.reading() as reader:
            entry = self._entry(reader)
            asked: Vectors | Bits = usual
            found = search.run_usual(reader, entry, usual, request)
            if found is None:
                asked = self._query(query, request)
                (found,) = search.run(reader, entry, asked, request)
        # As in `_search`.
        self._remember(asked, request)
        return found

    def _search_groups(
        self, vectors: Vectors | Bits, request: Request, grouping: Grouping
    ) -> list[Hits]:
        with self._source.reading() as reader:
            found = run_grouped(reader, self._entry(reader), vectors, request, grouping)
        # As in `_search`.
        self._remember(vectors, request)
        return found

    def _search(self, vectors: Vectors | Bits, request: Request) -> list[Hits]:
        with self._source.reading() as reader:
            found = search.run(reader, self._entry(reader), vectors, request)
        # Not before: in a forked child a thread that is not there may hold the lock of the sample.
        self._remember(vectors, request)
        return found

    def _remember(self, vectors: Vectors | Bits, request: Request) -> None:
        """Take queries into the sample; no index answers with parts of vectors, nor with bits."""
        if request.dims is None and self._declared.metric != "hamming":
            recent = self._source.recent(self._uid)
            if recent is not None:
                recent.add(vectors)

    # Writing

    def _write(self, change: Callable[[Transaction, Entry], T], timeout: float | None) -> T:
        """Change the collection in one transaction, and let its index be kept up to date."""

        def work(txn: Transaction) -> tuple[T, bool]:
            result = change(txn, self._entry(txn))
            state = catalog.state(txn, self._number)
            return result, maintenance.may_be_due(state) or removal.may_be_due(txn, state)

        result, due = self._source.writing(work, timeout)
        if due:
            self._source.wrote(self._number, self._uid, timeout)
        return result

    def _store(
        self,
        write: Callable[[Transaction, Entry, Batch], None],
        batch: Batch,
        timeout: float | None,
        progress: bool | None = False,
    ) -> list[Id]:
        ready = ingest.encode(self._declared, batch, self._encoder, self._known, progress)
        self._write(lambda txn, entry: write(txn, entry, ready), timeout)
        return ready.ids

    def _known(self, found: list[bytes], texts: list[str]) -> Known:
        """The vectors that the collection has of texts, by their digests."""
        with self._source.reading() as reader:
            return digests.find(reader, self._entry(reader), found, texts)

    def _order_of(self, after: Id | Record | Hit | None) -> int:
        if after is None:
            return -1
        if isinstance(after, Record | Hit):
            return after.order
        with self._source.reading() as reader:
            order = records.find(reader, self._entry(reader).number, check_id(after))
        if order is None:
            raise NotFoundError(
                f"after={after!r} is not an id of this collection; if its record was deleted, pass"
                " the Record that the scan gave instead of its id"
            )
        return order


def shown(
    reader: Reader, entry: Entry, found: list[Stored], wanted: frozenset[Include]
) -> list[Record]:
    """Stored records as users get them."""
    vectors: Iterable[Any] = [None] * len(found)
    if "vector" in wanted and found:
        vectors = _vectors(reader, entry, found)
    return [
        Record(
            id=item.id,
            text=item.text if "text" in wanted else None,
            metadata=metadata if "metadata" in wanted else None,
            vector=vector,
            passages=_passages(item, wanted),
            expires_at=expires_at,
            order=item.order,
        )
        for item, vector in zip(found, vectors, strict=True)
        for metadata, expires_at in (records.split(item.metadata),)
    ]


def _passages(item: Stored, wanted: frozenset[Include]) -> tuple[Passage, ...]:
    spans = () if item.passages is None else item.passages.spans
    text = item.text if "text" in wanted else None
    return tuple(Passage.of(text, index, *span) for index, span in enumerate(spans))


def _vectors(reader: Reader, entry: Entry, found: list[Stored]) -> list[Any]:
    """The vector of each record, or of one that has passages those of all of them."""
    state = catalog.state(reader, entry.number)
    places = [[item.row] for item in found]
    for held, item in zip(places, found, strict=True):
        held += [part.row for part in records.parts(reader, entry.number, item)]
    flat = np.array(list(itertools.chain(*places)), np.intp)
    stored = rows.gather_packed(reader, entry.number, state, entry.form, flat)
    vectors, at = unpack(stored.packed, entry.spec), 0
    made = []
    for held, item in zip(places, found, strict=True):
        part = vectors[at : at + len(held)]
        # A copy: a record must not keep all others' vectors.
        made.append(part[0] if item.passages is None else part.copy())
        at += len(held)
    return made
