"""How is a file read and written? Snapshots and write transactions."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import lmdb
import numpy as np
from numpy.typing import NDArray

from vecstore.errors import ClosedError, CorruptionError, StoreError
from vecstore.store import bulk
from vecstore.store.faults import translate, translated

if TYPE_CHECKING:
    from vecstore.store.environment import Environment

# Databases whose values snapshots read by their addresses.
TABLED = ("tiers", "lists", "fields")


class Reader:
    """Reading inside one transaction; what snapshots and write transactions share."""

    # Also where an interrupt came before `__init__`.
    _txn: Any = None
    _now: int | None = None

    def __init__(self, store: Environment, txn: Any, *, copies: bool) -> None:
        self.store = store
        self._txn = txn
        # Values of a snapshot are views into the map; a writer's pages move, so it gets copies.
        self.copies = copies

    def _end(self) -> NoReturn:
        self.store.check_open()
        raise ClosedError("this snapshot or transaction has ended")

    @property
    def ended(self) -> bool:
        """Whether the transaction is over."""
        return self._txn is None

    @property
    def txn(self) -> Any:
        """The LMDB transaction; ClosedError when it has ended."""
        txn = self._txn
        if txn is None or self.store.forked:
            self._end()
        return txn

    @property
    def now(self) -> int:
        """When this is, in microseconds since 1970; it stands still while one reads."""
        if self._now is None:
            self._now = time.time_ns() // 1000
        return self._now

    def has(self, database: str) -> bool:
        """Whether the file has a database; of those that every file has it need not be asked."""
        return database in self.store.databases

    def get(self, database: str, key: bytes) -> Any:
        """Return the value under a key as bytes or memoryview, or None."""
        try:
            return self.txn.get(key, db=self.store.databases[database])
        except lmdb.Error as error:
            raise translate(error, f"read {self.store.name}") from error

    def get_each(self, database: str, keys: list[bytes]) -> list[Any]:
        """Return what `get` returns, for each of some keys."""
        get, found_in = self.txn.get, self.store.databases[database]
        try:
            return [get(key, None, found_in) for key in keys]
        except lmdb.Error as error:
            raise translate(error, f"read {self.store.name}") from error

    def get_many(self, database: str, keys: list[bytes]) -> dict[bytes, bytes]:
        """Return the values that exist under some keys."""
        if len(keys) == 1:
            value = self.get(database, keys[0])
            return {} if value is None else {keys[0]: bytes(value)}
        with (
            translated(f"read {self.store.name}"),
            self.txn.cursor(db=self.store.databases[database]) as cursor,
        ):
            return {bytes(key): bytes(value) for key, value in cursor.getmulti(keys)}

    def items(
        self, database: str, prefix: bytes, start: bytes | None = None
    ) -> Iterator[tuple[bytes, Any]]:
        """Yield (key, value) under a prefix in key order, from `start` on."""
        with (
            translated(f"read {self.store.name}"),
            self.txn.cursor(db=self.store.databases[database]) as cursor,
        ):
            found = cursor.set_range(start or prefix) if (start or prefix) else cursor.first()
            while found:
                key = bytes(cursor.key())
                if not key.startswith(prefix):
                    return
                yield key, cursor.value()
                found = cursor.next()

    def pages(self) -> int:
        """How many pages are in use: of all databases, of their names, and the two headers."""
        kinds = ("branch_pages", "leaf_pages", "overflow_pages")
        with translated("read"):
            found = [self.txn.stat(db) for db in self.store.databases.values()]
        return 3 + sum(int(one[kind]) for one in found for kind in kinds)

    def entries(self, database: str) -> int:
        """Number of entries in a database."""
        with translated(f"read {self.store.name}"):
            return int(self.txn.stat(self.store.databases[database])["entries"])


class Snapshot(Reader):
    """A read transaction: it sees the file as it was when the snapshot began."""

    def __init__(self, store: Environment, txn: Any, ticket: int) -> None:
        self.store, self._txn, self.copies, self._ticket = store, txn, False, ticket
        self.version, self._tables, self.cache = store.tables.of((store.epoch, txn.id()))

    def addresses(
        self,
        database: str,
        prefix: bytes,
        wanted: NDArray[np.intp],
        count: int,
        check: Callable[[memoryview, int], object],
    ) -> NDArray[np.uint64]:
        """Return the address table of the values under prefix + four bytes of number.

        Args:
            database: One of `TABLED`.
            prefix: All but the last four bytes of the keys.
            wanted: Numbers whose entries must be filled.
            count: The table's length.
            check: Called with each value before its address enters the table; raises
                CorruptionError if a kernel must not read it.

        Returns:
            uint64 (count,): the values' addresses, 0 where not filled. Valid while the snapshot
            is open. Never changed after it was returned.

        Raises:
            CorruptionError: A wanted value is missing or fails its check.
        """
        name = database.encode() + prefix
        table = self._tables.get(name)
        if table is None or len(table) < count:
            grown = np.zeros(count, np.uint64)
            if table is not None:
                grown[: len(table)] = table
            table = grown
        missing = wanted[table[wanted] == 0]
        if len(missing):
            table, size = table.copy(), min(self.store.file_size(), self.store.map_size)
            with (
                translated(f"read {self.store.name}"),
                self.txn.cursor(db=self.store.databases[database]) as cursor,
            ):
                for number in missing.tolist():
                    value = self._locate(cursor, prefix + number.to_bytes(4, "big"), size)
                    if value is None:
                        raise CorruptionError(
                            f"{database}: {prefix.hex()} block {number} is missing"
                        )
                    check(value, number)
                    table[number] = bulk.address_of(value)
            self._tables[name] = table
        return table

    def _locate(self, cursor: Any, key: bytes, size: int) -> memoryview | None:
        """The bulk value under a key, whose pages were checked to be in the file."""
        store = self.store
        if store.map_start is None and cursor.set_key(key):
            # It stays there as long as there are snapshots.
            store.map_start = bulk.map_start(bulk.address_of(cursor.key()))
        if store.map_start:
            return bulk.locate(cursor, key, store.map_start, store.page, size)
        value: memoryview | None = cursor.value() if cursor.set_key(key) else None
        if value is not None:
            bulk.check_place(bulk.address_of(value), len(value), store.page, size)
        return value

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the map in its place for another thread, even if the snapshot ends meanwhile.

        Whoever waits for that thread may be interrupted, and end the snapshot.
        """
        ticket = self.store.gate.join(self._ticket)
        try:
            yield
        finally:
            self.store.gate.leave(ticket)

    def close(self) -> None:
        """End the snapshot; calling it again does nothing."""
        txn = self._txn
        if txn is not None and not self.store.forked:
            # Where an interrupt comes between, the finalizer does both again.
            txn.abort()
            self.store.gate.leave(self._ticket)
        self._txn = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._txn is not None:
            with contextlib.suppress(Exception):
                self.close()


