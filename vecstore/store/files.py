"""What is at a path, and who else has it? Opening, header pages, locks between processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import stat
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import lmdb.verify

from vecstore import layout
from vecstore.errors import (
    CorruptionError,
    FormatError,
    LockedError,
    StoreError,
    StoreFullError,
    UsageError,
)
from vecstore.store import registry, unsynced
from vecstore.store.faults import translate, translated

MEMORY_ROOM = 1 << 30
LOCK_ROOM = 128 << 10
# Of a new database: two headers, and the two pages of its first transaction.
FIRST_PAGES = 4
DAMAGE_TRIES = 5
# What LMDB counts in a file that nothing was ever written to: its headers.
EMPTY_PAGES = 2

_LMDB_MAGIC = 0xBEEFC0DE
_LMDB_VERSION = 1
_META = struct.Struct("<IIQQ")
_META_AT = 16
_MAP_SIZE_AT = 16 + 16
_PAGE_SIZE_AT = 16 + 24
_LAST_PAGE_AT = 16 + 24 + 96
HEAD_BYTES = _LAST_PAGE_AT + 16
# Far beyond any file: the byte whose record lock stands for the right to write.
_WRITER_BYTE = 1 << 62
_FLOCK = struct.Struct("hhqqi4x")


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


def path_name(path: object) -> str:
    """Return a path as a str; UsageError if it is none."""
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(name, str):
        raise UsageError(f"a path is a str or a Path, got {type(path).__name__} {path!r:.60}")
    return name


def real_path(path: str | os.PathLike[str]) -> Path:
    """The path without links: the lock file must have one name, whatever way leads to the data."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot open {os.fspath(path)!r}: {error}") from error


def check_lock_file(path: Path) -> None:
    """Refuse a lock file that is not to be written: LMDB makes it its own, whatever it is.

    Raises:
        StoreError: It leads to another file, which may be anybody's.
        StoreFullError: It does not exist yet, and the disk is full: LMDB writes it through a map,
            and would crash.
    """
    lock = path.with_name(path.name + "-lock")
    with contextlib.suppress(OSError):
        found = lock.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise StoreError(f"{lock} is a link, or no file: whoever opens {path} writes to it")
        if found.st_blocks:
            return
    with translated(f"open {path}"):
        disk = os.statvfs(path.parent)
    if disk.f_bfree * disk.f_frsize < LOCK_ROOM:
        raise StoreFullError(
            f"cannot open {path}: no room for its lock file; free space on the disk and try again"
        )


def is_room_for(size: int) -> bool:
    """Whether the process has this much address space left."""
    try:
        mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def open_file(path: Path, read_only: bool, timeout: float) -> tuple[int, bool]:
    """Open the data file and lock it shared; return the handle and whether it is new."""
    deadline = time.monotonic() + timeout
    while True:
        created = False
        check_path(path, read_only)
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
            raise translate(error, f"open {path}") from error
        if lock_shared(file):
            if not read_only and _is_unfinished(file):
                if is_alone(file):
                    # Whoever was making it was cut off, and nobody is at it any more.
                    os.ftruncate(file, 0)
                elif time.monotonic() > deadline:
                    os.close(file)
                    raise LockedError(f"{path} is being made by another process; try again later")
            else:
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file), path.stat()):
                        return file, created
        elif time.monotonic() > deadline:
            os.close(file)
            raise LockedError(f"{path} is being compacted by another process; try again later")
        os.close(file)
        time.sleep(0.01)


def _is_unfinished(file: int) -> bool:
    """Whether a file was to become a database and nothing was ever committed to it.

    A power cut may leave any part of the pages that LMDB writes first, zeros in place of the rest.
    """
    size, page = os.fstat(file).st_size, mmap.PAGESIZE
    if not 0 < size <= FIRST_PAGES * page or size % 4096:
        return False
    data = os.pread(file, FIRST_PAGES * page, 0).ljust(FIRST_PAGES * page, b"\0")
    for at in (0, page):
        magic, version, _, _ = _META.unpack_from(data, at + _META_AT)
        made = magic == _LMDB_MAGIC and version == _LMDB_VERSION
        if any(data[at : at + HEAD_BYTES]) and not (made and not Head.read(data, at).transaction):
            return False
    return True


def check_path(path: Path, read_only: bool) -> None:
    """Refuse what is no regular file, or one that this process has open.

    Raises:
        StoreError, LockedError: What is in the way.
    """
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
    with registry.lock:
        registry.check_unregistered(path.stat(), path)


