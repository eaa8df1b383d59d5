"""Where do bytes live? One LMDB file: opening, snapshots, transactions, growth, copies.

The only module that imports lmdb. Three rules of LMDB are enforced here and nowhere else:

* The map may move (growth) or vanish (close, compact) only while nobody reads it: every snapshot
  holds the `Gate` shared, whoever moves the map holds it alone. Each move raises `epoch`.
* Nothing ever opens the lock file, and the data file is open once per process: closing a second
  handle would drop the process's POSIX locks, and LMDB would recycle pages that are being read.
* An environment does not survive a fork: in the child every handle raises ClosedError.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import fcntl
import mmap
import numbers
import os
import shutil
import stat
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import lmdb
import lmdb.verify
import numpy as np
from lmdb import _envid
from numpy.typing import NDArray

from vecstore import layout
from vecstore.errors import (
    ClosedError,
    CorruptionError,
    FormatError,
    LockedError,
    ReadOnlyError,
    StoreError,
    StoreFullError,
    UsageError,
)

T = TypeVar("T")

MEMORY = ":memory:"
START_MAP = 64 << 30
START_MEMORY_MAP = 4 << 30
SMALLEST_MAP = 1 << 20
MEMORY_ROOM = 1 << 30
MAX_READERS = 1024
DEFAULT_TIMEOUT = 30.0
CLOSE_TIMEOUT = 5.0
DAMAGE_TRIES = 5

_LMDB_MAGIC = 0xBEEFC0DE
_LMDB_VERSION = 1
_PAGE = struct.Struct("<QHHI")
_OVERFLOW = 0x04
_META = struct.Struct("<IIQQ")
_META_AT = 16
_MAP_SIZE_AT = 16 + 16
_PAGE_SIZE_AT = 16 + 24
_LAST_PAGE_AT = 16 + 24 + 96
_HEAD_BYTES = _LAST_PAGE_AT + 16
# Far beyond any file: the byte whose record lock stands for the right to write.
_WRITER_BYTE = 1 << 62
_FLOCK = struct.Struct("hhqqi4x")


class Gate:
    """A lock that many hold shared or one holds alone, and that knows its holders.

    Shared holders are snapshots; whoever moves the map takes the gate alone. Once somebody waits
    to have it alone, new shared holders wait too, or growth would starve; except threads that hold
    it already, or they would wait for themselves.
    """

    def __init__(self) -> None:
        # Reentrant: the garbage collector may end a snapshot anywhere, also in here.
        self._condition = threading.Condition(threading.RLock())
        self._holders: dict[int, tuple[threading.Thread, float]] = {}
        self._next = 0
        self._alone = False
        self._waiting = 0

    def enter(self, timeout: float) -> int:
        """Take the gate shared and return a ticket for `leave`."""
        me = threading.current_thread()

        def free() -> bool:
            held = any(thread is me for thread, _ in list(self._holders.values()))
            return not self._alone and (not self._waiting or held)

        with self._condition:
            if (self._alone or self._waiting) and not self._condition.wait_for(free, timeout):
                raise LockedError(
                    f"the file's map is being moved or closed and was not free for {timeout:g} s"
                )
            self._next += 1
            self._holders[self._next] = (me, time.monotonic())
            return self._next

    def leave(self, ticket: int) -> None:
        """Give back a shared hold."""
        with self._condition:
            del self._holders[ticket]
            if self._waiting and not self._holders:
                self._condition.notify_all()

    @contextlib.contextmanager
    def alone(self, timeout: float, purpose: str) -> Iterator[None]:
        """Hold the gate with no snapshot open.

        Raises:
            LockedError: Snapshots stayed open for `timeout` seconds; the message names them.
        """
        with self._condition:
            self._waiting += 1
            try:
                free = self._condition.wait_for(
                    lambda: not self._alone and not self._holders, timeout
                )
                if not free:
                    raise LockedError(
                        f"cannot {purpose}: waited {timeout:g} s for {self.describe()}; end them"
                    )
                self._alone = True
            finally:
                self._waiting -= 1
                if not self._alone:
                    self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._alone = False
                self._condition.notify_all()

    def describe(self) -> str:
        """Name the open snapshots: threads and ages."""
        now = time.monotonic()
        holders = [
            f"{thread.name} ({now - since:.1f} s)" for thread, since in list(self._holders.values())
        ]
        return f"{len(holders)} open snapshots of threads {', '.join(holders[:8])}"


class Reader:
    """Reading inside one transaction; what snapshots and write transactions share."""

    def __init__(self, store: Store, txn: Any, *, copies: bool) -> None:
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

    def get(self, database: str, key: bytes) -> Any:
        """Return the value under a key as bytes or memoryview, or None."""
        try:
            return self.txn.get(key, db=self.store.databases[database])
        except lmdb.Error as error:
            raise _translate(error, "read") from error

    def get_many(self, database: str, keys: list[bytes]) -> dict[bytes, bytes]:
        """Return the values that exist under some keys."""
        with translated("read"), self.txn.cursor(db=self.store.databases[database]) as cursor:
            return {bytes(key): bytes(value) for key, value in cursor.getmulti(keys)}

    def items(
        self, database: str, prefix: bytes, start: bytes | None = None
    ) -> Iterator[tuple[bytes, Any]]:
        """Yield (key, value) under a prefix in key order, from `start` on."""
        with translated("read"), self.txn.cursor(db=self.store.databases[database]) as cursor:
            found = cursor.set_range(start or prefix) if (start or prefix) else cursor.first()
            while found:
                key = bytes(cursor.key())
                if not key.startswith(prefix):
                    return
                yield key, cursor.value()
                found = cursor.next()

    def entries(self, database: str) -> int:
        """Number of entries in a database."""
        with translated("read"):
            return int(self.txn.stat(self.store.databases[database])["entries"])


class Snapshot(Reader):
    """A read transaction: it sees the file as it was when the snapshot began."""

    def __init__(self, store: Store, txn: Any, ticket: int) -> None:
        super().__init__(store, txn, copies=False)
        self._ticket = ticket
        self.version = (store.epoch, int(txn.id()))
        self._tables, self.cache = store.tables.of(self.version)

    def addresses(
        self,
        prefix: bytes,
        wanted: NDArray[np.intp],
        count: int,
        check: Callable[[memoryview, int], object],
    ) -> NDArray[np.uint64]:
        """Return the address table of the values under prefix + four bytes of number.

        Args:
            prefix: All but the last four bytes of the keys in `tiers`.
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
        table = self._tables.get(prefix)
        if table is None or len(table) < count:
            grown = np.zeros(count, np.uint64)
            if table is not None:
                grown[: len(table)] = table
            table = grown
        missing = wanted[table[wanted] == 0]
        if len(missing):
            table, file_size = table.copy(), self.store.file_size()
            for number in missing.tolist():
                value = self.get("tiers", prefix + number.to_bytes(4, "big"))
                if value is None:
                    raise CorruptionError(f"tiers: {prefix.hex()} block {number} is missing")
                check(value, number)
                table[number] = self._address(value, file_size)
            self._tables[prefix] = table
        return table

    def _address(self, value: memoryview, file_size: int) -> int:
        """Return the address of a bulk value, having checked that its pages are in the file."""
        address = int(np.frombuffer(value, np.uint8).__array_interface__["data"][0])
        page = self.store.page
        start = address - _PAGE.size
        number, _, flags, pages = _PAGE.unpack_from(
            (ctypes.c_char * _PAGE.size).from_address(start)
        )
        if (
            address % 64 != _PAGE.size
            or not flags & _OVERFLOW
            or pages * page < _PAGE.size + len(value)
            or (number + pages) * page > file_size
        ):
            raise CorruptionError(
                f"tiers: a value of {len(value)} bytes does not lie on whole pages of the file"
            )
        return address

    def close(self) -> None:
        """End the snapshot; calling it again does nothing."""
        txn, self._txn = self._txn, None
        if txn is not None and not self.store.forked:
            txn.abort()
            self.store.gate.leave(self._ticket)

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
        with contextlib.suppress(Exception):
            self.close()


