"""What is done with a whole file? It is measured, copied and compacted."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import stat
from pathlib import Path

import lmdb

from vecstore import layout
from vecstore.errors import LockedError, StoreError
from vecstore.store import copying, registry
from vecstore.store.environment import Environment
from vecstore.store.faults import translate, translated
from vecstore.store.files import is_alone, memory_path, remove
from vecstore.store.gate import seconds
from vecstore.store.transactions import Snapshot
from vecstore.store.unsynced import Mark

# A file is worth to be rewritten if such a share of its pages is free.
WASTED = 0.375
# Writes look whether it is each time that it has grown by so much, and after so many of them; then
# it stays below 1.25 / (1 - 0.375) = 2 times what is in it. So short a file is left as it is, and
# one with so many bytes in it, which takes long, is for whoever asks for it.
GROWN, WRITES = 1.25, 1024
SHORT, QUICK = 8 << 20, 256 << 20


class Store(Environment):
    """One open file. Threads share it; a process opens a file once."""

    # Bytes of the file when a write last looked at it, and writes since then.
    _seen, _writes = 0, 0

    def is_wasteful(self, most: float = math.inf) -> bool:
        """Whether the file should be rewritten: much of it is free, and not too much is in it."""
        used = self.usage()
        size, free = used["used_bytes"], used["free_bytes"]
        return free > WASTED * size and size - free <= most

    def is_outgrown(self) -> bool:
        """Whether a write should have the file rewritten; it is looked at now and then only."""
        size, self._writes = self.file_size(), self._writes + 1
        # It may have been rewritten.
        self._seen = min(self._seen, size)
        if size <= GROWN * self._seen and self._writes < WRITES:
            return False
        self._seen, self._writes = size, 0
        return size >= SHORT and self.is_wasteful(QUICK)

    def usage(self) -> dict[str, int]:
        """Bytes of the map, of pages used and of free ones; commits since the oldest reader's."""
        with self.snapshot() as snapshot:
            taken = snapshot.pages()
            # Within it: nobody closes the environment, or replaces the file, meanwhile.
            with translated("list readers"):
                # A line for each process and thread that reads or has read, below a heading.
                readers = [line.split() for line in str(self._env.readers()).splitlines()[1:]]
            newest = self.newest()
        behind = [newest.transaction - int(one[2]) for one in readers if one[2] != "-"]
        return {
            "map_bytes": self.map_size,
            "used_bytes": newest.pages * self.page,
            "free_bytes": max(0, newest.pages - taken) * self.page,
            "behind": max(behind, default=0),
        }

    def copy(self, target: Path, snapshot: Snapshot) -> int:
        """Write a compact copy of a snapshot to a new file, synced; return its bytes.

        The copy gets its name when it is whole. One that was killed leaves `<target>-part`, which
        the next one with that target takes away.

        Raises:
            StoreError: The target exists, or cannot be written; nothing is left behind.
        """
        return copying.publish(self._env, target, snapshot.txn)

    def compact(
        self, timeout: float | None = None, *, anew: bool = False, asked: bool = True
    ) -> int:
        """Rewrite the file without its free pages; return the bytes given back.

        With `anew` value by value, without what pages have between their entries. What nobody
        `asked` for is not done where the file would come to belong to another user or group, or
        where it has other names, which would not lead to the new one.

        Raises:
            LockedError: Another process has the file open, or snapshots did not end.
            StoreError: It cannot be written; or its name leads to another file by now.
        """
        timeout = seconds(timeout, self.timeout)
        with self.writer(timeout), self.gate.alone(timeout, "compact"):
            before = os.fstat(self._file).st_size
            try:
                self._take_alone()
                self._check_place()
                if not asked and os.fstat(self._file).st_nlink > 1:
                    raise StoreError(f"{self.path} has other names, which would keep the old file")
                target = self._copy_for_compact(anew=anew)
                try:
                    self._give_away(target, asked=asked)
                    self._check_place()
                    self._swap(target)
                except BaseException:
                    remove(target)
                    raise
            finally:
                self._share()
            # Last: should it fail, the file is in place and open all the same.
            self._sync_name()
            return before - os.fstat(self._file).st_size

    def check_alone(self, timeout: float | None = None) -> None:
        """Raise LockedError if another process has the file open, or snapshots here do not end.

        The right to write is needed: a try for the file alone may lose the shared lock, and who
        compacts meanwhile would take it that nobody else is there.
        """
        timeout = seconds(timeout, self.timeout)
        with self.writer(timeout), self.gate.alone(timeout, "rewrite the file"):
            try:
                self._take_alone()
            finally:
                self._share()

    def _take_alone(self) -> None:
        if not self.memory and not is_alone(self._file):
            raise LockedError(f"another process has {self.path} open; this needs the file alone")

    def _check_place(self) -> None:
        """Raise StoreError unless the file has its name still: another one there is not ours."""
        if self.memory:
            return
        with translated(f"replace {self.path}"):
            found = self.path.lstat()
        if not os.path.samestat(os.fstat(self._file), found):
            raise StoreError(f"{self.path} is another file than the one that was opened; reopen it")

    def _give_away(self, target: Path, *, asked: bool) -> None:
        """Let a copy belong to whom the file belongs, or others could not open it any more."""
        found, made = os.fstat(self._file), target.lstat()
        if (found.st_uid, found.st_gid) == (made.st_uid, made.st_gid):
            return
        try:
            os.chown(target, found.st_uid, found.st_gid)
            target.chmod(stat.S_IMODE(found.st_mode))
        except OSError as error:
            if not asked:
                raise translate(error, f"give {target} to the owner of {self.path}") from error

    def _copy_for_compact(self, *, anew: bool) -> Path:
        if self.memory:
            target = memory_path()
            target.unlink()
        else:
            target = self.path.with_name(f"{self.path.name}-compact")
            # One that was killed may have left its copy; this one has the file alone.
            remove(target)
        mode = stat.S_IMODE(os.fstat(self._file).st_mode)
        if anew:
            copying.rewrite(self._env, self.databases, target, mode, self.map_size)
        else:
            # The gate is held alone, so the snapshot is begun without it.
            with self._env.begin(buffers=True) as txn:
                copying.copy(self._env, target, txn, mode)
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
        try:
            self._take_over(target, file)
        except BaseException:
            # A handle of half a file would fail at every call.
            self._release()
            raise

    def _take_over(self, target: Path, file: int) -> None:
        """Go on with the file that has the name now."""
        self.epoch += 1
        old, self._file = self._file, file
        os.close(old)
        self.mark = Mark(file, waits=self.durable or self.memory)
        with registry.lock:
            registry.forget(self)
            registry.register(self, os.fstat(self._file), self.path)
        self._open_env()
        # Here nobody reads, whose transaction would not know it. Without room the file lacks it.
        with contextlib.suppress(lmdb.Error, OSError):
            for name in set(layout.OPTIONAL) - self.databases.keys():
                self.mark.make()
                self.databases[name] = self._env.open_db(name.encode())
                # The file was whole on the disk, and is so again when it gets its name there.
                self._env.sync(True)
        if self.memory:
            remove(self.path)
        else:
            self._nameless = True