def check_header(file: int, path: Path, read_only: bool) -> None:
    """Refuse what LMDB would misread, overwrite, or read beyond its end."""
    size = os.fstat(file).st_size
    if size == 0:
        if read_only:
            raise FormatError(f"{path} is empty; open it for writing once to make it a database")
        return
    head = os.pread(file, 4096, 0)
    if len(head) < HEAD_BYTES:
        raise FormatError(f"{path} is not a vecstore file ({size} bytes)")
    magic, version, _, _ = _META.unpack_from(head, _META_AT)
    if magic != _LMDB_MAGIC or version != _LMDB_VERSION:
        raise FormatError(f"{path} is not a vecstore file (no LMDB 0.9 header)")
    page = page_size(file)
    if page not in (4096, 8192, 16384, 32768, 65536):
        raise CorruptionError(f"{path}: impossible page size {page}")
    if size < page + HEAD_BYTES:
        raise CorruptionError(f"{path} is cut short: {size} bytes, less than its header pages")
    if unsynced.is_in_doubt(file) and (problems := verify(file)):
        raise CorruptionError(
            f"{path}: the system went down before what was written with durable=False was on the"
            f" disk, and the file is damaged: {problems[0]}; restore a backup, or salvage it"
        )
    needed = page * max(heads(file, page), key=lambda at: at.transaction).pages
    # A process killed between a commit and `fill_up` leaves out pages that nothing refers to.
    if size < needed and verify(file):
        raise CorruptionError(
            f"{path} is cut short: {size} bytes, its last page ends at {needed};"
            " restore a backup, or salvage it"
        )


def page_size(file: int) -> int:
    """The size of a file's pages, as its first header says."""
    return int.from_bytes(os.pread(file, 4, _PAGE_SIZE_AT), "little")


def heads(file: int, page: int) -> tuple[Head, Head]:
    """What the two headers of a file say, of the last commit and of the one before."""
    data = os.pread(file, page + HEAD_BYTES, 0)
    return Head.read(data), Head.read(data, page)


def check_pages(file: int, path: Path) -> None:
    """Refuse a file whose pages are not to be trusted, before LMDB sees any."""
    problems = damage(file)
    if problems:
        shown = "; ".join(problems[:3])
        raise CorruptionError(
            f"{path} cannot be trusted: {len(problems)} problems, such as: {shown}"
        )


def check_name(file: int, path: Path) -> None:
    """Refuse a path that leads elsewhere by now: LMDB opened what it led to."""
    with translated(f"open {path}"):
        found = path.stat()
    if not os.path.samestat(os.fstat(file), found):
        raise LockedError(f"{path} was replaced while it was opened; try again")


def damage(file: int) -> list[str]:
    """Return what is wrong with LMDB's own pages, in a file that others may write to meanwhile."""
    page = page_size(file)
    for _ in range(DAMAGE_TRIES):
        before = heads(file, page)
        problems = verify(file)
        if not problems or heads(file, page) == before:
            return problems
        # Pages were used again while they were read.
    return []


class _Pages:
    """A data file as LMDB's verifier reads it: by its handle, whatever has its name meanwhile."""

    def __init__(self, file: int) -> None:
        self._file, self._at = file, 0

    def seek(self, at: int) -> None:
        self._at = at

    def read(self, count: int) -> bytes:
        return os.pread(self._file, count, self._at)


def verify(file: int) -> list[str]:
    """Return what is wrong with LMDB's own pages, read without LMDB."""
    try:
        size = os.fstat(file).st_size
        # lmdb.verify.verify takes a path, which may lead elsewhere by then, and of a value on many
        # pages it looks for the first one only.
        verifier = lmdb.verify._Verifier(_Pages(file), size)  # type: ignore[no-untyped-call]
        problems = [str(problem) for problem in verifier.verify()]  # type: ignore[no-untyped-call]
        if any(verifier.live[size // verifier.psize :]):
            problems.append(f"pages that are in use lie behind the end, {size} bytes")
        return problems
    except (lmdb.verify.VerifyError, OSError) as error:
        return [str(error)]
    except (ValueError, LookupError, OverflowError, RecursionError, struct.error) as error:
        # Named databases in named databases, over and over.
        return [f"the pages cannot be verified: {error!r:.200}"]


def check_format(value: bytes | None, path: Path) -> None:
    """Refuse a file of another program, or of a format that this release does not read."""
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


def memory_path() -> Path:
    """Make an empty file, in memory-backed storage where that has room, else in a temp folder."""
    shared = Path("/dev/shm")
    folder = None
    with contextlib.suppress(OSError):
        if os.access(shared, os.W_OK) and shutil.disk_usage(shared).free >= MEMORY_ROOM:
            folder = shared
    with translated("make a temporary file"):
        file, name = tempfile.mkstemp(".vecstore", "memory-", folder)
    os.close(file)
    return Path(name)


def remove(path: Path) -> None:
    """Take away a data file and its lock file, if they are there."""
    for name in (path, path.with_name(path.name + "-lock")):
        with contextlib.suppress(OSError):
            name.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, if that can be asked of its file system and this user."""
    with translated(f"sync {folder}"):
        try:
            handle = os.open(folder, os.O_RDONLY)
        except PermissionError:
            return
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)


# Locks between processes


def lock_shared(file: int) -> bool:
    """Try to lock the data file against compaction; StoreError where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(f"this file system has no locks: {error}") from error
    return True


def is_alone(file: int) -> bool:
    """Try to lock the data file for this process alone; a failed try may lose the shared lock."""
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


def take_writer_byte(file: int, timeout: float, path: Path) -> None:
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
            raise translate(error, f"lock {path}") from error
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def leave_writer_byte(file: int) -> None:
    """Let other processes write."""
    _set_writer_byte(file, fcntl.F_UNLCK)
