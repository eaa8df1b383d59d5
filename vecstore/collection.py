"""What do users do with a collection? Every method is thin: check, encode, one transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import EllipsisType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from vecstore import (
    arguments,
    audit,
    bars,
    batches,
    catalog,
    explain,
    fields,
    filters,
    ingest,
    layout,
    maintenance,
    removal,
    rows,
    space,
)
from vecstore.ann.index import Kind
from vecstore.arguments import Where
from vecstore.batches import Batch, Expiry, Group
from vecstore.behind import behind
from vecstore.contents import DEFAULT_INCLUDE, Contents
from vecstore.errors import UsageError
from vecstore.hits import Audit, Deleted, Explanation, Hit, Hits
from vecstore.planner import Recall
from vecstore.spec import Chunking, Id, Include, check_id, show
from vecstore.store import Transaction
from vecstore.vectors import Bits, Vectors, as_queries, usual_query

DEFAULT_RECALL = 0.95
BATCH = 1000

T = TypeVar("T")


class Collection(Contents):
    """Records of one kind: vectors of one dimension under one metric. Made by `db.collection`.

    Texts are embedded by the collection's encoder, outside any transaction. Every method that
    writes is one transaction: it happens whole or not at all.
    """

    def stats(self) -> dict[str, Any]:
        """Return counts and sizes: records, their vectors, dead rows, bytes, the spec, the index.

        "vectors" are more than "records" where these have passages. "expired" records count among
        them until they are purged.

        Of the index: the kind that is wanted ("index"), [dims, bits] of its short and of its fine
        codes ("codes"), how many principal directions it keeps ("directions"; codes of more dims
        are of the vectors' own numbers), "lists", how many rows there were when it was trained
        ("trained_rows"), how many are in none of the lists ("tail_rows"), and the bytes of their
        codes ("index_bytes"); zeros while there is none. Of binary vectors "lists" are the bands,
        "trained_rows" the rows in buckets, "tail_rows" the others, "index_bytes" what buckets take.

        "space" is what the file gives to the vectors ("full"), to those that a flat index keeps as
        bytes ("rounded"), to the codes in lists ("lists") and to those in none ("tail"): the bytes
        of the values, dead rows too, and the bytes of their pages that are left over ("unused").
        """
        with self._source.reading() as reader:
            entry = self._entry(reader)
            state = catalog.state(reader, entry.number)
            blocks = int(np.count_nonzero(rows.live(reader, entry.number, state)))
            found = explain.stats(reader, entry, state)
            taken = space.tiers(reader, entry, state)
            living = fields.count(reader, entry, state, None)
        held = blocks * layout.BLOCK_ROWS
        if state.open_block != layout.NO_BLOCK:
            held -= layout.BLOCK_ROWS - state.open_rows
        return {
            "tiers": [],
            **entry.spec.to_dict(),
            "records": state.records,
            "expired": state.records - living,
            "vectors": state.rows,
            "dead_rows": held - state.rows,
            "blocks": blocks,
            "vector_bytes": state.rows * entry.form.row_bytes,
            **found,
            "space": taken,
        }

    # Writing

    def add(
        self,
        texts: str | Sequence[str | None] | None = None,
        *,
        vectors: ArrayLike | None = None,
        ids: Id | Iterable[Id | None] | None = None,
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        expires_at: Expiry | Sequence[Expiry] = None,
        chunk: bool | Chunking = False,
        progress: bool | None = None,
        timeout: float | None = None,
    ) -> list[Id]:
        """Store new records and return their ids.

        Give parallel sequences, or the bare values of one record.

        Args:
            texts: What to embed and keep; needs an encoder, unless `vectors` are given too.
            vectors: Numbers of shape (n, dim), or (dim,) for one record. Of a binary collection
                packed bits, uint8 of shape (n, dim / 8), or booleans of shape (n, dim).
            ids: str or int of 64 bits; None makes ids that sort by time.
            metadata: Dicts of any JSON values, datetimes and bytes, or None.
            expires_at: When records expire: a datetime for all, or a sequence of one, or None, for
                each; one without a time zone is taken as UTC. From then on they are not found any
                more, by whatever way, and their ids are free; `optimize`, `compact` or a later
                write takes them out of the file.
            chunk: True, or a `Chunking`, to cut long texts into passages, each with a vector of
                its own: the best of them says how near the record is. Without, what an encoder
                does not read of a text is not found.
            progress: Show on stderr how many texts are embedded, how fast, and the time left; by
                default for many, if that is a terminal.
            timeout: Seconds to wait for the right to write.

        Raises:
            AlreadyExistsError: An id exists; nothing was stored.
            UsageError, VectorError, EncoderError, StoreError: Nothing was stored.
        """
        batch = batches.prepare(self._declared, texts, vectors, ids, metadata, chunk, expires_at)
        self._check_new(batch)
        return self._store(ingest.add, batch, timeout, progress)

    def upsert(
        self,
        texts: str | Sequence[str | None] | None = None,
        *,
        vectors: ArrayLike | None = None,
        ids: Id | Iterable[Id | None] | None = None,
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        expires_at: Expiry | Sequence[Expiry] = None,
        chunk: bool | Chunking = False,
        progress: bool | None = None,
        timeout: float | None = None,
    ) -> list[Id]:
        """Store records, replacing those whose ids exist; arguments as in `add`.

        A replaced record loses its former text, passages and metadata, and keeps its place in the
        order.
        """
        batch = batches.prepare(self._declared, texts, vectors, ids, metadata, chunk, expires_at)
        return self._store(ingest.upsert, batch, timeout, progress)

    def update(
        self,
        ids: Id | Sequence[Id],
        *,
        text: str | Sequence[str | None] | None = None,
        vector: ArrayLike | None = None,
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        expires_at: Expiry | EllipsisType | Sequence[Expiry | EllipsisType] = ...,
        chunk: bool | Chunking | None = None,
        timeout: float | None = None,
    ) -> None:
        """Change parts of existing records: one id and bare values, or parallel sequences.

        Metadata is merged at its top level: fields not named stay. A new text is embedded anew,
        unless a vector comes with it, and cut into passages as `chunk` says; by default as the
        former text was. A vector takes the place of those of all passages. With `expires_at=None`
        a record no longer expires; `...` leaves that as it is.

        Raises:
            NotFoundError: An id does not exist; nothing was changed.
        """
        batch = batches.prepare_update(
            self._declared, ids, text, vector, metadata, chunk, expires_at
        )
        if batch.packed is None and any(item is not None for item in batch.texts):
            with self._source.reading() as reader:
                known = ingest.chunkings(reader, self._entry(reader), batch.ids)
            if chunk is None:
                batch = replace(batch, chunkings=known)
        self._store(ingest.update, batch, timeout)

    def delete(
        self,
        ids: Id | Iterable[Id] | None = None,
        *,
        where: Where = None,
        secure: bool = False,
        timeout: float | None = None,
    ) -> Deleted:
        """Delete records by id, by filter, or those of the ids that satisfy the filter.

        Ids that do not exist are passed over. `where={}` deletes every record.

        Args:
            ids: One id, or several.
            where: A filter.
            secure: Then rewrite the file, as `db.compact(secure=True)` does, so that no byte of
                these texts, metadata, vectors and codes is left in it.
            timeout: Seconds to wait for the right to write.

        Returns:
            How many records were deleted; `given_back` are bytes by which `secure` made the file
            shorter.

        Raises:
            LockedError: Another process has the file open, or a snapshot of this one does not
                end, and `secure` was given; if this is found before anything was deleted,
                nothing is.
            StoreError: Inside `db.transaction()`, and `secure` was given.
        """
        if ids is None and where is None:
            raise UsageError("say what to delete: ids, where, or where={} for every record")
        listed = None if ids is None else [check_id(value) for value in arguments.listed(ids)]
        parsed = filters.parse(where)
        if secure:
            self._outside("rewrites the file")
            self._source.check_alone(timeout)
        before = self._source.file_size() if secure else 0
        count = self._write(lambda txn, entry: removal.delete(txn, entry, listed, parsed), timeout)
        if not secure:
            return Deleted(count)
        self._source.compact(secure=True, timeout=timeout)
        return Deleted(count, before - self._source.file_size())

    def add_records(
        self,
        items: Iterable[Mapping[str, Any]],
        *,
        upsert: bool = False,
        chunk: bool | Chunking = False,
        batch: int = BATCH,
        progress: bool | None = None,
        timeout: float | None = None,
    ) -> int:
        """Store a stream of dicts of any length in bounded memory.

        Each dict has `text` or `vector` or both, and optionally `id`, `metadata` and `expires_at`.
        Every `batch` records are one transaction; should one fail, those before it are stored, and
        a note on the exception says how many. While some are written, in a thread of their own,
        the next are embedded; not inside `db.transaction()`.

        Args:
            items: The dicts.
            upsert: Replace records whose ids exist, instead of raising AlreadyExistsError.
            chunk: As in `add`, for records that come without a vector.
            batch: Records per transaction.
            progress: Show a progress bar on stderr; by default if that is a terminal.
            timeout: Seconds to wait for the right to write, each time.

        Returns:
            How many records were stored.
        """
        size = arguments.whole(batch, "batch", 1)
        if not isinstance(items, Iterable):
            raise UsageError(f"items is {type(items).__name__} {show(items)}, not dicts")
        total = len(items) if isinstance(items, Sequence) else None
        groups = batches.groups(items, size)
        stored = 0
        with bars.counting(progress, total) as advance:
            try:
                for count in self._store_groups(groups, upsert, chunk, timeout):
                    stored += count
                    advance(count)
            except Exception as error:
                error.add_note(
                    f"the first {stored} records of the stream are stored, and none after them"
                )
                raise
        return stored

    def _check_new(self, batch: Batch) -> None:
        """Embedding is slow: find out before whether the ids are free."""
        if batch.packed is None:
            with self._source.reading() as reader:
                ingest.check_new(reader, self._entry(reader), batch.ids)

    def _streamed(
        self, groups: Iterable[Group], upsert: bool, chunk: bool | Chunking
    ) -> Iterator[Batch]:
        """Batches ready to be written; the one before may not be there yet when one is made."""
        before: Batch | None = None
        for group in groups:
            cut = chunk if group.vectors is None else False
            batch = batches.prepare(
                self._declared,
                group.texts,
                group.vectors,
                group.ids,
                group.metadata,
                cut,
                group.expires,
            )
            if not upsert:
                self._check_new(batch)
            known = ingest.known_in(before, self._known)
            before = ingest.encode(self._declared, batch, self._encoder, known)
            yield before

    def _store_groups(
        self,
        groups: Iterable[Group],
        upsert: bool,
        chunk: bool | Chunking,
        timeout: float | None = None,
    ) -> Iterator[int]:
        """Store groups, each in a transaction of its own, and yield how many records each has."""
        ready = self._streamed(groups, upsert, chunk)
        write = ingest.upsert if upsert else ingest.add

        def store(batch: Batch) -> int:
            self._write(lambda txn, entry: write(txn, entry, batch), timeout)
            return len(batch.ids)

        with self._source.reading() as reader:
            # A transaction belongs to its thread.
            alone = isinstance(reader, Transaction) or self._declared.encoder is None
        return map(store, ready) if alone else behind(store, ready)

    def search(
        self,
        query: str | ArrayLike,
        k: int = 10,
        *,
        where: Where = None,
        min_score: float | None = None,
        offset: int = 0,
        after: Hit | None = None,
        include: Iterable[Include] = DEFAULT_INCLUDE,
        recall: Recall = DEFAULT_RECALL,
        dims: int | None = None,
        group_by: str | None = None,
        group_size: int = 1,
    ) -> Hits:
        """Return the k records nearest to a text or a vector, best first.

        Equal scores stand in the order in which the records were first stored. Every hit
        satisfies `where`, and there are k of them whenever k records do.

        Args:
            query: A text, or a vector of shape (dim,); of a binary collection uint8 of shape
                (dim / 8,) or booleans of shape (dim,).
            k: How many hits.
            where: A filter: `{"year": {"$gte": 2020}}` or `F("year") >= 2020`.
            min_score: Leave out hits with a smaller score.
            offset: Pass over this many of the best hits.
            after: Go on behind this hit of the same query.
            include: Which of "text", "metadata" and "vector" the hits carry.
            recall: The share of the true neighbours wanted, or "exact".
            dims: Compare only this many leading numbers (or bits), under cosine as vectors of
                their own; the query may be as short. A vector that begins with so many zeros has
                a cosine of 0.
            group_by: Return the best hits of the k best groups: of records with the same values in
                this field ("doc", "author.name", "$text"). A record without the field is a group of
                its own. `offset` counts groups; the hits of a group stand together.
            group_size: The most hits of a group.
        """
        request = arguments.request(
            k, where, min_score, offset, after, include, recall, self._prefix(dims)
        )
        grouping = arguments.grouping(group_by, group_size, request)
        if grouping is not None:
            return self._search_groups(self._query(query, request), request, grouping)[0]
        usual = None if request.dims else usual_query(query, self._declared)
        if usual is not None:
            return self._search_usual(query, usual, request)
        return self._search(self._query(query, request), request)[0]

    def search_many(
        self,
        queries: Sequence[str] | ArrayLike,
        k: int = 10,
        *,
        where: Where = None,
        min_score: float | None = None,
        offset: int = 0,
        include: Iterable[Include] = DEFAULT_INCLUDE,
        recall: Recall = DEFAULT_RECALL,
        dims: int | None = None,
        group_by: str | None = None,
        group_size: int = 1,
        threads: int | None = None,
    ) -> list[Hits]:
        """Return one Hits per query, all from the same moment; options as in `search`.

        Args:
            queries: Texts, or vectors of shape (m, dim); of a binary collection as in `search`.
            k: How many hits each.
            where: A filter.
            min_score: Leave out hits with a smaller score.
            offset: Pass over this many of the best hits.
            include: Which of "text", "metadata" and "vector" the hits carry.
            recall: The share of the true neighbours wanted, or "exact".
            dims: Compare only this many leading numbers (or bits).
            group_by: As in `search`, and so is `group_size`.
            group_size: The most hits of a group.
            threads: How many threads share the queries where an index answers; None for as many
                as there are processors that the process may use.
        """
        request = arguments.request(
            k,
            where,
            min_score,
            offset,
            None,
            include,
            recall,
            self._prefix(dims),
            arguments.check_threads(threads),
        )
        if isinstance(queries, str):
            raise UsageError("search_many takes several queries; for one text use search")
        if isinstance(queries, Sequence) and any(isinstance(query, str) for query in queries):
            vectors: Vectors | Bits = self._embed(list(queries))
        elif isinstance(queries, Sequence) and len(queries) == 0:
            return []
        else:
            vectors = as_queries(queries, self._declared, request.dims)
        checked = self._checked(vectors, request)
        grouping = arguments.grouping(group_by, group_size, request)
        if grouping is not None:
            return self._search_groups(checked, request, grouping)
        return self._search(checked, request)

    # The index

    def explain(
        self,
        query: str | ArrayLike,
        k: int = 10,
        *,
        where: Where = None,
        min_score: float | None = None,
        offset: int = 0,
        after: Hit | None = None,
        include: Iterable[Include] = DEFAULT_INCLUDE,
        recall: Recall = DEFAULT_RECALL,
        dims: int | None = None,
    ) -> Explanation:
        """Search as `search` does, with the same arguments, and return how it was done.

        Returns:
            The plan and its reason, what was scanned and compared, the milliseconds of each
            stage, and the hits. It prints as a table.
        """
        request = arguments.request(
            k, where, min_score, offset, after, include, recall, self._prefix(dims)
        )
        begun = time.perf_counter()
        vectors = self._query(query, request)
        spent = 1000 * (time.perf_counter() - begun) if isinstance(query, str) else None
        with self._source.reading() as reader:
            return explain.run(reader, self._entry(reader), vectors, request, spent)

    def audit(
        self,
        k: int = 10,
        sample: int = 200,
        *,
        recall: float = DEFAULT_RECALL,
        where: Where = None,
        recalibrate: bool = False,
        progress: bool | None = None,
        timeout: float | None = None,
    ) -> Audit:
        """Measure the recall of searches now, by comparing them with exact ones.

        The queries are stored records, whose neighbours are then other records, and the vectors
        that were searched for lately in this process. The exact answers take about as long as that
        many searches with `recall="exact"`.

        Args:
            k: How many neighbours of each query.
            sample: How many records to ask for; all of them if there are fewer.
            recall: The recall that is wanted of the searches, over 0 and at most 1.
            where: Ask for, and among, the records that satisfy a filter.
            recalibrate: First measure anew how far searches have to go, and store that.
            progress: Show a progress bar on stderr; by default if that is a terminal.
            timeout: Seconds to wait for the right to write, where `recalibrate` is given.

        Returns:
            The mean recall, a lower bound of it, and whether it reaches what is wanted.

        Raises:
            ReadOnlyError: The file is read-only, and `recalibrate` was given.
            StoreError: Inside `db.transaction()`, and `recalibrate` was given.
        """
        arguments.check_share(recall)
        size = arguments.whole(sample, "sample", 1)
        request = arguments.request(k, where, None, 0, None, (), recall, None)
        real = self._recent_queries()
        with bars.sharing(progress, "measuring") as tell:
            if recalibrate:
                entry = self._outside("measures in a snapshot and then writes")
                maintenance.calibrate(self._source, entry, real=real, timeout=timeout)
            with self._source.reading() as reader:
                return audit.run(reader, self._entry(reader), request, size, real, tell)

    def optimize(
        self, *, progress: bool | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Bring the collection and its index into their best state, which may take long.

        Records that have expired leave the file, sparse blocks are repacked, all rows get into
        lists, the lists are trained anew if the collection has changed much since, and how far
        searches have to go is measured anew, also with the queries that were asked lately in this
        process. Others may read and write meanwhile. If much of the file is free then, and nobody
        else uses it, it is compacted, for which all others wait.

        Args:
            progress: Show a progress bar on stderr; by default if that is a terminal.
            timeout: Seconds to wait for the right to write, each time.

        Returns:
            "trained" and "calibrated" (whether that was done), "lists" (how many there are),
            "given_back" (bytes by which the file became shorter) and "seconds".

        Raises:
            ReadOnlyError: The file, or this view of it, only reads.
            StoreError: Inside `db.transaction()`.
        """
        begun = time.perf_counter()
        entry, real = self._outside("optimizes in steps"), self._recent_queries()
        with bars.sharing(progress, "optimizing") as tell:
            removal.purge(self._source, entry.number, entry.uid, timeout)
            report = maintenance.optimize(
                self._source, entry.number, entry.uid, real=real, progress=tell, timeout=timeout
            )
        freed = self._source.give_back()
        return {**report, "given_back": freed, "seconds": time.perf_counter() - begun}

    def reindex(
        self, kind: Kind, *, progress: bool | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Make the index anew from the records, as one of a kind; the records stay as they are.

        What index there is answers until the new one is written. It is not read, so this mends one
        that is damaged.

        Args:
            kind: "auto", "flat", "hash" or "ivf", as for `db.collection`.
            progress: Show a progress bar on stderr; by default if that is a terminal.
            timeout: Seconds to wait for the right to write.

        Returns:
            What `optimize` returns.

        Raises:
            SpecError: There is no such kind, or not under this metric.
            ReadOnlyError: The file, or this view of it, only reads.
            StoreError: Inside `db.transaction()`.
        """
        maintenance.check_kind(kind, self._declared.metric)
        begun = time.perf_counter()
        entry, real = self._outside("replaces an index in steps"), self._recent_queries()
        with bars.sharing(progress, "indexing") as tell:
            report = maintenance.reindex(
                self._source,
                entry.number,
                entry.uid,
                kind,
                real=real,
                progress=tell,
                timeout=timeout,
            )
        return {**report, "seconds": time.perf_counter() - begun}
