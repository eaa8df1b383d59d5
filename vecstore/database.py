"""What do users do with a file? Open it, name collections, hold transactions, copy it."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from vecstore import attached, catalog, check, declared, encoders, erasure, maintenance, removal
from vecstore import repair as mending
from vecstore.ann.index import Kind
from vecstore.catalog import Entry
from vecstore.check import Problem
from vecstore.collection import Collection
from vecstore.encoders import Encoder
from vecstore.errors import (
    AlreadyExistsError,
    CorruptionError,
    NotFoundError,
    ReadOnlyError,
    SpecError,
    StoreError,
    UsageError,
)
from vecstore.recent import Recent, RecentOf
from vecstore.spec import CollectionSpec, Metric, Precision, check_name
from vecstore.store import (
    CLOSE_TIMEOUT,
    DEFAULT_TIMEOUT,
    Reader,
    Store,
    Transaction,
    path_name,
)
from vecstore.view import View

# Seconds for which a rewriting that nobody asked for waits for others, and makes them wait.
PATIENCE = 0.1

T = TypeVar("T")
EncoderLike = Encoder | str | os.PathLike[str] | Callable[[list[str]], Any]


def open(
    path: str | os.PathLike[str],
    *,
    read_only: bool = False,
    durable: bool = True,
    timeout: float = DEFAULT_TIMEOUT,
    remember_queries: bool = True,
    max_snapshot_age: float | None = None,
    verify: bool = False,
) -> Database:
    """Open a database file, or make it if it does not exist.

    Args:
        path: The file; ":memory:" for a database that lives as long as its handle.
        read_only: Never write to the file; it must exist.
        durable: Wait for the disk at each commit. Without, a killed process loses nothing, but a
            power cut may damage the file, unless it was closed, or nothing was written since the
            last `db.sync()`. The next opening finds out by reading all of it.
        timeout: Seconds to wait for locks, where a call does not say otherwise.
        remember_queries: Keep a sample of 256 query vectors of each collection in this process's
            memory, for `optimize` and `audit` to measure with; it is never written anywhere.
        max_snapshot_age: Seconds after which a view made by `db.snapshot()` is ended, whoever holds
            it: as long as it is open, no space that changes give up can be used again, and a file
            in use grows and grows. By default views last until they are closed.
        verify: Trust nothing of the file before all of it was read and found sound: the pages of
            LMDB without LMDB, then what `check` verifies. For files from others. What somebody
            changes in the file afterwards is not noticed: give it a folder of your own first.

    Raises:
        FormatError: Not a vecstore file, or one of another format version.
        CorruptionError: The file is cut short, or was damaged by a power cut; or with `verify`,
            something in it is not as it must be: the message names the first problems, and how
            many there are.
        LockedError: This process has the file open already, or another one compacts it.
        StoreError: The path cannot be opened.
    """
    oldest = None if max_snapshot_age is None else _positive_seconds(max_snapshot_age)
    store = Store(path, read_only=read_only, durable=durable, timeout=timeout, verify=verify)
    database = Database(store, remember_queries=remember_queries, max_snapshot_age=oldest)
    if verify or store.mark.in_doubt:
        purpose = f"trust {database.path}"
        if store.mark.in_doubt:
            purpose = (
                f"open {database.path}: the system went down before what was written with"
                " durable=False was on the disk; restore a backup, or salvage what is there, for"
            )
        try:
            _require_sound(database.check(), purpose)
            if store.mark.in_doubt:
                store.trust()
        except BaseException:
            database.close()
            raise
    return database


class _Thread(threading.local):
    """What a thread is in the middle of."""

    transaction: Transaction | None = None


class Database:
    """One open file; made by `vecstore.open`. Threads may share it."""

    def __init__(
        self,
        store: Store,
        *,
        remember_queries: bool = True,
        max_snapshot_age: float | None = None,
    ) -> None:
        self._store = store
        self._max_snapshot_age = max_snapshot_age
        self._views = weakref.WeakSet[View]()
        self._encoders: dict[bytes, Encoder] = {}
        self._recent = RecentOf() if remember_queries else None
        self._local = _Thread()

    # What it is

    @property
    def path(self) -> str:
        """The path of the file, or ":memory:"."""
        return ":memory:" if self._store.memory else str(self._store.path)

    @property
    def closed(self) -> bool:
        """Whether the database cannot be used any more."""
        return self._store.closed

    @property
    def read_only(self) -> bool:
        """Whether the file was opened for reading only."""
        return self._store.read_only

    def __repr__(self) -> str:
        return f"<Database {self.path!r}{' closed' if self.closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close the file; calling it again does nothing.

        Raises:
            LockedError: A snapshot or a transaction of this process did not end in time.
        """
        if self._current() is not None:
            raise StoreError("this thread is inside db.transaction(); end it before closing")
        self._store.close(timeout)

    def sync(self) -> None:
        """Make everything committed so far safe from a power cut; for `durable=False`."""
        self._store.sync()

    def stats(self) -> dict[str, Any]:
        """Return the file's path, format, sizes in bytes, and the stats of each collection.

        "views" are those of this process that are open: how many ("open"), and how many seconds
        the oldest of them is ("oldest"). "behind" is by how many commits the oldest reader of any
        process lags, which is what keeps space from being used again.
        """
        outside = self._current() is None
        one_moment = View(self, self._store.snapshot()) if outside else contextlib.nullcontext(self)
        with one_moment as view:
            return {
                "path": self.path,
                "format": self._format(),
                "file_bytes": self._store.file_size(),
                **self._store.usage(),
                "views": self._open_views(),
                "collections": {name: view.collection(name).stats() for name in view.collections()},
            }

    def _open_views(self) -> dict[str, Any]:
        ages = [view.age for view in list(self._views) if not view.ended]
        return {"open": len(ages), "oldest": max(ages, default=0.0)}

    def _format(self) -> int:
        with self.reading() as reader:
            return catalog.format_of(reader)[0]

    # Collections

    def collection(
        self,
        name: str,
        *,
        dim: int | None = None,
        metric: Metric | None = None,
        encoder: EncoderLike | None = None,
        mrl: Sequence[int] | None = None,
        precision: Precision | None = None,
        tiers: Iterable[Iterable[int]] | None = None,
        index: Kind | None = None,
        index_fields: Iterable[str] | None = None,
        skip_fields: Iterable[str] | None = None,
        timeout: float | None = None,
    ) -> Collection:
        """Return the collection of this name, made if it does not exist.

        With neither `dim` nor `encoder` a new collection takes text, embedded by the model that
        comes with vecstore; with `dim` alone it holds bare vectors; with both it holds the first
        `dim` numbers of what the encoder makes, scaled to the length of the whole, where the
        encoder was trained for that prefix. For a collection that exists, arguments are compared
        with what it was made with.

        Args:
            name: At most 255 bytes of UTF-8.
            dim: Numbers per vector, 2 to 8,192; bits, a multiple of 8, under "hamming".
            metric: "cosine" (the default), "dot", "l2", or "hamming" for binary vectors, which
                are packed: uint8 of shape (n, dim / 8), as numpy.packbits makes them.
            encoder: An `Encoder`, the name of a bundled model (such as "default/layer=4"), a folder
                with an ONNX model, or a callable. A bundled one need not be named again.
            mrl: Prefix lengths that the vectors were trained for (Matryoshka); by default those
                that the encoder declares. The index codes such prefixes where they measure well.
            precision: How vectors are stored: "float32" (the default), "float16" (half the space,
                11 bits of each number) or "int8" (a quarter, a scale and 8 bits of each number).
                What is stored is the truth that exact search and `get` go by.
            tiers: The schedule of the index, which it chooses for itself by default: (dims, bits)
                of its short codes, such as ((192, 2),), with 1, 2 or 4 bits of each of 1 to `dim`
                dims. Its fine codes are (dim, 4), which may stand behind as a second pair. Not
                under "hamming", which has no codes.
            index: How searches find rows: "auto" (the default: lists of codes once that is faster
                than comparing all), "flat" (comparing all, always), "hash" (codes of all rows in
                one list, from the first record on) or "ivf" (lists of codes, once there are 256
                rows). `collection.reindex` changes it. Under "hamming" "auto" and "flat" compare
                all, "hash" sorts rows into buckets by their bits, and "ivf" is not there.
            index_fields: The metadata fields that filters find quickly, with all below them; by
                default all. Others can be filtered by, too, which reads every record then.
            skip_fields: Instead, those that are left out: large ones that nobody filters by.
            timeout: Seconds to wait for the right to write.

        Raises:
            SpecError: The declaration is impossible, or the collection has another one.
            EncoderMismatchError: The collection was made with another encoder.
            NotFoundError: The file is read-only and has no such collection.
        """
        check_name(name)
        if index is not None:
            maintenance.check_kind(index, metric)
        given = None if encoder is None else encoders.resolve(encoder)
        asked = declared.check(dim, metric, given, mrl, precision, tiers, index_fields, skip_fields)
        with self.reading() as reader:
            entry = catalog.find(reader, name)
            if entry is None and self.read_only:
                raise catalog.missing(reader, name)
        if entry is None:
            spec = declared.new_spec(name, asked)
            entry = self.writing(lambda txn: _create(txn, spec, index, given), timeout)
        if given is not None:
            with self.reading() as reader:
                known = self._encoders.get(entry.uid)
                given = attached.complete(reader, entry, given, known)
            asked = replace(asked, encoder=given)
        declared.compare(entry.spec, asked)
        if index is not None:
            with self.reading() as reader:
                _compare_kind(entry, maintenance.kind(reader, entry.number), index)
        if given is not None:
            self._encoders[entry.uid] = given
        return Collection(self, entry)

    def collections(self) -> list[str]:
        """Return the names of the collections, sorted."""
        with self.reading() as reader:
            return catalog.names(reader)

    def __contains__(self, name: object) -> bool:
        return name in self.collections()

    def drop(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a collection with all its records; NotFoundError if there is none."""
        self.writing(lambda txn: catalog.drop(txn, name), timeout)

    def rename(self, old: str, new: str, *, timeout: float | None = None) -> Collection:
        """Give a collection another name; handles of it stay valid.

        Raises:
            NotFoundError: There is no collection `old`.
            AlreadyExistsError: There is a collection `new`.
        """
        return Collection(self, self.writing(lambda txn: catalog.rename(txn, old, new), timeout))

    # Transactions and snapshots

    @contextlib.contextmanager
    def transaction(self, *, timeout: float | None = None) -> Iterator[Self]:
        """Join several calls, over any collections, into one transaction of this thread.

        Reads of this thread see its writes; others see them after the commit at the end of the
        with statement. An exception that leaves the with statement rolls everything back; one
        that is caught inside has rolled back its own call only. Inside another transaction it is
        a part that can be rolled back alone.

        Raises:
            LockedError: Another thread or process kept the right to write for too long.
        """
        parent = self._current()
        if parent is None:
            self._store.take_writer(timeout)
            try:
                txn = self._store.begin(timeout)
            except BaseException:
                self._store.leave_writer()
                raise
        else:
            txn = self._store.begin_child(parent)
        with self._within(txn):
            yield self
        if parent is None:
            written, self._local.written = self._written(), set()
            self._tend()
            for number, uid in written:
                self.wrote(number, uid, timeout)

    def _written(self) -> set[tuple[int, bytes]]:
        """Collections that this thread's transaction wrote to."""
        written: set[tuple[int, bytes]] = getattr(self._local, "written", set())
        self._local.written = written
        return written

    def wrote(self, number: int, uid: bytes, timeout: float | None) -> None:
        """Keep the index of a collection up to date after a write; at the end of a transaction."""
        if self._current() is not None:
            self._written().add((number, uid))
            return
        # The write itself is done: what is left can be done after the next one, or never.
        with contextlib.suppress(StoreError, NotFoundError, MemoryError):
            removal.after_write(self, number, uid, timeout)
            maintenance.after_write(self, number, uid, timeout)

    @contextlib.contextmanager
    def _within(self, txn: Transaction) -> Iterator[None]:
        self._local.transaction = txn
        try:
            yield
            if txn.ended or not (txn.elsewhere or self._current() is txn):
                raise StoreError(
                    "the transactions of a thread overlapped, as those of tasks or generators may:"
                    " the last one begun must end first; nothing of this one is kept"
                )
            with self._store.growing_later():
                txn.commit()
        finally:
            if self._local.transaction is txn:
                outer = txn.parent
                while outer is not None and outer.ended:
                    outer = outer.parent
                self._local.transaction = outer
            if txn.abort() and txn.parent is None:
                self._store.leave_writer()

    def snapshot(self) -> View:
        """Return a view of this moment: reads repeat while others write. Use it with `with`.

        An open view keeps the file from reusing the space of whatever changes meanwhile. With
        `max_snapshot_age` (see `vecstore.open`) it ends by itself, and what is read of it then
        raises SnapshotExpiredError.
        """
        view = View(self, self._store.snapshot(), self._max_snapshot_age)
        self._views.add(view)
        return view

    def _current(self) -> Transaction | None:
        txn = self._local.transaction
        while txn is not None and txn.stranded:
            txn.abort()
            txn = self._local.transaction = txn.parent
        return txn

    # The whole file

    def check(self, *, repair: bool = False, timeout: float | None = None) -> list[Problem]:
        """Read everything, verify checksums and links, and return the problems found.

        With `repair`, what is derived from records and vectors is made anew where it is damaged:
        ids, counters, bitmaps, indexes, columns of fields. A collection is mended whole, in one
        transaction, or left as it is; each problem says which. Records and vectors that are damaged
        themselves cannot be mended: `vecstore.salvage` takes the others into a new file.

        Args:
            repair: Mend what can be.
            timeout: Seconds to wait for the right to write, each time, where `repair` is given.

        Raises:
            ReadOnlyError: The file is read-only, and `repair` was given.
            StoreError: Inside `db.transaction()`, and `repair` was given.
        """
        if not repair:
            with self.reading() as reader:
                return check.check(reader)
        if self._current() is not None:
            raise StoreError("this thread is inside db.transaction(); end it before repairing")
        if self.read_only:
            raise ReadOnlyError(f"{self.path} was opened with read_only=True")
        return mending.repair(self, timeout)

    def backup(self, path: str | os.PathLike[str]) -> int:
        """Write a consistent, compact copy to a new file while others go on writing.

        Returns:
            The bytes of the copy.

        Raises:
            AlreadyExistsError: There is a file at `path`.
            CorruptionError: `check` found problems; nothing was written.
        """
        target = Path(path_name(path))
        try:
            target.lstat()
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot write {target}: {error}") from error
        else:
            raise AlreadyExistsError(f"{target} exists already; a backup never overwrites")
        with self._store.snapshot() as snapshot:
            _require_sound(check.check(snapshot), "backup")
            return self._store.copy(target, snapshot)

    def compact(self, *, secure: bool = False, timeout: float | None = None) -> int:
        """Purge what has expired, repack sparse blocks and rewrite the file without its free pages.

        Args:
            secure: Let the file keep no byte of any text, metadata, vector or code that is not
                there any more: what lives with it is written anew, and then the file value by
                value. It takes a few times as long. Models of indexes, which were learned from
                many vectors, stay; `collection.reindex` makes them anew. What the disk and the
                file system keep of the former file is theirs.
            timeout: Seconds to wait for the right to write, and for snapshots to end, each time.

        Returns:
            The bytes given back.

        Raises:
            LockedError: Another process has the file open, or snapshots did not end in time.
            CorruptionError: `check` found problems; the file was not rewritten.
        """
        if self._current() is not None:
            raise StoreError("this thread is inside db.transaction(); end it before compacting")
        before = self._store.file_size()
        with self.reading() as reader:
            entries = [catalog.find(reader, name) for name in catalog.names(reader)]
        for entry in filter(None, entries):
            # Another thread may drop it meanwhile.
            with contextlib.suppress(NotFoundError):
                removal.purge(self, entry.number, entry.uid, timeout)
                while self._repack(entry, timeout):
                    pass
                if secure:
                    erasure.erase(self, entry.number, entry.uid, timeout)
        _require_sound(self.check(), "compact")
        self._store.compact(timeout, anew=secure)
        return before - self._store.file_size()

    def give_back(self) -> int:
        """Rewrite the file without its free pages, if these are many and nobody else uses it.

        Returns:
            The bytes given back; 0 if somebody reads, or has the file open, or pages are damaged.
        """
        return self._rewrite() if self._store.is_wasteful() else 0

    def _rewrite(self) -> int:
        """Rewrite the file if it is sound and nobody else uses it; return the bytes given back."""
        with contextlib.suppress(StoreError, MemoryError):
            self._store.check_alone(PATIENCE)
            # Values are copied as they are. Within a snapshot, so that nobody closes the file.
            with self._store.snapshot(PATIENCE):
                problems = self._store.damage()
            if not problems:
                return self._store.compact(PATIENCE, asked=False)
        return 0

    def _tend(self) -> None:
        """Behind a write, keep the file from growing far beyond what is in it."""
        # The write itself is done, and somebody may close the file meanwhile, or rewrite it.
        with contextlib.suppress(StoreError, OSError):
            if self._store.is_outgrown():
                self._rewrite()

    def file_size(self) -> int:
        """Bytes of the file."""
        return self._store.file_size()

    def check_alone(self, timeout: float | None) -> None:
        """Raise LockedError if another process has the file open, or somebody here reads it."""
        self._store.check_alone(timeout)

    def _repack(self, entry: Entry, timeout: float | None) -> bool:
        def work(txn: Transaction) -> bool:
            return maintenance.repack(txn, catalog.read(txn, entry.number, entry.uid))

        return self.writing(work, timeout)

    # What collections use

    def reading(self) -> contextlib.AbstractContextManager[Reader]:
        """The transaction of this thread, or a snapshot for as long as the with statement."""
        current = self._local.transaction
        if current is not None:
            current = self._current()
        return self._store.snapshot() if current is None else contextlib.nullcontext(current)

    def writing(self, work: Callable[[Transaction], T], timeout: float | None = None) -> T:
        """Run work in a transaction of its own, or as a part of this thread's transaction."""
        current = self._current()
        if current is not None:
            return self._store.write_child(current, work)
        result = self._store.write(work, timeout)
        self._tend()
        return result

    def encoder(self, reader: Reader, entry: Entry) -> Encoder:
        """The encoder given for a collection, or else the bundled one, with its adapter."""
        known = self._encoders.get(entry.uid) or attached.bundled(reader, entry)
        if known.fingerprint != entry.spec.fingerprint:
            known = self._encoders[entry.uid] = attached.renewed(reader, entry, known)
        return known

    def recent(self, uid: bytes) -> Recent | None:
        """The sample of a collection's recent queries; None if they are not to be remembered."""
        return None if self._recent is None else self._recent.of(uid)


def _positive_seconds(age: float) -> float:
    if isinstance(age, bool) or not isinstance(age, numbers.Real) or not 0 < age < math.inf:
        raise UsageError(f"max_snapshot_age={age!r} must be a number of seconds over 0, or None")
    return min(float(age), threading.TIMEOUT_MAX)


def _create(
    txn: Transaction, spec: CollectionSpec, index: Kind | None, encoder: Encoder | None
) -> Entry:
    """Make a collection, unless somebody else just did."""
    found = catalog.find(txn, spec.name)
    if found is not None:
        return found
    entry = catalog.create(txn, spec)
    attached.keep(txn, entry, encoder)
    if index is not None:
        maintenance.set_kind(txn, entry, index)
    return entry


def _compare_kind(entry: Entry, stored: Kind, asked: Kind) -> None:
    if asked != stored:
        raise SpecError(
            f"collection {entry.spec.name!r} has index={stored!r}, not {asked!r}; leave the"
            f" argument out, or change the index with collection.reindex({asked!r})"
        )


def _require_sound(problems: list[Problem], purpose: str) -> None:
    if problems:
        shown = "; ".join(map(str, problems[:3]))
        raise CorruptionError(
            f"cannot {purpose}: check found {len(problems)} problems, such as: {shown}"
        )
