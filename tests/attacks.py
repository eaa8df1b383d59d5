"""Ways to spoil a file: by chance, and by somebody who knows the format and its checksums."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np

from vecstore import index_layout, layout, record_layout
from vecstore.encoders.adapters import adapter
from vecstore.layout import HEADER, State

PAGE = 4096
Key = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Case:
    """A spoiled file: other bytes, or other values under some keys (None takes one away)."""

    name: str
    data: bytes | None = None
    values: tuple[tuple[Key, bytes | None], ...] = ()
    flags: dict[str, bool] | None = None

    def write(self, intact: bytes, path: Path) -> None:
        """Make the file."""
        path.with_name(f"{path.name}-lock").unlink(missing_ok=True)
        path.write_bytes(intact if self.data is None else self.data)
        if self.values:
            change(path, self.values)


def change(path: Path, values: tuple[tuple[Key, bytes | None], ...]) -> None:
    """Write values by LMDB alone, whose pages are right afterwards."""
    with (
        lmdb.open(
            str(path), subdir=False, max_dbs=16, lib_version=0, sync=False, lock=False,
            map_size=1 << 28,
        ) as env,
        env.begin(write=True) as txn,
    ):  # fmt: skip
        opened = {name: env.open_db(name.encode(), txn=txn) for (name, _), _ in values}
        for (name, key), value in values:
            if value is None:
                txn.delete(key, db=opened[name])
            else:
                txn.put(key, value, db=opened[name])


def values_of(path: Path) -> dict[Key, bytes]:
    """Everything in a file."""
    found = {}
    with lmdb.open(
        str(path), subdir=False, max_dbs=16, lib_version=0, lock=False, readonly=True
    ) as env:
        for name in layout.DATABASES:
            database = env.open_db(name.encode(), create=False)
            with env.begin(db=database) as txn:
                found.update({(name, bytes(key)): bytes(value) for key, value in txn.cursor()})
    return found


# By chance


def flips(data: bytes, rng: random.Random, count: int) -> Iterator[Case]:
    """One bit, or one byte, somewhere in each of so many parts of equal size."""
    for number in range(count):
        at = rng.randrange(number * len(data) // count, (number + 1) * len(data) // count)
        spoiled = bytearray(data)
        spoiled[at] ^= rng.choice([1, 2, 4, 8, 16, 32, 64, 128, 255])
        yield Case(f"flip at {at}", bytes(spoiled))


def value_flips(path: Path, rng: random.Random, count: int) -> Iterator[Case]:
    """A byte of some values, with LMDB's pages right: what only our own checks can notice."""
    values = list(values_of(path).items())
    for _ in range(count):
        place, value = rng.choice(values)
        if not value:
            continue
        spoiled, at = bytearray(value), rng.randrange(len(value))
        spoiled[at] ^= rng.choice([1, 128, 255])
        yield Case(f"{place[0]} {place[1].hex()} byte {at}", values=((place, bytes(spoiled)),))


