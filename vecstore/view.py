"""How is a database read as it was at one moment? Views, and how they end when they are too old."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

from vecstore import catalog
from vecstore.catalog import Entry
from vecstore.collection import Collection
from vecstore.encoders import Encoder
from vecstore.errors import ClosedError, ReadOnlyError, SnapshotExpiredError, StoreError
from vecstore.recent import Recent
from vecstore.store import Reader, Snapshot, Transaction

T = TypeVar("T")


class Owner(Protocol):
    """The database of a view."""

    @property
    def closed(self) -> bool:
        """Whether the database cannot be used any more."""

    def encoder(self, reader: Reader, entry: Entry) -> Encoder:
        """The encoder that the database has for a collection."""

    def recent(self, uid: bytes) -> Recent | None:
        """The sample of recent queries that the database has of a collection."""


class View:
    """A database as it was at one moment; reads only. Made by `db.snapshot()`.

    Threads may share a view; its collections answer one call at a time.
    """

    def __init__(self, database: Owner, snapshot: Snapshot, max_age: float | None = None) -> None:
        self._database = database
        self._snapshot = snapshot
        # What expires from now on is there as long as the view.
        snapshot.now  # noqa: B018
        self._lock = threading.RLock()
        self._begun, self._max_age, self._too_old = time.monotonic(), max_age, False
        self._timer: threading.Timer | None = None
        if max_age is not None:
            self._timer = threading.Timer(max_age, _end_late, (weakref.ref(self),))
            self._timer.daemon = True
            # Also where nobody closes the view: no thread waits for one that is gone.
            weakref.finalize(self, self._timer.cancel).atexit = False
            try:
                self._timer.start()
            except RuntimeError as error:
                snapshot.close()
                raise StoreError(f"no thread to watch the age of a snapshot: {error}") from error

    @property
    def age(self) -> float:
        """Seconds since the view was made."""
        return time.monotonic() - self._begun

    @property
    def ended(self) -> bool:
        """Whether nothing can be read of it any more."""
        return self._snapshot.ended

    def collection(self, name: str) -> Collection:
        """Return a collection as it was; NotFoundError if there was none."""
        with self.reading() as reader:
            entry = catalog.find(reader, name)
            if entry is None:
                raise catalog.missing(reader, name)
        return Collection(self, entry)

    def collections(self) -> list[str]:
        """Return the names of the collections, sorted."""
        with self.reading() as reader:
            return catalog.names(reader)

    def close(self) -> None:
        """End the view; calling it again does nothing."""
        if self._timer is not None:
            self._timer.cancel()
        # In a forked child the lock may be held by a thread that is not there.
        with contextlib.nullcontext() if self._database.closed else self._lock:
            self._snapshot.close()

    def expire(self) -> None:
        """End the view as one that is too old, when the call that reads it now is done."""
        with self._lock:
            if not self._snapshot.ended:
                self._too_old = True
                self._snapshot.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Reader]:
        """The view's snapshot, for one thread at a time."""
        self._snapshot.store.check_open()
        with self._lock:
            if self._too_old:
                raise SnapshotExpiredError(
                    f"this snapshot was open for more than max_snapshot_age={self._max_age:g}"
                    " seconds, and was ended so that its space can be used again; take a new one"
                )
            if self._snapshot.ended:
                raise ClosedError("this snapshot has ended; take a new one with db.snapshot()")
            yield self._snapshot

    def writing(self, work: Callable[[Transaction], T], timeout: float | None = None) -> T:
        """Refuse: a view only reads."""
        raise ReadOnlyError("a snapshot only reads; write through the database")

    def file_size(self) -> int:
        """Bytes of the file, as it is now."""
        return self._snapshot.store.file_size()

    def check_alone(self, timeout: float | None) -> None:
        """Nothing is ever rewritten here."""

    def compact(self, *, secure: bool = False, timeout: float | None = None) -> int:
        """Refuse: a view only reads."""
        raise ReadOnlyError("a snapshot only reads; compact through the database")

    def give_back(self) -> int:
        """There is nothing to give back."""
        return 0

    def wrote(self, number: int, uid: bytes, timeout: float | None) -> None:
        """Nothing is ever written here."""

    def encoder(self, reader: Reader, entry: Entry) -> Encoder:
        """The encoder that the database has for a collection."""
        return self._database.encoder(reader, entry)

    def recent(self, uid: bytes) -> Recent | None:
        """The sample of recent queries that the database has of a collection."""
        return self._database.recent(uid)


def _end_late(reference: weakref.ref[View]) -> None:
    view = reference()
    if view is not None and not view._database.closed:
        view.expire()
