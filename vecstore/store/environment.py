"""What is an open file? The LMDB environment: opening, reading, writing, growing, closing."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import lmdb

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
from vecstore.store import registry
from vecstore.store.faults import MAX_READERS, MapFullError, translate, translated
from vecstore.store.files import (
    EMPTY_PAGES,
    Head,
    check_format,
    check_header,
    check_lock_file,
    check_name,
    check_pages,
    damage,
    heads,
    is_alone,
    is_room_for,
    leave_writer_byte,
    memory_path,
    open_file,
    path_name,
    real_path,
    remove,
    sync_folder,
    take_writer_byte,
)
from vecstore.store.gate import Gate, WriterLock, seconds
from vecstore.store.tables import Tables
from vecstore.store.transactions import Snapshot, Transaction
from vecstore.store.unsynced import Mark

T = TypeVar("T")

MEMORY = ":memory:"
START_MAP = 64 << 30
START_MEMORY_MAP = 4 << 30
SMALLEST_MAP = 1 << 20
DEFAULT_TIMEOUT = 30.0
CLOSE_TIMEOUT = 5.0


class Environment:
    """The LMDB environment of a file, with all that guards it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        durable: bool = True,
        timeout: float = DEFAULT_TIMEOUT,
        verify: bool = False,
        start_map: int | None = None,
    ) -> None:
        self.read_only = read_only
        self.durable = durable
        self.timeout = seconds(timeout, DEFAULT_TIMEOUT)
        self.gate = Gate()
        self.tables = Tables()
        self.epoch = 0
        self.forked = False
        self.map_size = 0
        # Where the map begins; None until it is asked for, and 0 if that cannot be found out.
        self.map_start: int | None = None
        self.databases: dict[str, Any] = {}
        # While `compact` changes files there is no environment, and yet the store is open.
        self._env: Any = None
        self._closed = False
        self._file = -1
        self._writer = WriterLock()
        self._active: weakref.ref[Transaction] | None = None
        # Transactions whose with statement ended in a wrong thread.
        self.stranded: list[Transaction] = []
        self._grow = False
        # Whether a power cut may leave the folder without the file, or with the former one.
        self._nameless = False
        self._start_map = start_map
        self.memory = path_name(path) == MEMORY
        if self.memory and read_only:
            raise UsageError("a ':memory:' database is new and empty; read_only=True has no use")
        self.path = memory_path() if self.memory else real_path(path)
        # What it is called in messages.
        self.name = MEMORY if self.memory else str(self.path)
        self._open(verify)

    # Opening and closing

    def _open(self, verify: bool) -> None:
        created = False
        try:
            if self.memory:
                self._file, created = os.open(self.path, os.O_RDWR), True
            else:
                self._file, created = open_file(self.path, self.read_only, self.timeout)
            with registry.lock:
                registry.register(self, os.fstat(self._file), self.path)
            check_header(self._file, self.path, self.read_only)
            self.mark = Mark(self._file, waits=self.durable or self.memory)
            self._nameless = not self.memory and os.fstat(self._file).st_size == 0
            self._sync_name()
            if verify and os.fstat(self._file).st_size:
                check_pages(self._file, self.path)
            self._open_env()
            if verify:
                check_name(self._file, self.path)
            created = False
        except BaseException:
            # A file that was made here and is of no use is taken away, unless somebody has it open.
            if created and self._file >= 0 and is_alone(self._file):
                remove(self.path)
            self._release()
            raise
        if self.memory:
            # The open handles keep the files alive; nothing is left behind, even by a kill.
            remove(self.path)

    def trust(self) -> None:
        """Take note that a file in doubt was found to be whole."""
        if not self.read_only:
            with self.writer(), translated(f"write to {self.name}"):
                self.mark.trust()

    def _open_env(self) -> None:
        size = os.fstat(self._file).st_size
        start = self._start_map or (START_MEMORY_MAP if self.memory else START_MAP)
        map_size = max(start, 8 * size)
        check_lock_file(self.path)
        while True:
            try:
                self._env = lmdb.open(
                    os.fspath(self.path),
                    map_size=map_size,
                    subdir=False,
                    readonly=self.read_only,
                    sync=self.durable and not self.memory,
                    mode=0o600,
                    max_readers=MAX_READERS,
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
                raise translate(error, f"open {self.path}") from error
        self.page = int(self._env.stat()["psize"])
        self.map_size = int(self._env.info()["map_size"])
        self.map_start = None
        with translated(f"open {self.path}"):
            self._env.reader_check()
        # To open a database, py-lmdb begins a write transaction, unless the file is read-only.
        if not self.read_only:
            take_writer_byte(self._file, self.timeout, self.path)
        try:
            with translated(f"open {self.path}"):
                self._open_databases()
        finally:
            if not self.read_only:
                leave_writer_byte(self._file)

    def _open_databases(self) -> None:
        with self._env.begin() as txn:
            names = [bytes(key).decode("utf-8", "replace") for key, _ in txn.cursor()]
        if not names and not self.read_only:
            if any(head.pages > EMPTY_PAGES for head in heads(self._file, self.page)):
                # The other header is of a commit that this one would be written over.
                raise CorruptionError(f"{self.path} is empty, says the newer one of its headers")
            self._create_databases()
        elif not set(layout.DATABASES) - set(layout.OPTIONAL) <= set(names):
            raise FormatError(f"{self.path} is an LMDB file, but not one of vecstore's")
        else:
            for name in set(layout.DATABASES) & set(names):
                self.databases[name] = self._env.open_db(name.encode(), create=False)
        with self._env.begin() as txn:
            odd = [name for name, db in self.databases.items() if any(db.flags(txn).values())]
            value = txn.get(layout.KEY_FORMAT, db=self.databases["meta"])
        if odd:
            # In another order, or with several values under a key, nothing is where it is sought.
            raise CorruptionError(f"{self.path}: database {odd[0]!r} is of another kind")
        check_format(value, self.path)

    def _create_databases(self) -> None:
        self.mark.make()
        with self._env.begin(write=True) as txn:
            for name in layout.DATABASES:
                self.databases[name] = self._env.open_db(name.encode(), txn=txn)
            value = layout.pack_format(layout.PLAIN_FORMAT, layout.PLAIN_FORMAT)
            txn.put(layout.KEY_FORMAT, value, db=self.databases["meta"])

    def check_open(self) -> None:
        """Raise ClosedError if the store cannot be used (any more, or in this process)."""
        if self.forked:
            raise ClosedError(
                f"{self.path} was opened before this process was forked; a handle does not survive"
                " a fork: open the file again in the child"
            )
        if self._closed:
            raise ClosedError(f"{self.path} is closed; open it again")

    @property
    def closed(self) -> bool:
        """Whether the store cannot be used any more."""
        return self.forked or self._closed

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close the file; calling it again does nothing.

        Raises:
            LockedError: Snapshots or a writer of this process did not end in time.
        """
        if self.closed:
            self._release()
            return
        timeout = seconds(timeout, CLOSE_TIMEOUT)
        self._lock_threads(timeout, "close the file")
        try:
            with self.gate.alone(timeout, "close"):
                if self.mark.made and not self.stranded:
                    self._take_mark_away(timeout)
                self._release()
        finally:
            self._writer.leave()

    def _take_mark_away(self, timeout: float) -> None:
        """Have everything on the disk if nobody else has the file open."""
        # Who asks that without the right to write may lose the lock while another one compacts.
        with contextlib.suppress(LockedError):
            take_writer_byte(self._file, timeout, self.path)
            try:
                if is_alone(self._file):
                    self.mark.take_away(self._env)
            finally:
                self._share()
                leave_writer_byte(self._file)

    def _share(self) -> None:
        """Lock the file against compaction, after a try to have it alone."""
        if not self.memory and self._file >= 0:
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def _release(self) -> None:
        self._closed = True
        env, self._env = self._env, None
        if env is not None and not self.forked and not self.stranded:
            env.close()
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
        with registry.lock:
            registry.forget(self)

    def abandon(self) -> None:
        """Let go, in a forked child, of what belongs to the parent."""
        self.forked = True
        # Never freed here: py-lmdb would wait for the parent's threads, and clear the slots that
        # keep the pages of the parent's snapshots.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._env))
        # The locks belong to the parent's handle; this one only keeps the file from compaction.
        os.close(self._file)
        self._file = -1

    def __del__(self) -> None:
        # Nobody can hold a snapshot here: snapshots refer to their store.
        with contextlib.suppress(Exception):
            self._release()

    # Reading

    def snapshot(self, timeout: float | None = None) -> Snapshot:
        """Begin a read transaction."""
        timeout = self.timeout if timeout is None else seconds(timeout, self.timeout)
        self.check_open()
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
            raise translate(error, f"read {self.name}") from error
        with translated(f"read {self.name}"):
            return self._env.begin(buffers=True)

    # Writing

    def begin(self, timeout: float | None = None) -> Transaction:
        """Begin a write transaction; the caller holds the writer's lock."""
        timeout = seconds(timeout, self.timeout)
        self._sync_name()
        self._make_room(timeout)
        try:
            return self._begin_writing()
        except lmdb.MapResizedError:
            pass
        except lmdb.Error as error:
            raise translate(error, f"write to {self.name}") from error
        self._follow(timeout)
        with translated(f"write to {self.name}"):
            return self._begin_writing()

    def _begin_writing(self) -> Transaction:
        with translated(f"write to {self.name}"):
            self.mark.make()
        # Readers that were killed would keep the pages of their snapshots from being used again.
        self._env.reader_check()
        transaction = Transaction(self, self._env.begin(write=True))
        self._active = weakref.ref(transaction)
        return transaction

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
        if parent.ended:
            raise ClosedError("the transaction around this one has ended")
        with translated(f"write to {self.name}"):
            return Transaction(self, self._env.begin(write=True, parent=parent.txn), parent)

    def write(self, work: Callable[[Transaction], T], timeout: float | None = None) -> T:
        """Run `work` in one transaction of its own and commit it.

        Should the map be full, it grows and `work` runs again from the start.

        Raises:
            ReadOnlyError, LockedError, StoreFullError, and whatever `work` raises. In every
            case the file is as it was.
        """
        with self.writer(timeout):
            while True:
                transaction = self.begin(timeout)
                try:
                    result = work(transaction)
                    transaction.commit()
                    return result
                except MapFullError:
                    self._grow = True
                finally:
                    transaction.abort()

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
        except MapFullError as error:
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
        timeout = seconds(timeout, self.timeout)
        self._lock_threads(timeout, "write")
        try:
            self.check_open()
            take_writer_byte(self._file, timeout, self.path)
        except BaseException:
            self._writer.leave()
            raise

    def leave_writer(self) -> None:
        """Give back the right to write."""
        try:
            if self._file >= 0:
                leave_writer_byte(self._file)
        finally:
            self._writer.leave()

    def _lock_threads(self, timeout: float, purpose: str) -> None:
        for transaction in list(self.stranded):
            transaction.abort()
        if not self._writer.take(timeout):
            raise LockedError(
                f"cannot {purpose}: thread {self._writer.holder} holds the transaction for more"
                f" than {timeout:g} s"
            )
        active = None if self._active is None else self._active()
        if active is not None and not active.ended:
            self._writer.undo()
            raise LockedError(f"cannot {purpose}: this thread is in the middle of a write")

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
        return max(heads(self._file, self.page), key=lambda head: head.transaction)

    def damage(self) -> list[str]:
        """Return what is wrong with LMDB's own pages; LMDB trusts them, and may crash on damage."""
        return [] if self.memory else damage(self._file)

    def sync(self) -> None:
        """Flush everything committed so far to the disk."""
        self.check_open()
        if self.read_only:
            return
        ticket = self.gate.enter(self.timeout)
        try:
            self.check_open()
            with translated(f"sync {self.name}"):
                self._env.sync(True)
        finally:
            self.gate.leave(ticket)

    def file_size(self) -> int:
        """Bytes of the data file."""
        self.check_open()
        return os.fstat(self._file).st_size

    def _sync_name(self) -> None:
        """Make the file's name durable, without which nothing in it is."""
        if self._nameless:
            sync_folder(self.path.parent)
            self._nameless = False

    def _remap(self, wanted: int, least: int) -> None:
        """Give the map another size; the gate is held alone.

        Raises:
            StoreFullError: There is no address space even for `least` bytes.
        """
        # LMDB gives up the old map before it asks for the new one, so that must not fail.
        while not is_room_for(wanted):
            if wanted <= least:
                raise StoreFullError(
                    f"{self.path}: the map of {self.map_size} bytes is full and there is no address"
                    " space for a larger one; raise the process's limit on virtual memory"
                )
            wanted = max(least, wanted * 3 // 4)
        self.epoch += 1
        with translated(f"enlarge the map of {self.name}"):
            self._env.set_mapsize(wanted)
        # LMDB takes more where another process has let the file grow beyond that by now.
        self.map_size, self.map_start = int(self._env.info()["map_size"]), None
