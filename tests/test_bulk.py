"""Where bulk values lie: as LMDB says, and never outside the file, whatever a page says."""

import ctypes
import mmap
import os
import resource
import struct
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest

from vecstore.errors import CorruptionError
from vecstore.store import Store, bulk

KEYS = [number.to_bytes(4, "big") for number in range(40)]
linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells where files are mapped"
)


@pytest.fixture
def env(path: Path):
    """Values of many lengths, long ones beyond what a node holds."""
    made = lmdb.open(str(path), map_size=1 << 30, subdir=False, max_dbs=1)
    database = made.open_db(b"tiers")
    rng = np.random.default_rng(1)
    with made.begin(write=True) as txn:
        for key in KEYS:
            txn.put(key, rng.bytes(int(rng.integers(1, 90_000))), db=database)
        txn.put(b"long", rng.bytes(64 << 20), db=database)
    yield made, database
    made.close()


def map_start(cursor: lmdb.Cursor) -> int:
    """Where the map begins that the first key of a database is in."""
    assert cursor.first()
    return bulk.map_start(bulk.address_of(cursor.key()))


@linux
def test_values_are_where_lmdb_says(env, path: Path) -> None:
    made, database = env
    size, page = path.stat().st_size, made.stat()["psize"]
    with made.begin(buffers=True) as txn, txn.cursor(db=database) as cursor:
        start = map_start(cursor)
        assert start
        for key in KEYS:
            value = txn.get(key, db=database)
            if len(value) < page // 2 - 100:
                with pytest.raises(CorruptionError, match=f"a value of {len(value)} bytes"):
                    bulk.locate(cursor, key, start, page, size)
                continue
            found = bulk.locate(cursor, key, start, page, size)
            assert bulk.address_of(found) == bulk.address_of(value)
            assert found.readonly
            assert bytes(found) == bytes(value)
        assert bulk.locate(cursor, b"none", start, page, size) is None


@linux
def test_a_value_is_found_without_touching_its_pages(env, path: Path) -> None:
    made, database = env
    size = path.stat().st_size
    with made.begin(buffers=True) as txn, txn.cursor(db=database) as cursor:
        start = map_start(cursor)
        cursor.set_key(KEYS[0])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        found = bulk.locate(cursor, b"long", start, made.stat()["psize"], size)
        touched = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        assert len(found) == 64 << 20
        assert touched < 20


def test_of_what_is_not_mapped_nothing_is_told() -> None:
    copied = np.zeros(1 << 24, np.uint8)

    assert bulk.map_start(0) == 0
    assert bulk.map_start(bulk.address_of(memoryview(copied))) == 0


@linux
@pytest.mark.parametrize("name", [b"one two", b"a\nb", "a\r\u2028b".encode()])
def test_the_map_is_found_whatever_the_file_is_called(tmp_path: Path, name: bytes) -> None:
    store = Store(Path(os.fsdecode(bytes(tmp_path) + b"/" + name)))
    store.write(lambda txn: txn.put("tiers", KEYS[0], b"x" * 9000))
    with store.snapshot() as snapshot:
        snapshot.addresses("tiers", b"", np.array([0]), 1, lambda value, number: None)
    assert store.map_start
    store.close()


@linux
def test_the_map_is_told_from_others_of_the_same_file(path: Path) -> None:
    store = Store(path, start_map=1 << 30)
    store.write(lambda txn: [txn.put("tiers", key, b"x" * 9000) for key in KEYS])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    # Below LMDB's map, where it is listed first.
    with path.open("rb") as file:
        other = libc.mmap(1 << 40, 4096, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    wanted = np.arange(40)
    for size in (1 << 30, 2 << 30):
        if size > store.map_size:
            with store.gate.alone(1, "enlarge the map"):
                store._remap(size, size)
        with store.snapshot() as snapshot:
            table = snapshot.addresses("tiers", b"", wanted, 40, lambda value, number: None)
            found = [bulk.address_of(snapshot.get("tiers", key)) for key in KEYS]
            assert other < store.map_start
            assert table.tolist() == found
    libc.munmap(other, 4096)
    store.close()


def test_where_the_map_is_not_told_values_are_found_all_the_same(path: Path) -> None:
    store = Store(path)
    store.map_start = 0
    store.write(lambda txn: [txn.put("tiers", key, b"x" * 5000) for key in KEYS])
    wanted = np.arange(40)
    with store.snapshot() as snapshot:
        without = snapshot.addresses("tiers", b"", wanted, 40, lambda value, number: None)
    store.close()
    again = Store(path)
    with again.snapshot() as snapshot:
        table = snapshot.addresses("tiers", b"", wanted, 40, lambda value, number: None)
        # The map may be elsewhere now; what is where in it is the same.
        assert (np.diff(table.astype(np.int64)) == np.diff(without.astype(np.int64))).all()
    again.close()


@linux
@pytest.mark.parametrize("number", [2**64 - 1, 2**51, 10**6, 0, 1])
def test_a_page_number_that_leads_nowhere_is_an_error(path: Path, number: int) -> None:
    store = Store(path)
    store.write(lambda txn: [txn.put("tiers", key, b"x" * 9000) for key in KEYS[:3]])
    store.close()
    data = bytearray(path.read_bytes())
    node = struct.pack("<HHHH", 9000, 0, 1, 4) + KEYS[1]
    at = data.find(node)
    while at >= 0:
        data[at + 12 : at + 20] = number.to_bytes(8, "little")
        at = data.find(node, at + 1)
    path.write_bytes(data)
    store = Store(path)
    with store.snapshot() as snapshot, pytest.raises(CorruptionError):
        snapshot.addresses("tiers", b"", np.array([0, 1]), 3, lambda value, number: None)
    store.close()


@linux
def test_a_first_page_that_says_it_is_another_one_is_an_error(path: Path) -> None:
    store = Store(path)
    store.write(lambda txn: [txn.put("tiers", key, b"x" * 9000) for key in KEYS[:3]])
    page = store.page
    store.close()
    data = bytearray(path.read_bytes())
    pages = len(data) // page
    node, length = struct.pack("<HHHH", 9000, 0, 1, 4) + KEYS[1], (pages - 2) * page - 16
    at = data.find(node)
    while at >= 0:
        data[at : at + 4] = struct.pack("<I", length)
        first = page * int.from_bytes(data[at + 12 : at + 20], "little")
        # From page 2 on it would be inside the file.
        data[first : first + 16] = struct.pack("<QHHI", 2, 0, 4, pages - 2)
        at = data.find(node, at + 1)
    path.write_bytes(data)
    store = Store(path)
    with store.snapshot() as snapshot, pytest.raises(CorruptionError):
        snapshot.addresses("tiers", b"", np.array([1]), 3, lambda value, number: None)
    store.close()
