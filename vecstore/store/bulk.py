"""Where in the map does a value lie that has pages of its own? Found without touching it.

py-lmdb reads a byte of each page of whatever value it returns, so that no thread waits for the disk
while it keeps others from running. Of a block that takes 25 pages a search wants one or two. A key
is returned as it lies in its page, and there LMDB has the number of the value's first page behind
it (struct MDB_node in LMDB's mdb.c).
"""

from __future__ import annotations

import contextlib
import ctypes
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


def map_start(inside: int) -> int:
    """The address where the first byte of the file is in the map that an address is in.

    0 where that is not told. The file itself is not asked for: others in this process may have it
    mapped too, and not every file system tells its number and the map's alike.
    """
    if sys.byteorder != "little" or struct.calcsize("P") != 8:
        return 0
    with contextlib.suppress(OSError, ValueError):
        # Names are bytes, in which only newlines are written otherwise.
        for line in Path("/proc/self/maps").read_bytes().split(b"\n")[:-1]:
            span, kind, offset, _ = line.split(b" ", 3)
            low, high = (int(end, 16) for end in span.split(b"-"))
            if low <= inside < high:
                # A copy would lie in memory that is shared with nobody.
                return low - int(offset, 16) if kind.endswith(b"s") else 0
    return 0


def locate(cursor: Any, key: bytes, start: int, page: int, size: int) -> memoryview | None:
    """View the value under a key, or None if there is none.

    Args:
        cursor: Of a database, in a transaction whose values are views.
        key: The key.
        start: Where the map begins, from `map_start`.
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
    check_place(address, length, page, size, number)
    view = memoryview((ctypes.c_char * length).from_address(address))
    return view.cast("B").toreadonly()


def address_of(value: memoryview) -> int:
    """Where a view begins."""
    return int(np.frombuffer(value, np.uint8).__array_interface__["data"][0])


def check_place(
    address: int, length: int, page: int, size: int, expected: int | None = None
) -> None:
    """Raise CorruptionError unless a value lies on whole pages that are inside the file.

    Where its first page stands is `expected`; without, what the page says of itself is believed.
    """
    start = address - _PAGE.size
    number, _, flags, pages = _PAGE.unpack(ctypes.string_at(start, _PAGE.size))
    if (
        address % 64 != _PAGE.size
        or expected not in (None, number)
        or not flags & _OVERFLOW
        or pages * page < _PAGE.size + length
        or (number + pages) * page > size
    ):
        raise _misplaced(length)


def _misplaced(length: int) -> CorruptionError:
    return CorruptionError(f"a value of {length} bytes does not lie on whole pages of the file")
