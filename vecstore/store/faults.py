"""What went wrong below? Errors of lmdb and of the system as vecstore's."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import lmdb

from vecstore.errors import (
    CorruptionError,
    FormatError,
    LockedError,
    ReadOnlyError,
    StoreError,
    StoreFullError,
)

MAX_READERS = 1024
# The last two come of links that lead nowhere, and of going on after the first error.
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.IncompatibleError,
    lmdb.NotFoundError,
    lmdb.BadTxnError,
)


class MapFullError(StoreFullError):
    """The map is full; growing it helps."""


@contextlib.contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn errors of lmdb and of the system into vecstore's."""
    try:
        yield
    except (lmdb.Error, OSError, MemoryError) as error:
        raise translate(error, action) from error


def translate(error: BaseException, action: str) -> StoreError:
    """Return the exception that stands for an error of lmdb or of the system."""
    code = error.args[0] if isinstance(error, OSError) and error.args else _code(error)
    message = f"cannot {action}: {error}"
    if isinstance(error, lmdb.MapFullError):
        return MapFullError(f"{message}; one transaction is larger than the room in the map")
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFullError(f"{message}; free space on the disk and try again")
    if code == errno.EIO:
        # What LMDB says too of a disk that takes only a part of a page.
        return StoreFullError(
            f"{message}; the disk is full, or fails: free space on the disk first"
        )
    if isinstance(error, lmdb.PanicError):
        return StoreError(
            f"{message}; the disk did not take a commit of this process: close the file and open it"
            " again"
        )
    if isinstance(error, lmdb.TxnFullError):
        return StoreFullError(f"{message}; the transaction is too large, split it")
    if isinstance(error, lmdb.ReadersFullError):
        return LockedError(f"{message}; {MAX_READERS} snapshots are open, end some")
    if code in (errno.EACCES, errno.EPERM):
        return StoreError(
            f"{message}; vecstore needs to write the file, its '-lock' file and their folder"
        )
    if isinstance(error, lmdb.ReadonlyError) or code == errno.EROFS:
        return ReadOnlyError(message)
    if isinstance(error, lmdb.LockError):
        return LockedError(message)
    if isinstance(error, lmdb.VersionMismatchError | lmdb.InvalidError):
        return FormatError(f"{message}; it is not a file of vecstore's engine (LMDB 0.9)")
    if isinstance(error, _DAMAGE):
        return CorruptionError(f"{message}; restore a backup, or salvage it")
    return StoreError(message)


def _code(error: BaseException) -> int:
    return int(getattr(error, "code", 0) or 0)