class Transaction(Reader):
    """A write transaction, or a child of one. It sees its own writes."""

    def __init__(self, store: Environment, txn: Any, parent: Transaction | None = None) -> None:
        super().__init__(store, txn, copies=True)
        self.parent = parent
        self._now = None if parent is None else parent.now
        self.page = store.page
        self.thread = threading.current_thread()
        self._stranded = False
        self._replaced: set[tuple[bytes, int]] = set()
        self._wrote = False

    @property
    def ended(self) -> bool:
        """Whether the transaction, or one that it is a part of, is over."""
        return self._txn is None or (self.parent is not None and self.parent.ended)

    @property
    def elsewhere(self) -> bool:
        """Whether another thread, which still lives, has to end the transaction.

        LMDB's lock belongs to a thread. Let go in another, it is never free again, and the process
        crashes once the lock file is unmapped.
        """
        owner = self.thread
        return (
            self._txn is not None and owner is not threading.current_thread() and owner.is_alive()
        )

    @property
    def stranded(self) -> bool:
        """Whether another thread was to end the transaction, or one that it is a part of."""
        return self._stranded or (self.parent is not None and self.parent.stranded)

    def _replace(self, database: str, key: bytes) -> None:
        """Note that tables of former versions lack the value under a key."""
        self._replaced.add((database.encode() + key[:-4], int.from_bytes(key[-4:], "big")))

    def put(self, database: str, key: bytes, value: bytes | bytearray) -> None:
        """Write a value under a key."""
        if database in TABLED:
            self._replace(database, key)
        self._wrote = True
        try:
            self.txn.put(key, value, db=self.store.databases[database])
        except lmdb.Error as error:
            raise translate(error, f"write to {self.store.name}") from error

    def put_many(
        self, database: str, items: list[tuple[bytes, bytes]], *, append: bool = False
    ) -> None:
        """Write many small values; `append` if the keys are ascending and beyond all others."""
        if len(items) == 1:
            self.put(database, *items[0])
            return
        with (
            translated(f"write to {self.store.name}"),
            self.txn.cursor(db=self.store.databases[database]) as cursor,
        ):
            cursor.putmulti(items, append=append)
            self._wrote = self._wrote or bool(items)

    def delete(self, database: str, key: bytes) -> bool:
        """Delete a key; False if it was not there."""
        if database in TABLED:
            self._replace(database, key)
        try:
            found = bool(self.txn.delete(key, db=self.store.databases[database]))
        except lmdb.Error as error:
            raise translate(error, f"write to {self.store.name}") from error
        self._wrote = self._wrote or found
        return found

    def delete_prefix(self, database: str, prefix: bytes) -> int:
        """Delete every key under a prefix and return how many there were."""
        count = 0
        with (
            translated(f"write to {self.store.name}"),
            self.txn.cursor(db=self.store.databases[database]) as cursor,
        ):
            found = cursor.set_range(prefix)
            while found and bytes(cursor.key()).startswith(prefix):
                if database in TABLED:
                    self._replace(database, bytes(cursor.key()))
                found = cursor.delete()
                count += 1
        self._wrote = self._wrote or count > 0
        return count

    def commit(self) -> None:
        """Keep the writes: for a child in its parent, else on disk."""
        txn = self.txn
        if self.elsewhere:
            raise StoreError(
                f"this transaction began in thread {self.thread.name} and must end there; nothing"
                " of it is kept"
            )
        try:
            version = int(txn.id())
            txn.commit()
        except lmdb.Error as error:
            raise translate(error, f"commit to {self.store.name}") from error
        finally:
            self._txn = None
        if self.parent is not None:
            self.parent._replaced |= self._replaced
            self.parent._wrote |= self._wrote
            return
        self.store.fill_up()
        if self._wrote:
            # A transaction that changed nothing is not written, and its number is used again.
            self.store.tables.advance((self.store.epoch, version), self._replaced)

    def abort(self) -> bool:
        """Forget the writes; calling it again does nothing.

        Returns:
            Whether it is over. If not, it is over once its own thread, or after the end of that
            thread any other, calls this.
        """
        stranded = self.store.stranded
        if self.elsewhere and not self.store.forked:
            if not self._stranded:
                self._stranded = True
                # Freed by the garbage collector, it would end in whatever thread that runs.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._txn))
                if self.parent is None:
                    stranded.append(self)
            return False
        late = self._stranded and self.parent is None
        if late:
            try:
                stranded.remove(self)
            except ValueError:
                # Another thread was faster.
                return True
        txn, self._txn = self._txn, None
        if txn is not None and not self.store.forked:
            txn.abort()
        if late:
            self.store.leave_writer()
        return True
