"""How is a protobuf message read and written, field by field?

Source: the Protocol Buffers encoding, https://protobuf.dev/programming-guides/encoding/. Nothing is
trusted: every number and every length is checked against the end of what holds it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

Data = bytes | mmap.mmap
_LENGTH = 2


class Malformed(Exception):
    """The bytes are not the protobuf that an ONNX file is."""


def fields(data: Data, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, first byte and end of each field's value; a field begins where one ended.

    Raises:
        Malformed: A field is of no known kind, or leaves the message.
    """
    at = start
    while at < end:
        tag, at = varint(data, at, end)
        kind = tag & 7
        if kind == _LENGTH:
            size, at = varint(data, at, end)
            stop = at + size
        elif kind == 0:
            stop = varint(data, at, end)[1]
        elif kind in (1, 5):
            stop = at + (8 if kind == 1 else 4)
        else:
            raise Malformed(f"byte {at} starts no field")
        if stop > end:
            raise Malformed(f"the field at byte {at} is longer than the file")
        yield tag >> 3, at, stop
        at = stop


def varint(data: Data, at: int, end: int) -> tuple[int, int]:
    """Return the number that begins at a byte, and where it ends; at most 64 bits."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise Malformed(f"byte {at} ends no number")


def numbers(data: Data, start: int, end: int) -> list[int]:
    """Return the integers of a field, which may be packed into one value."""
    found = []
    while start < end:
        value, start = varint(data, start, end)
        found.append(value)
    return found


def number(data: Data, start: int, end: int) -> int:
    """Return the integer of a field; of a packed one the last, and 0 if there is none."""
    return (numbers(data, start, end) or [0])[-1]


def text(data: Data, start: int, end: int, wanted: int) -> str:
    """Return the string in a message's field of this number, "" if there is none."""
    for number, begin, stop in fields(data, start, end):
        if number == wanted:
            return data[begin:stop].decode()
    return ""


def field(number: int, size: int) -> bytes:
    """Return what stands before a value of so many bytes."""
    return _encoded(number << 3 | _LENGTH) + _encoded(size)


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
