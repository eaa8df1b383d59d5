"""Where in the map does a value lie that has pages of its own? Found without touching it.

py-lmdb reads a byte of each page of whatever value it returns, so that no thread waits for the disk
while it keeps others from running. Of a block that takes 25 pages a search wants one or two. A key
is returned as it lies in its page, and there LMDB has the number of the value's first page behind
it (struct MDB_node in LMDB's mdb.c).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vecstore.errors import CorruptionError

# Both halves of a value's length, flags, and bytes of the key, in front of a key.
_NODE = struct.Struct("<HHHH")
_NUMBER = struct.Struct("<Q")
# Of a page its number, flags, and how many pages it is the first of.
_PAGE = struct.Struct("<QHHI")
_LONG, _OVERFLOW = 0x01, 0x04


def map_start(file: int) -> int | None:
    """The address at which this process has mapped a file; None where that is not told."""
    if sys.byteorder != "little" or struct.calcsize("P") != 8:
        return None
    with contextlib.suppress(OSError, ValueError):
        found = os.fstat(file)
        named = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x} {found.st_ino} "
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, _, begin, rest = line.split(" ", 3)
            if int(begin, 16) == 0 and f"{rest} ".startswith(named):
                return int(span.partition("-")[0], 16)
    return None


def locate(cursor: Any, key: bytes, start: int, page: int, size: int) -> memoryview | None:
    """View the value under a key, or None if there is none.

    Args:
        cursor: Of a database, in a transaction whose values are views.
        key: The key.
        start: Where the map begins.
        page: Bytes of a page.
        size: Bytes of the file that are mapped.

    Raises:
        CorruptionError: The value does not lie on pages of its own, inside the file.
    """
    if not cursor.set_key(key):
        return None
    at = address_of(cursor.key())
    low, high, flags, width = _NODE.unpack(ctypes.string_at(at - _NODE.size, _NODE.size))
    (number,) = _NUMBER.unpack(ctypes.string_at(at + width, _NUMBER.size))
    length = low | high << 16
    if not flags & _LONG or (number + 1) * page > size:
        raise _misplaced(length)
    address = start + number * page + _PAGE.size
    check_place(address, length, page, size)
    view = memoryview((ctypes.c_char * length).from_address(address))
    return view.cast("B").toreadonly()


def address_of(value: memoryview) -> int:
    """Where a view begins."""
    return int(np.frombuffer(value, np.uint8).__array_interface__["data"][0])


def check_place(address: int, length: int, page: int, size: int) -> None:
    """Raise CorruptionError unless a value lies on whole pages that are inside the file."""
    start = address - _PAGE.size
    number, _, flags, pages = _PAGE.unpack(ctypes.string_at(start, _PAGE.size))
    if (
        address % 64 != _PAGE.size
        or not flags & _OVERFLOW
        or pages * page < _PAGE.size + length
        or (number + pages) * page > size
    ):
        raise _misplaced(length)


def _misplaced(length: int) -> CorruptionError:
    return CorruptionError(f"a value of {length} bytes does not lie on whole pages of the file")