class Transaction(Reader):
    """A write transaction, or a child of one. It sees its own writes."""

    def __init__(self, store: Store, txn: Any, parent: Transaction | None = None) -> None:
        super().__init__(store, txn, copies=True)
        self.parent = parent
        self.page = store.page
        self._replaced: set[tuple[bytes, int]] = set()
        self._wrote = False

    def put(self, database: str, key: bytes, value: bytes | bytearray) -> None:
        """Write a value under a key."""
        if database == "tiers":
            self._replaced.add((key[:-4], int.from_bytes(key[-4:], "big")))
        self._wrote = True
        try:
            self.txn.put(key, value, db=self.store.databases[database])
        except lmdb.Error as error:
            raise _translate(error, "write") from error

    def put_many(
        self, database: str, items: list[tuple[bytes, bytes]], *, append: bool = False
    ) -> None:
        """Write many small values; `append` if the keys are ascending and beyond all others."""
        if len(items) == 1:
            self.put(database, *items[0])
            return
        with translated("write"), self.txn.cursor(db=self.store.databases[database]) as cursor:
            cursor.putmulti(items, append=append)
            self._wrote = self._wrote or bool(items)

    def delete(self, database: str, key: bytes) -> bool:
        """Delete a key; False if it was not there."""
        if database == "tiers":
            self._replaced.add((key[:-4], int.from_bytes(key[-4:], "big")))
        try:
            found = bool(self.txn.delete(key, db=self.store.databases[database]))
        except lmdb.Error as error:
            raise _translate(error, "write") from error
        self._wrote = self._wrote or found
        return found

    def delete_prefix(self, database: str, prefix: bytes) -> int:
        """Delete every key under a prefix and return how many there were."""
        count = 0
        with translated("write"), self.txn.cursor(db=self.store.databases[database]) as cursor:
            found = cursor.set_range(prefix)
            while found and bytes(cursor.key()).startswith(prefix):
                if database == "tiers":
                    key = bytes(cursor.key())
                    self._replaced.add((key[:-4], int.from_bytes(key[-4:], "big")))
                found = cursor.delete()
                count += 1
        self._wrote = self._wrote or count > 0
        return count

    def commit(self) -> None:
        """Keep the writes: for a child in its parent, else on disk."""
        txn = self.txn
        try:
            version = int(txn.id())
            txn.commit()
        except lmdb.Error as error:
            raise _translate(error, "commit") from error
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

    def abort(self) -> None:
        """Forget the writes; calling it again does nothing."""
        txn, self._txn = self._txn, None
        if txn is not None and not self.store.forked:
            txn.abort()