def cuts(data: bytes, rng: random.Random, count: int) -> Iterator[Case]:
    """Cut at nothing, in and behind headers, at pages, beside them, and anywhere; or longer."""
    pages = len(data) // PAGE
    ends = {0, 1, 15, 16, 100, 152, 200, PAGE - 1, PAGE, PAGE + 1, PAGE + 152, 2 * PAGE - 1}
    ends |= {page * PAGE + rng.choice([-1, 0, 0, 0, 1, 16, 2048]) for page in range(2, pages)}
    ends |= {rng.randrange(len(data)) for _ in range(count // 4)}
    chosen = sorted(ends)
    for end in sorted(rng.sample(chosen, min(count, len(chosen)))):
        yield Case(f"cut at {end}", data[:end])
    yield Case("longer by zeros", data + bytes(PAGE))
    yield Case("longer by noise", data + rng.randbytes(3 * PAGE + 5))


def pages(data: bytes, rng: random.Random, count: int) -> Iterator[Case]:
    """Pages swapped, copied over others, emptied, or filled with noise."""
    number = len(data) // PAGE

    def place(page: int) -> slice:
        return slice(page * PAGE, (page + 1) * PAGE)

    for _ in range(count):
        spoiled, (one, two) = bytearray(data), rng.sample(range(number), 2)
        how = rng.choice(["swapped", "copied", "zeros", "ones", "noise", "half"])
        if how == "swapped":
            spoiled[place(one)], spoiled[place(two)] = data[place(two)], data[place(one)]
        elif how == "half":
            spoiled[one * PAGE + PAGE // 2 : (one + 1) * PAGE] = bytes(PAGE // 2)
        else:
            fill = {"zeros": bytes(PAGE), "ones": b"\xff" * PAGE, "noise": rng.randbytes(PAGE)}
            spoiled[place(one)] = data[place(two)] if how == "copied" else fill[how]
        yield Case(f"page {one} {how} with {two}", bytes(spoiled))


def headers(data: bytes, rng: random.Random, count: int) -> Iterator[Case]:
    """Both header pages of LMDB damaged: in the same field, or in different ones."""
    for _ in range(count):
        spoiled, same = bytearray(data), rng.random() < 0.5
        width, at = rng.choice([1, 2, 4, 8]), rng.randrange(0, 152)
        for page in (0, 1):
            where = page * PAGE + (at if same else rng.randrange(0, 152))
            value = rng.choice([0, 1, 2**63 - 1, 2**64 - 1, rng.getrandbits(64)])
            spoiled[where : where + width] = value.to_bytes(8, "little")[:width]
        yield Case(
            f"both headers at {at}, {width} bytes, {'same' if same else 'other'}", bytes(spoiled)
        )


def without_last_commit(data: bytes) -> Case:
    """The file as it was before its last commit: LMDB goes by the header of the later one."""
    spoiled, at = bytearray(data), 16 + 24 + 96 + 8
    numbers = [struct.unpack_from("<Q", data, page * PAGE + at)[0] for page in (0, 1)]
    newest = numbers.index(max(numbers))
    struct.pack_into("<Q", spoiled, newest * PAGE + at, max(0, max(numbers) - 2))
    return Case("without the last commit", bytes(spoiled))


CHANCES = {"flips": flips, "cuts": cuts, "pages": pages, "headers": headers}


# By intent: numbers that lie, under checksums that are right

WHOLE = [
    0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 4095, 2**15, 2**16 - 1, 2**16,
    2**31 - 1, 2**31, 2**32 - 64, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
    -1, -2, -64, -(2**31), -(2**63),
]  # fmt: skip
REAL = [
    0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 5e-324, 1e-30, 1e30, 3.4e38, -3.4e38, 1e300, -1e300,
    float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, "", "x", "x" * 300, "\0", b"", b"abc", [], {}, [1], [None], {"a": 1},
    [[[]]], {"": []}, "cosine", "l2", "hamming", "int8", "bits", "ivf", "flat", "hash",
]  # fmt: skip


def bombs() -> list[bytes]:
    """msgpack that is deep, or says that it is long."""
    deep = 100_000
    return [
        b"\x91" * deep + b"\xc0",
        b"\x81\xc0" * deep + b"\xc0",
        b"\x81\xa1a" * 500 + b"\xc0",
        b"\x91" * 500 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdd\x00\xff\xff\xff" + b"\xc0" * 1000,
        b"\xd7\xff" + b"\xff" * 8,
        b"\xd6\xff" + b"\xff" * 4,
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xd4\x01\x00",
        b"\xc7\x0c\x01" + b"\xff" * 12,
        b"\xa2\xff\xfe",
        b"\xc1",
        b"",
        b"\xc0\xc0",
    ]


def near(value: int) -> list[int]:
    """Numbers beside one, and far from it."""
    return [value - 1, value + 1, 2 * value + 1, value // 2, *WHOLE]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in plain values, themselves too."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from leaves(one, (*path, number))


def replaced(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """The plain values with another one at a path; with `...` without any."""
    if not path:
        return other
    copied: Any = dict(value) if isinstance(value, dict) else list(value)
    if other is ... and len(path) == 1:
        del copied[path[0]]
    else:
        copied[path[0]] = replaced(copied[path[0]], path[1:], other)
    return copied


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def lies_of(value: Any, rng: random.Random, count: int) -> Iterator[tuple[str, Any]]:
    """Plain values with one of them another one, so many times."""
    paths = list(leaves(value))
    for _ in range(count):
        path = rng.choice(paths)
        there = at(value, path)
        if type(there) is int and rng.random() < 0.8:
            other: Any = rng.choice(near(there))
        elif type(there) is float and rng.random() < 0.8:
            other = rng.choice(REAL)
        elif type(there) in (bytes, str) and rng.random() < 0.4:
            other = there[: rng.randrange(len(there) + 1)] + there[:1] * rng.choice([0, 1, 9])
        elif type(there) is list and there and rng.random() < 0.4:
            other = rng.choice([there[:-1], there + there[-1:], there[::-1], there * 3])
        else:
            other = rng.choice([*ODD, *REAL, *WHOLE, *([...] if path else [])])
        if not path and other is ...:
            continue
        yield f"{'.'.join(map(str, path))} = {other!r:.40}", replaced(value, path, other)


def packed(value: Any) -> bytes | None:
    """As msgpack, if it can say that."""
    try:
        found: bytes = msgpack.packb(value, default=record_layout.pack_extension)
    except (ValueError, TypeError, OverflowError):
        return None
    return found


# Of each way to write a value: how it is read and written anew


def sealed(value: bytes | bytearray) -> bytes:
    """A bulk value with a right checksum, whatever its header says."""
    spoiled = bytearray(value)
    length = struct.unpack_from("<Q", spoiled, 20)[0]
    spoiled[layout.HEADER_CRC] = bytes(4)
    crc = zlib.crc32(spoiled[: HEADER.size + min(length, len(spoiled))])
    spoiled[layout.HEADER_CRC] = crc.to_bytes(4, "little")
    return bytes(spoiled)


_FIELDS = {"kind": (4, 1), "dtype": (5, 1), "flags": (6, 2), "rows": (8, 4), "width": (12, 4),
           "first": (16, 4), "length": (20, 8), "owner": (32, 4)}  # fmt: skip


def header_lies(value: bytes, rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Bulk values with a number of the header that lies."""
    for _ in range(count):
        name = rng.choice([*_FIELDS, "rows", "length", "cut"])
        if name == "cut":
            end = rng.randrange(len(value))
            yield f"cut at {end}", bytes(value[:end])
            continue
        place, size = _FIELDS[name]
        there = int.from_bytes(value[place : place + size], "little")
        other = rng.choice(near(there)) % (1 << 8 * size)
        spoiled = bytearray(value)
        spoiled[place : place + size] = other.to_bytes(size, "little")
        yield f"{name} = {other}", sealed(spoiled)


_WORDS = {"<u1": WHOLE, "<u2": WHOLE, "<u4": WHOLE, "<i4": WHOLE, "<u8": WHOLE, "<i8": WHOLE,
          "<f4": REAL, "<f8": REAL, "<f2": REAL}  # fmt: skip


def word(dtype: str, rng: random.Random) -> bytes:
    """A number of a dtype, of those that do harm."""
    other = rng.choice(_WORDS[dtype])
    kind = np.dtype(dtype)
    with np.errstate(all="ignore"):
        if kind.kind == "f":
            return np.array([other], np.float64).astype(kind).tobytes()
    return (other % (1 << 8 * kind.itemsize)).to_bytes(kind.itemsize, "little")


def payload_lies(value: bytes, rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Bulk values with some numbers of the payload that do harm."""
    length = min(struct.unpack_from("<Q", value, 20)[0], len(value) - HEADER.size)
    for _ in range(count):
        spoiled, dtype = bytearray(value), rng.choice(list(_WORDS))
        size = int(dtype[2])
        if length < size:
            return
        many = rng.choice([1, 1, 1, 4, 50, length // size])
        for _ in range(many):
            where = HEADER.size + rng.randrange(length // size) * size
            spoiled[where : where + size] = word(dtype, rng)
        yield f"{many} of {dtype}", sealed(spoiled)


def bundle_lies(
    value: bytes, rng: random.Random, count: int, *, aligned: bool
) -> Iterator[tuple[str, bytes]]:
    """Bundles whose directory lies: plain values, names, dtypes, shapes and places of arrays."""
    header = layout.unpack_header(value, "")
    payload = value[HEADER.size : HEADER.size + header.length]
    (size,) = layout.CHECKSUM.unpack_from(payload)
    head, body = payload[4 : 4 + size], payload[index_layout._start(size, aligned) :]
    directory = msgpack.unpackb(head)

    def joined(head: bytes, said: int | None = None) -> bytes:
        start = index_layout._start(len(head), aligned)
        size = len(head) if said is None else said
        found = (size.to_bytes(4, "little") + head).ljust(start, b"\0") + body
        return layout.pack_bulk(header, found, PAGE)

    for _ in range(count):
        how = rng.random()
        if how < 0.05:
            yield "bomb", bytes(joined(rng.choice(bombs())))
        elif how < 0.1:
            said = rng.choice(WHOLE) % 2**32
            yield f"directory of {said} bytes", bytes(joined(head, said))
        elif how < 0.25:
            # The dtype of an array, or two axes of its shape.
            lying, one = msgpack.unpackb(head), rng.randrange(len(directory[1]))
            array = lying[1][one]
            if rng.random() < 0.5:
                array[1] = rng.choice(
                    ["<f4", "<f8", "|u1", "<u2", "<u8", "<i8", "|O", ">f4", "<f2", "|i1"]
                )
            else:
                array[2] = rng.choice(
                    [
                        array[2][::-1],
                        [-1],
                        [-1, -1],
                        [0],
                        [0, 2**62],
                        [2**62, 0],
                        [1] * 40,
                        [-4, -1],
                    ]
                )
            yield f"{array[0]} is {array[1]} {array[2]}", bytes(joined(msgpack.packb(lying)))
        else:
            name, lying = next(lies_of(directory, rng, 1), ("", directory))
            if (found := packed(lying)) is not None:
                yield name, bytes(joined(found))


def meta_lies(value: bytes, rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Small values of msgpack."""
    plain = msgpack.unpackb(value[4:])
    if rng.random() < 0.1:
        bomb = rng.choice(bombs())
        yield f"bomb of {len(bomb)}", layout.pack_checked(bomb)
        return
    for name, lying in lies_of(plain, rng, count):
        if (found := packed(lying)) is not None:
            yield name, layout.pack_checked(found)


def state_lies(value: bytes, rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Counters."""
    names = [field.name for field in dataclasses.fields(State)]
    form = struct.Struct("<QQQIIIIQQQ")
    numbers = list(form.unpack(value[4:].ljust(form.size, b"\0")))
    for _ in range(count):
        lying, said = list(numbers), []
        for _ in range(rng.choice([1, 1, 2, 3])):
            place = rng.randrange(len(names))
            lying[place] = rng.choice(near(numbers[place])) % (1 << (32 if 3 <= place < 7 else 64))
            said.append(f"{names[place]} = {lying[place]}")
        # Where the last ones are zero, they are not there.
        size = 64 if any(lying[8:]) else 48 if lying[7] else 40
        size = size if rng.random() < 0.9 else rng.choice([40, 48, 56, 64])
        yield ", ".join(said), layout.pack_checked(form.pack(*lying)[:size])


def record_lies(
    key: bytes, value: bytes, rng: random.Random, count: int
) -> Iterator[tuple[str, bytes]]:
    """Records and passages."""
    row = int.from_bytes(value[4:8], "little")
    plain = msgpack.unpackb(value[8:], ext_hook=record_layout.unpack_extension)
    for _ in range(count):
        how = rng.random()
        if how < 0.2:
            other = rng.choice(near(row)) % 2**32
            yield f"row = {other}", record_layout.pack_record(key, other, value[8:])
        elif how < 0.3:
            bomb = rng.choice(bombs())
            body = rng.choice([bomb, b"\x93\x01\xc0" + bomb, b"\x93\x01\xc0\x81\xa1a" + bomb])
            yield f"bomb of {len(bomb)}", record_layout.pack_record(key, row, body)
        else:
            for name, lying in lies_of(plain, rng, 1):
                if (found := packed(lying)) is not None:
                    yield name, record_layout.pack_record(key, row, found)


def adapter_lies(value: bytes, rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Adapters with a digest that is right."""
    owner = layout.unpack_header(value, "").collection
    values, arrays = index_layout.unpack_bundle(value, owner, "")
    data = arrays["adapter"].tobytes()[:-32]
    magic, size = adapter._HEAD.unpack_from(data)
    start = adapter._HEAD.size
    head, body = json.loads(data[start : start + size]), data[start + size :]
    for name, lying in lies_of(head, rng, count):
        try:
            said = json.dumps(lying).encode()
        except TypeError:
            continue
        length = len(said) if rng.random() < 0.9 else rng.choice(WHOLE) % 2**32
        whole = adapter._HEAD.pack(magic, length) + said + body
        whole += hashlib.sha256(whole).digest()
        lying_arrays = {**arrays, "adapter": np.frombuffer(whole, np.uint8)}
        yield name, bytes(index_layout.pack_bundle(owner, values, lying_arrays, PAGE))


def lies(path: Path, rng: random.Random, count: int) -> Iterator[Case]:
    """So many files, each with something in it that lies, in any of its values."""
    values = values_of(path)
    kinds: dict[tuple[Any, ...], list[Key]] = {}
    for place, value in values.items():
        name, key = place
        kind: tuple[Any, ...] = (name, key[:6] if name == "meta" else len(key))
        if value[:4] == layout.HEADER_MAGIC:
            kind = (name, value[4], key[4:5] if name == "tiers" else b"")
        elif name == "records":
            kind = (name, value[8])
        elif name == "index":
            kind = (name, key[4:])
        kinds.setdefault(kind, []).append(place)
    for _ in range(count):
        said, changes = [], {}
        # Some lies are believed only together with others.
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            place = rng.choice(kinds[rng.choice(list(kinds))])
            for what, found in _lies_about(place, values, rng):
                said.append(f"{place[0]} {place[1].hex()}: {what}")
                changes.update(found)
        if changes:
            yield Case("; ".join(said), values=tuple(changes.items()))


def _lies_about(
    place: Key, values: dict[Key, bytes], rng: random.Random
) -> Iterator[tuple[str, tuple[tuple[Key, bytes | None], ...]]]:
    (name, key), value = place, values[place]
    how = rng.random()
    if how < 0.04:
        yield "taken away", ((place, None),)
        return
    if how < 0.1:
        others = [other for other in values if other[0] == name and other != place]
        if others:
            other = rng.choice(others)
            yield f"that of {other[1].hex()}", ((place, values[other]),)
        return
    if how < 0.14:
        spoiled = bytearray(key)
        if len(spoiled) > 4:
            spoiled[rng.randrange(4, len(spoiled))] ^= rng.choice([1, 128, 255])
            moved = value
            if name == "records":
                moved = record_layout.pack_record(bytes(spoiled), *_row_and_body(value))
            yield f"under {spoiled.hex()} too", (((name, bytes(spoiled)), moved),)
        return
    if how < 0.17:
        junk = rng.randbytes(rng.choice([0, 1, 3, 4, 47, 48, 100, 3000]))
        yield (
            f"{len(junk)} bytes of noise",
            ((place, rng.choice([junk, layout.pack_checked(junk)])),),
        )
        return
    for what, lying in _lies(name, key, value, rng):
        yield what, ((place, lying),)


def _row_and_body(value: bytes) -> tuple[int, bytes]:
    return int.from_bytes(value[4:8], "little"), value[8:]


def _lies(name: str, key: bytes, value: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    if value[:4] == layout.HEADER_MAGIC:
        kind = value[4]
        if kind in (layout.BUNDLE, layout.SEGMENT) and rng.random() < 0.5:
            yield from bundle_lies(value, rng, 1, aligned=kind == layout.SEGMENT)
        elif kind == layout.BUNDLE and name == "meta" and rng.random() < 0.7:
            yield from adapter_lies(value, rng, 1)
        elif rng.random() < 0.5:
            yield from header_lies(value, rng, 1)
        else:
            yield from payload_lies(value, rng, 1)
    elif name == "records":
        yield from record_lies(key, value, rng, 1)
    elif name == "meta" and key.startswith(b"state/"):
        yield from state_lies(value, rng, 1)
    elif name == "meta" or key[4:] in (index_layout.PLAN, b"m"):
        yield from meta_lies(value, rng, 1)
    elif name in ("ids", "digests") and len(value) in (4, 8):
        number = int.from_bytes(value, "little")
        other = rng.choice(near(number)) % (1 << 8 * len(value))
        yield f"= {other}", other.to_bytes(len(value), "little")
    else:
        # Under a checksum: which blocks are listed, and generations.
        data = bytearray(value[4:])
        for _ in range(rng.choice([1, 3])):
            if data:
                data[rng.randrange(len(data))] ^= rng.choice([1, 128, 255])
        data += bytes(rng.choice([0, 0, 1, 5000]))
        yield "other bits", layout.pack_checked(bytes(data))
