"""What is asked of the operating system? Calls that change files, seen and, if wanted, refused.

Those of LMDB go through the table of its extension's imports, where each entry is put in the place
of one of ours; those of Python are functions of `os`. Nothing of vecstore is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lmdb.cpython

_SIZE, _INT, _AT = ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p
_NATIVE: dict[str, Any] = {
    "pwrite": ctypes.CFUNCTYPE(_SIZE, _INT, _AT, _SIZE, _SIZE, use_errno=True),
    "writev": ctypes.CFUNCTYPE(_SIZE, _INT, _AT, _INT, use_errno=True),
    "write": ctypes.CFUNCTYPE(_SIZE, _INT, _AT, _SIZE, use_errno=True),
    "fdatasync": ctypes.CFUNCTYPE(_INT, _INT, use_errno=True),
    "fsync": ctypes.CFUNCTYPE(_INT, _INT, use_errno=True),
    "ftruncate": ctypes.CFUNCTYPE(_INT, _INT, _SIZE, use_errno=True),
}
WRITES = ("pwrite", "writev", "write")
SYNCS = ("fdatasync", "fsync")
_BY_FILE = ("fsync", "fdatasync", "ftruncate", "fchmod", "pwrite")
_BY_NAME = ("link", "rename", "replace", "unlink", "open", "chmod")
# Kinds of relocation that leave the address of an imported function in a table.
_IMPORTS = {62: (6, 7), 183: (1025, 1026)}


@dataclass(frozen=True)
class Call:
    """A call that changes a file, or the names in a folder.

    Attributes:
        name: Such as "pwrite".
        path: The file; of a link or a renaming, the old name.
        target: The new name.
        file: The handle.
        offset: Where a write begins; the length that ftruncate sets.
        data: What is written.
    """

    name: str
    path: str
    target: str = ""
    file: int = -1
    offset: int = 0
    data: bytes = b""

    @property
    def durable(self) -> bool:
        """Whether what is written is on the disk when the call returns, as LMDB's headers are."""
        return bool(fcntl.fcntl(self.file, fcntl.F_GETFL) & os.O_DSYNC)

    def write(self, size: int | None = None) -> int:
        """Write a part of the data, which is all that some disks take."""
        return _pwrite(self.file, self.data[:size], self.offset)


_pwrite = os.pwrite
# Given a call and what carries it out: the result. An OSError is what the system says instead.
Hook = Callable[[Call, Callable[[], Any]], Any]


def _slots() -> dict[str, int]:
    """Where the extension keeps the addresses of what it imports."""
    path = os.path.realpath(lmdb.cpython.__file__)
    with Path("/proc/self/maps").open() as maps:
        base = min(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(path))
    data = Path(path).read_bytes()
    machine, heads = struct.unpack_from("<H12xQ", data, 18)
    head_size, head_count = struct.unpack_from("<HH", data, 54)
    tags: dict[int, int] = {}
    for at in range(heads, heads + head_size * head_count, head_size):
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", data, at)
        if kind == 2:
            tags = dict(struct.iter_unpack("<QQ", data[offset : offset + size]))
    # Of tables: addresses in the file, which below its first page of data are offsets too.
    found = {}
    for table, length in ((23, 2), (7, 8)):
        for at in range(tags.get(table, 0), tags.get(table, 0) + tags.get(length, 0), 24):
            where, info = struct.unpack_from("<QQ", data, at)
            if info & 0xFFFFFFFF in _IMPORTS[machine]:
                (name,) = struct.unpack_from("<I", data, tags[6] + 24 * (info >> 32))
                start = tags[5] + name
                found[data[start : data.index(b"\0", start)].decode()] = base + where
    return {name: at for name, at in found.items() if name in _NATIVE}


def reason_against() -> str:
    """Why calls cannot be seen here, or an empty text."""
    if sys.platform != "linux" or sys.implementation.name != "cpython":
        return "the table of imports is found on Linux alone"
    try:
        found = _slots()
    except (OSError, ValueError, KeyError, struct.error) as error:
        return f"the extension's table of imports is not understood: {error}"
    missing = {"pwrite", "writev", "fdatasync"} - found.keys()
    return f"the extension imports no {', '.join(missing)}" if missing else ""


@contextlib.contextmanager
def watched(hook: Hook) -> Iterator[None]:
    """Let a hook decide on each call as long as the with statement; one watch at a time."""
    library = ctypes.CDLL(None, use_errno=True)
    with contextlib.ExitStack() as undo:
        for name, at in _slots().items():
            # Not what the table has: before its first use that is code which fills in the table.
            theirs = _NATIVE[name]((name, library))
            ours = _NATIVE[name](_native(name, theirs, hook))
            undo.callback(_put, library, at, theirs)
            _put(library, at, ours)
            undo.callback(_kept, ours)
        for name in (*_BY_FILE, *_BY_NAME):
            found = getattr(os, name)
            undo.callback(setattr, os, name, found)
            setattr(os, name, _python(name, found, hook))
        yield


def _put(library: Any, at: int, function: Any) -> None:
    page = at & -mmap.PAGESIZE
    if library.mprotect(_AT(page), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect")
    _AT.from_address(at).value = ctypes.cast(function, _AT).value


def _kept(function: Any) -> None:
    """What LMDB calls must live until it calls something else."""


def _path(file: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{file}").readlink())
    except OSError:
        return ""


def _native(name: str, theirs: Any, hook: Hook) -> Callable[..., int]:
    def carry_out(*arguments: Any) -> int:
        result = int(theirs(*arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def answer(file: int, *rest: Any) -> int:
        try:
            return int(hook(_seen(name, file, rest), lambda: carry_out(file, *rest)))
        except OSError as error:
            ctypes.set_errno(error.errno or errno.EIO)
            return -1

    return answer


def _seen(name: str, file: int, rest: tuple[Any, ...]) -> Call:
    offset, data = 0, b""
    if name == "ftruncate":
        (offset,) = rest
    elif name in WRITES:
        offset = rest[2] if name == "pwrite" else os.lseek(file, 0, os.SEEK_CUR)
        parts = [rest[:2]]
        if name == "writev":
            vector = (_AT * (2 * rest[1])).from_address(rest[0])
            parts = list(zip(vector[::2], vector[1::2], strict=True))
        data = b"".join(ctypes.string_at(start, size) for start, size in parts if size)
    return Call(name, _path(file), file=file, offset=offset, data=data)


def _python(name: str, theirs: Callable[..., Any], hook: Hook) -> Callable[..., Any]:
    def ours(*arguments: Any, **named: Any) -> Any:
        def carry_out() -> Any:
            return theirs(*arguments, **named)

        first = arguments[0]
        if name in _BY_FILE:
            file = first if isinstance(first, int) else first.fileno()
            call = Call(name, _path(file), file=file)
            if name == "ftruncate":
                call = replace(call, offset=arguments[1])
            elif name == "pwrite":
                call = replace(call, data=bytes(arguments[1]), offset=arguments[2])
            return hook(call, carry_out)
        if name == "open" and not arguments[1] & os.O_CREAT:
            return carry_out()
        target = os.fspath(arguments[1]) if name in ("link", "rename", "replace") else ""
        return hook(Call(name, os.fspath(first), target), carry_out)

    return ours