Addresses = dict[bytes, NDArray[np.uint64]]


class Tables:
    """The address tables of the newest version of the file that this process has seen.

    A version is (map epoch, transaction id). A table is immutable once published; a version's
    dict of tables is shared by its snapshots. An older snapshot never sees a newer table: it
    keeps the dict that it was given when it began, or a fresh one. Beside the tables, a version
    has a cache for whatever the layers above derive from its content alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version = (-1, -1)
        self._tables: Addresses = {}
        self._cache: dict[Any, Any] = {}

    def of(self, version: tuple[int, int]) -> tuple[Addresses, dict[Any, Any]]:
        """The tables and the cache for a snapshot of this version."""
        with self._lock:
            if version > self._version:
                self._version, self._tables, self._cache = version, {}, {}
            return (self._tables, self._cache) if version == self._version else ({}, {})

    def advance(self, version: tuple[int, int], replaced: set[tuple[bytes, int]]) -> None:
        """Derive the tables of a commit: the former ones without the values that it replaced."""
        with self._lock:
            epoch, number = version
            if self._version == (epoch, number - 1):
                tables = dict(self._tables)
                for prefix in {prefix for prefix, _ in replaced} & tables.keys():
                    gone = np.array([n for p, n in replaced if p == prefix], np.intp)
                    table = tables[prefix].copy()
                    table[gone[gone < len(table)]] = 0
                    tables[prefix] = table
                self._version, self._tables, self._cache = version, tables, {}


@dataclass(frozen=True, slots=True)
class Head:
    """What a header page of LMDB says of a commit.

    Attributes:
        map_size: Bytes of the map of the process that committed.
        pages: Pages ever used in the file.
        transaction: The commit's number.
    """

    map_size: int
    pages: int
    transaction: int

    @classmethod
    def read(cls, data: bytes, at: int = 0) -> Head:
        """Parse the first bytes of the header page that begins at `at`."""
        (map_size,) = struct.unpack_from("<Q", data, at + _MAP_SIZE_AT)
        last, transaction = struct.unpack_from("<QQ", data, at + _LAST_PAGE_AT)
        return cls(map_size, last + 1, transaction)


class Store:
    """One open file. Threads share it; a process opens a file once."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        durable: bool = True,
        timeout: float = DEFAULT_TIMEOUT,
        start_map: int | None = None,
    ) -> None:
        self.read_only = read_only
        self.durable = durable
        self.timeout = _seconds(timeout, DEFAULT_TIMEOUT)
        self.gate = Gate()
        self.tables = Tables()
        self.epoch = 0
        self.forked = False
        self.map_size = 0
        self.databases: dict[str, Any] = {}
        self._env: Any = None
        self._file = -1
        self._writer = threading.Lock()
        self._writer_thread: str | None = None
        self._grow = False
        self._start_map = start_map
        self.memory = os.fspath(path) == MEMORY
        if self.memory and read_only:
            raise UsageError("a ':memory:' database is new and empty; read_only=True has no use")
        self.path = _memory_path() if self.memory else _real_path(path)
        self._open()

    # Opening and closing

    def _open(self) -> None:
        created = False
        try:
            if self.memory:
                self._file, created = os.open(self.path, os.O_RDWR), True
            else:
                self._file, created = _open_file(self.path, self.read_only, self.timeout)
            with _registry_lock:
                _register(self, os.fstat(self._file), self.path)
            _check_lmdb_file(self._file, self.path, self.read_only)
            self._open_env()
            created = False
        except BaseException:
            # A file that was made here and is of no use is taken away, unless somebody has it open.
            if created and self._file >= 0 and _is_alone(self._file):
                _remove(self.path)
            self._release()
            raise
        if self.memory:
            # The open handles keep the files alive; nothing is left behind, even by a kill.
            _remove(self.path)

    def _open_env(self) -> None:
        size = os.fstat(self._file).st_size
        start = self._start_map or (START_MEMORY_MAP if self.memory else START_MAP)
        map_size = max(start, 8 * size)
        while True:
            try:
                self._env = lmdb.open(
                    os.fspath(self.path),
                    map_size=map_size,
                    subdir=False,
                    readonly=self.read_only,
                    sync=self.durable and not self.memory,
                    mode=0o600,
                    max_readers=126 if self.memory else MAX_READERS,
                    max_dbs=len(layout.DATABASES),
                    readahead=True,
                    lib_version=0,
                )
                break
            except (lmdb.MemoryError, MemoryError) as error:
                map_size //= 2
                if map_size < max(SMALLEST_MAP, size):
                    raise StoreError(
                        f"{self.path}: no address space to map {size} bytes; raise the process's"
                        " limit on virtual memory"
                    ) from error
            except (lmdb.Error, OSError) as error:
                raise _translate(error, f"open {self.path}") from error
        self.page = int(self._env.stat()["psize"])
        self.map_size = int(self._env.info()["map_size"])
        with translated(f"open {self.path}"):
            self._env.reader_check()
        # To open a database, py-lmdb begins a write transaction, unless the file is read-only.
        if not self.read_only:
            _take_writer_byte(self._file, self.timeout, self.path)
        try:
            with translated(f"open {self.path}"):
                self._open_databases()
        finally:
            if not self.read_only:
                _set_writer_byte(self._file, fcntl.F_UNLCK)

    def _open_databases(self) -> None:
        with self._env.begin() as txn:
            names = [bytes(key).decode("utf-8", "replace") for key, _ in txn.cursor()]
        if not names and not self.read_only:
            self._create_databases()
        elif not set(layout.DATABASES) <= set(names):
            raise FormatError(f"{self.path} is an LMDB file, but not one of vecstore's")
        else:
            for name in layout.DATABASES:
                self.databases[name] = self._env.open_db(name.encode(), create=False)
        with self._env.begin() as txn:
            value = txn.get(layout.KEY_FORMAT, db=self.databases["meta"])
        _check_format(value, self.path)

    def _create_databases(self) -> None:
        with self._env.begin(write=True) as txn:
            for name in layout.DATABASES:
                self.databases[name] = self._env.open_db(name.encode(), txn=txn)
            values = {
                "magic": layout.MAGIC,
                "format": layout.FORMAT,
                "oldest_readable": layout.OLDEST_READABLE,
            }
            txn.put(layout.KEY_FORMAT, layout.pack_meta(values), db=self.databases["meta"])

    def check_open(self) -> None:
        """Raise ClosedError if the store cannot be used (any more, or in this process)."""
        if self.forked:
            raise ClosedError(
                f"{self.path} was opened before this process was forked; a handle does not survive"
                " a fork: open the file again in the child"
            )
        if self._env is None:
            raise ClosedError(f"{self.path} is closed; open it again")

    @property
    def closed(self) -> bool:
        """Whether the store cannot be used any more."""
        return self.forked or self._env is None

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close the file; calling it again does nothing.

        Raises:
            LockedError: Snapshots or a writer of this process did not end in time.
        """
        if self.closed:
            self._release()
            return
        timeout = _seconds(timeout, CLOSE_TIMEOUT)
        self._lock_threads(timeout, "close the file")
        try:
            with self.gate.alone(timeout, "close"):
                self._release()
        finally:
            self._unlock_threads()

    def _release(self) -> None:
        env, self._env = self._env, None
        if env is not None and not self.forked:
            env.close()
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
        with _registry_lock:
            _forget(self)

    def __del__(self) -> None:
        # Nobody can hold a snapshot here: snapshots refer to their store.
        with contextlib.suppress(Exception):
            self._release()

    # Reading

    def snapshot(self, timeout: float | None = None) -> Snapshot:
        """Begin a read transaction."""
        self.check_open()
        timeout = _seconds(timeout, self.timeout)
        ticket = self.gate.enter(timeout)
        try:
            self.check_open()
            return Snapshot(self, self._begin_reading(), ticket)
        except lmdb.MapResizedError:
            pass
        except BaseException:
            self.gate.leave(ticket)
            raise
        # Another process let the file outgrow this process's map.
        self.gate.leave(ticket)
        self._follow(timeout)
        return self.snapshot(timeout)

    def _begin_reading(self) -> Any:
        try:
            return self._env.begin(buffers=True)
        except lmdb.ReadersFullError:
            # Slots of killed processes can be taken back.
            self._env.reader_check()
        except lmdb.MapResizedError:
            raise
        except lmdb.Error as error:
            raise _translate(error, "read") from error
        with translated("begin a snapshot"):
            return self._env.begin(buffers=True)

    # Writing

    def begin(self, timeout: float | None = None) -> Transaction:
        """Begin a write transaction; the caller holds the writer's lock."""
        timeout = _seconds(timeout, self.timeout)
        self._make_room(timeout)
        try:
            return Transaction(self, self._env.begin(write=True))
        except lmdb.MapResizedError:
            pass
        except lmdb.Error as error:
            raise _translate(error, "begin a transaction") from error
        self._follow(timeout)
        with translated("begin a transaction"):
            return Transaction(self, self._env.begin(write=True))

    def _make_room(self, timeout: float) -> None:
        """Enlarge the map if the last transaction did not fit; if nobody reads, in good time."""
        # The file is as long as all pages in use, and its length is one cheap call.
        used = os.fstat(self._file).st_size
        if not self._grow and used <= self.map_size // 2:
            return
        # Should it fail, smaller transactions still have a chance, so the need is forgotten.
        needed, self._grow = self._grow, False
        try:
            with self.gate.alone(timeout if needed else 0.0, "enlarge the map"):
                self._remap(2 * max(self.map_size, 2 * used), self.map_size * 5 // 4)
        except (LockedError, StoreFullError):
            if needed:
                raise

    def _follow(self, timeout: float) -> None:
        """Enlarge the map after another process let the file outgrow it."""
        with self.gate.alone(timeout, "enlarge the map"):
            self.check_open()
            head = self.newest()
            used = head.pages * self.page
            # Another thread may have done it meanwhile, and be writing.
            if used > self.map_size:
                self._remap(max(head.map_size, used), used)

    def begin_child(self, parent: Transaction) -> Transaction:
        """Begin a child transaction, which can be rolled back alone."""
        with translated("begin a transaction"):
            return Transaction(self, self._env.begin(write=True, parent=parent.txn), parent)

    def write(self, work: Callable[[Transaction], T], timeout: float | None = None) -> T:
        """Run `work` in one transaction of its own and commit it.

        Should the map be full, it grows and `work` runs again from the start.

        Raises:
            ReadOnlyError, LockedError, StoreFullError, and whatever `work` raises. In every
            case the file is as it was.
        """
        self.take_writer(timeout)
        try:
            while True:
                transaction = self.begin(timeout)
                try:
                    result = work(transaction)
                    transaction.commit()
                    return result
                except _MapFullError:
                    self._grow = True
                finally:
                    transaction.abort()
        finally:
            self.leave_writer()

    def write_child(self, parent: Transaction, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a child of `parent`; if it fails, only its own writes are rolled back."""
        child = self.begin_child(parent)
        try:
            with self.growing_later():
                result = work(child)
                child.commit()
            return result
        finally:
            child.abort()

    @contextlib.contextmanager
    def growing_later(self) -> Iterator[None]:
        """Note that the map must grow before the next transaction; this one is too large for it."""
        try:
            yield
        except _MapFullError as error:
            self._grow = True
            raise StoreFullError(f"{error}; the next one has more room, try it again") from error

    @contextlib.contextmanager
    def writer(self, timeout: float | None = None) -> Iterator[None]:
        """Hold the right to write as long as the with statement; see `take_writer`."""
        self.take_writer(timeout)
        try:
            yield
        finally:
            self.leave_writer()

    def take_writer(self, timeout: float | None = None) -> None:
        """Take the right to write, among threads and among processes.

        Raises:
            ReadOnlyError: The file was opened for reading.
            LockedError: The right was not free within `timeout` seconds.
        """
        self.check_open()
        if self.read_only:
            raise ReadOnlyError(f"{self.path} was opened with read_only=True")
        timeout = _seconds(timeout, self.timeout)
        self._lock_threads(timeout, "write")
        try:
            self.check_open()
            _take_writer_byte(self._file, timeout, self.path)
        except BaseException:
            self._unlock_threads()
            raise

    def leave_writer(self) -> None:
        """Give back the right to write."""
        try:
            if self._file >= 0:
                _set_writer_byte(self._file, fcntl.F_UNLCK)
        finally:
            self._unlock_threads()

    def _lock_threads(self, timeout: float, purpose: str) -> None:
        if not self._writer.acquire(timeout=timeout):
            raise LockedError(
                f"cannot {purpose}: thread {self._writer_thread} holds the transaction for more"
                f" than {timeout:g} s"
            )
        self._writer_thread = threading.current_thread().name

    def _unlock_threads(self) -> None:
        self._writer_thread = None
        self._writer.release()

    # The whole file

    def fill_up(self) -> None:
        """Make the file as long as its last page says; the caller holds the right to write.

        LMDB never writes pages that were taken and given up by one transaction. At the end of the
        file they leave it shorter than it claims to be, which is how a truncated file looks.
        """
        needed = self.newest().pages * self.page
        if os.fstat(self._file).st_size < needed:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, needed)

    def newest(self) -> Head:
        """The header of the newest commit, read from the file: the map may be on the move."""
        data = os.pread(self._file, self.page + _HEAD_BYTES, 0)
        first, second = Head.read(data), Head.read(data, self.page)
        return first if first.transaction > second.transaction else second

    def damage(self) -> list[str]:
        """Return what is wrong with LMDB's own pages; LMDB trusts them, and may crash on damage."""
        for _ in range(0 if self.memory else DAMAGE_TRIES):
            before = self.newest().transaction
            problems = _verify(self.path)
            if not problems or self.newest().transaction == before:
                return problems
            # Pages were used again while they were read.
        return []

    def sync(self) -> None:
        """Flush everything committed so far to the disk."""
        self.check_open()
        if self.read_only:
            return
        ticket = self.gate.enter(self.timeout)
        try:
            self.check_open()
            with translated("sync"):
                self._env.sync(True)
        finally:
            self.gate.leave(ticket)

    def file_size(self) -> int:
        """Bytes of the data file."""
        self.check_open()
        return os.fstat(self._file).st_size

    def usage(self) -> dict[str, int]:
        """Bytes of the map, and of pages ever used in the file."""
        self.check_open()
        return {"map_bytes": self.map_size, "used_bytes": self.newest().pages * self.page}

    def copy(self, target: Path, snapshot: Snapshot) -> int:
        """Write a compact copy of a snapshot to a new file, synced; return its bytes.

        Raises:
            StoreError: The target exists, or cannot be written; it is removed again.
        """
        return self._copy(target, snapshot.txn)

    def _copy(self, target: Path, txn: Any) -> int:
        with translated(f"create {target}"):
            file = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with translated(f"write {target}"):
                self._env.copyfd(file, compact=True, txn=txn)
                os.fsync(file)
                size = os.fstat(file).st_size
        except BaseException:
            _remove(target)
            raise
        finally:
            os.close(file)
        _sync_folder(target.parent)
        return size

    def compact(self, timeout: float | None = None) -> int:
        """Rewrite the file without its free pages; return the bytes given back.

        Raises:
            LockedError: Another process has the file open, or snapshots did not end.
        """
        timeout = _seconds(timeout, self.timeout)
        with self.writer(timeout), self.gate.alone(timeout, "compact"):
            before = os.fstat(self._file).st_size
            try:
                if not self.memory and not _is_alone(self._file):
                    raise LockedError(
                        f"another process has {self.path} open; compacting needs it alone"
                    )
                target = self._copy_for_compact()
                try:
                    self._swap(target)
                except BaseException:
                    _remove(target)
                    raise
            finally:
                if not self.memory and self._file >= 0:
                    fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return before - os.fstat(self._file).st_size

    def _copy_for_compact(self) -> Path:
        if self.memory:
            target = _memory_path()
            target.unlink()
        else:
            target = self.path.with_name(f"{self.path.name}.compact-{os.getpid()}")
        # The gate is held alone, so the snapshot is begun without it.
        txn = self._env.begin(buffers=True)
        try:
            self._copy(target, txn)
            target.chmod(stat.S_IMODE(os.fstat(self._file).st_mode))
        finally:
            txn.abort()
        return target

    def _swap(self, target: Path) -> None:
        """Put `target` in the place of the data file and open it.

        Its lock is taken alone before others can find it: whoever opened it beside the old
        environment would read the wrong one of its two headers, and take it for an empty file.
        """
        with translated(f"replace {self.path}"):
            file = os.open(target, os.O_RDWR)
        try:
            if self.memory:
                self.path = target
            else:
                with translated(f"replace {self.path}"):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    target.replace(self.path)
        except BaseException:
            os.close(file)
            raise
        self._env.close()
        self._env = None
        self.epoch += 1
        old, self._file = self._file, file
        os.close(old)
        with _registry_lock:
            _forget(self)
            _register(self, os.fstat(self._file), self.path)
        if not self.memory:
            _sync_folder(self.path.parent)
        self._open_env()
        if self.memory:
            _remove(self.path)

    def _remap(self, wanted: int, least: int) -> None:
        """Give the map another size; the gate is held alone.

        Raises:
            StoreFullError: There is no address space even for `least` bytes.
        """
        # LMDB gives up the old map before it asks for the new one, so that must not fail.
        while not _is_room_for(wanted):
            if wanted <= least:
                raise StoreFullError(
                    f"{self.path}: the map of {self.map_size} bytes is full and there is no address"
                    " space for a larger one; raise the process's limit on virtual memory"
                )
            wanted = max(least, wanted * 3 // 4)
        self.epoch += 1
        with translated("enlarge the map"):
            self._env.set_mapsize(wanted)
        self.map_size = wanted


class _MapFullError(StoreFullError):
    """The map is full; growing it helps."""


# Errors


@contextlib.contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn errors of lmdb and of the system into vecstore's."""
    try:
        yield
    except (lmdb.Error, OSError, MemoryError) as error:
        raise _translate(error, action) from error


def _translate(error: BaseException, action: str) -> StoreError:
    code = error.args[0] if isinstance(error, OSError) and error.args else _code(error)
    message = f"cannot {action}: {error}"
    if isinstance(error, lmdb.MapFullError):
        return _MapFullError(f"{message}; one transaction is larger than the room in the map")
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFullError(f"{message}; free space on the disk and try again")
    if isinstance(error, lmdb.TxnFullError):
        return StoreFullError(f"{message}; the transaction is too large, split it")
    if isinstance(error, lmdb.ReadersFullError):
        return LockedError(f"{message}; {MAX_READERS} snapshots are open, end some")
    if isinstance(error, lmdb.ReadonlyError) or code in (errno.EROFS,):
        return ReadOnlyError(message)
    if isinstance(error, lmdb.LockError):
        return LockedError(message)
    if isinstance(error, lmdb.VersionMismatchError | lmdb.InvalidError):
        return FormatError(f"{message}; it is not a file of vecstore's engine (LMDB 0.9)")
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.PanicError):
        return CorruptionError(f"{message}; restore a backup")
    if code in (errno.EACCES, errno.EPERM):
        return StoreError(
            f"{message}; vecstore needs to write the file, its '-lock' file and their folder"
        )
    return StoreError(message)


def _code(error: BaseException) -> int:
    return int(getattr(error, "code", 0) or 0)


def _seconds(timeout: float | None, default: float) -> float:
    """Return a timeout as locks take it; they know no infinity."""
    if timeout is None:
        return default
    value = timeout
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:
        raise UsageError(f"timeout={timeout!r} is not a number of seconds")
    return min(max(0.0, float(value)), threading.TIMEOUT_MAX / 2)


# Files


def _real_path(path: str | os.PathLike[str]) -> Path:
    """The path without links: the lock file must have one name, whatever way leads to the data."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot open {os.fspath(path)!r}: {error}") from error


def _is_room_for(size: int) -> bool:
    """Whether the process has this much address space left."""
    try:
        mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _open_file(path: Path, read_only: bool, timeout: float) -> tuple[int, bool]:
    """Open the data file and lock it shared; return the handle and whether it is new."""
    deadline = time.monotonic() + timeout
    while True:
        created = False
        _check_path(path, read_only)
        try:
            if read_only:
                file = os.open(path, os.O_RDONLY)
            else:
                try:
                    file = os.open(path, os.O_RDWR)
                except FileNotFoundError:
                    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                    created = True
        except FileExistsError:
            continue
        except OSError as error:
            raise _translate(error, f"open {path}") from error
        if _lock_shared(file):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    return file, created
        elif time.monotonic() > deadline:
            os.close(file)
            raise LockedError(f"{path} is being compacted by another process; try again later")
        os.close(file)
        time.sleep(0.01)


def _check_path(path: Path, read_only: bool) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if read_only:
            raise StoreError(
                f"{path} does not exist; read_only=True opens only an existing file"
            ) from None
        if not path.parent.is_dir():
            raise StoreError(f"the folder {path.parent} does not exist; create it first") from None
        return
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot open {path}: {error}") from error
    if stat.S_ISDIR(mode):
        raise StoreError(f"{path} is a folder; vecstore needs a path for a single file")
    if not stat.S_ISREG(mode):
        raise StoreError(f"{path} is not a regular file")
    with _registry_lock:
        _check_unregistered(path.stat(), path)


def _check_lmdb_file(file: int, path: Path, read_only: bool) -> None:
    """Refuse what LMDB would misread, overwrite, or read beyond its end."""
    size = os.fstat(file).st_size
    if size == 0:
        if read_only:
            raise FormatError(f"{path} is empty; open it for writing once to make it a database")
        return
    head = os.pread(file, 4096, 0)
    if len(head) < _HEAD_BYTES:
        raise FormatError(f"{path} is not a vecstore file ({size} bytes)")
    magic, version, _, _ = _META.unpack_from(head, _META_AT)
    if magic != _LMDB_MAGIC or version != _LMDB_VERSION:
        raise FormatError(f"{path} is not a vecstore file (no LMDB 0.9 header)")
    (page,) = struct.unpack_from("<I", head, _PAGE_SIZE_AT)
    if page not in (4096, 8192, 16384, 32768, 65536):
        raise CorruptionError(f"{path}: impossible page size {page}")
    second = os.pread(file, _HEAD_BYTES, page)
    if len(second) < _HEAD_BYTES:
        raise CorruptionError(f"{path} is cut short: {size} bytes, less than its header pages")
    needed = page * max((Head.read(head), Head.read(second)), key=lambda at: at.transaction).pages
    # A process killed between a commit and `fill_up` leaves out pages that nothing refers to.
    if size < needed and _verify(path):
        raise CorruptionError(
            f"{path} is cut short: {size} bytes, its last page ends at {needed}; restore a backup"
        )


def _verify(path: Path) -> list[str]:
    """Return what is wrong with LMDB's own pages, read without LMDB."""
    try:
        problems = lmdb.verify.verify(  # type: ignore[no-untyped-call]  # lmdb has no stub for it
            os.fspath(path), subdir=False
        )
        return [str(problem) for problem in problems]
    except (lmdb.verify.VerifyError, OSError) as error:
        return [str(error)]


def _check_format(value: bytes | None, path: Path) -> None:
    if value is None:
        raise FormatError(f"{path} is an LMDB file, but not one of vecstore's")
    values = layout.unpack_meta(value, f"{path}: format")
    number, oldest = values.get("format"), values.get("oldest_readable")
    if values.get("magic") != layout.MAGIC or not isinstance(number, int):
        raise FormatError(f"{path} is an LMDB file, but not one of vecstore's")
    if number > layout.FORMAT and not (isinstance(oldest, int) and oldest <= layout.FORMAT):
        raise FormatError(
            f"{path} has format {number}, this release reads {layout.OLDEST_READABLE} to"
            f" {layout.FORMAT}; upgrade vecstore"
        )
    if number < layout.OLDEST_READABLE:
        raise FormatError(
            f"{path} has format {number}, this release reads {layout.OLDEST_READABLE} to"
            f" {layout.FORMAT}; use a vecstore release that reads both, and copy the file with it"
        )


def _memory_path() -> Path:
    shared = Path("/dev/shm")
    folder = None
    with contextlib.suppress(OSError):
        if os.access(shared, os.W_OK) and shutil.disk_usage(shared).free >= MEMORY_ROOM:
            folder = shared
    with translated("make a temporary file"):
        file, name = tempfile.mkstemp(".vecstore", "memory-", folder)
    os.close(file)
    return Path(name)


def _remove(path: Path) -> None:
    for name in (path, path.with_name(path.name + "-lock")):
        with contextlib.suppress(OSError):
            name.unlink()


def _sync_folder(folder: Path) -> None:
    with translated(f"sync {folder}"):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# Locks between processes


def _lock_shared(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(f"this file system has no locks: {error}") from error
    return True


def _is_alone(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _set_writer_byte(file: int, kind: int) -> None:
    if hasattr(fcntl, "F_OFD_SETLK"):
        lock = _FLOCK.pack(kind, os.SEEK_SET, _WRITER_BYTE, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
    else:
        flags = fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB
        fcntl.lockf(file, flags, 1, _WRITER_BYTE)


def _take_writer_byte(file: int, timeout: float, path: Path) -> None:
    """Become the only process that writes; LMDB's own lock cannot be waited for with a limit."""
    deadline, pause = time.monotonic() + timeout, 0.0005
    while True:
        try:
            _set_writer_byte(file, fcntl.F_WRLCK)
            return
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"another process has been writing to {path} for more than {timeout:g} s"
                ) from None
        except OSError as error:
            raise _translate(error, f"lock {path}") from error
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


# Every open store of this process, by the identity of its file

_registry: dict[tuple[int, int], weakref.ref[Store]] = {}
_registry_lock = threading.RLock()


def _check_unregistered(info: os.stat_result, path: Path) -> None:
    found = _registry.get((info.st_dev, info.st_ino))
    if found is not None and found() is not None:
        raise LockedError(
            f"{path} is already open in this process; share that database between threads, or"
            " close it first"
        )


def _register(store: Store, info: os.stat_result, path: Path) -> None:
    _check_unregistered(info, path)
    _registry[info.st_dev, info.st_ino] = weakref.ref(store)


def _forget(store: Store) -> None:
    for key, found in list(_registry.items()):
        if found() in (store, None):
            del _registry[key]


def _stores() -> list[Store]:
    with _registry_lock:
        return [store for found in _registry.values() if (store := found()) is not None]


def _after_fork() -> None:
    global _registry_lock
    _registry_lock = threading.RLock()
    for store in _stores():
        store.forked = True
        # Never freed here: py-lmdb would wait for the parent's threads, and clear the slots that
        # keep the pages of the parent's snapshots.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(store._env))
        # The locks belong to the parent's handle; this one only keeps the file from compaction.
        os.close(store._file)
        store._file = -1
    _registry.clear()
    # py-lmdb refuses a file that the process has open; to a child it means the parent's files too.
    _envid.env_keys = _keys_of_process


def _keys_of_process(path: str, subdir: int) -> tuple[Any, ...]:
    keys = _env_keys(path, subdir)  # type: ignore[no-untyped-call]  # lmdb has no stub for it
    return tuple((os.getpid(), key) for key in keys)


def _at_exit() -> None:
    for store in _stores():
        # A thread that still reads keeps its map; the system takes it back.
        with contextlib.suppress(Exception):
            store.close(timeout=0.2)


_env_keys = _envid.env_keys
os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
